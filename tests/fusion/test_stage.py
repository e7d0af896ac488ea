"""The first stage's adapter, frozen beside FLARE's: as if it had been merged, where merging would lose."""

import copy

import peft
import pytest
import torch

import lingualift as ll
from builders import small
from builders.refusals import refused

QUIET = {"tell": lambda line: None}


def trained(name, folder, **settings):
    """A LoRA adapter on disk, and the backbone with it merged."""
    how = {"r": 3, "lora_alpha": 5, "target_modules": small.NAMES[name], **settings}
    model = peft.get_peft_model(small.plain(name), peft.LoraConfig(**how))
    small.draw(model, seed=8)
    model.save_pretrained(folder)
    return model.merge_and_unload()


def staged(name, folder, backbone=None, **settings):
    model = ll.flare(
        backbone or small.plain(name),
        ll.FlareConfig(r=4, lora_alpha=6, target_modules=small.NAMES[name], **settings),
        first_stage=folder,
    )
    small.draw(model)
    return model.eval()


@pytest.mark.parametrize("where", ["block-input", "projection-input"])
@pytest.mark.parametrize("name", small.NAMES)
def test_it_counts_as_if_it_were_merged(tmp_path, name, where):
    more = {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]} if name == "llama" else {}
    merged = trained(name, tmp_path, **more)
    given = small.batch(name)
    ours, theirs = staged(name, tmp_path, source_state=where), small.fused(name, merged, source_state=where)
    for model in (ours, theirs):
        model(**given).loss.backward()
    with torch.no_grad():
        one, two = (small.real(model(**given).logits, given, name) for model in (ours, theirs))
        plain = small.real(small.fused(name, source_state=where)(**given).logits, given, name)
    assert torch.allclose(one, two, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one, plain, atol=1e-2)
    for key, value in small.gradients(theirs).items():
        found = small.gradients(ours)[key]
        assert torch.allclose(found, value, atol=1e-5, rtol=1e-4), key
    trainable = {key for key, value in ours.named_parameters() if value.requires_grad}
    assert trainable == {key for key, value in theirs.named_parameters() if value.requires_grad}


def test_both_are_saved_and_loaded_together(tmp_path):
    trained("llama", tmp_path / "lora")
    model, given = staged("llama", tmp_path / "lora"), small.batch("llama")
    model.save_pretrained(tmp_path / "flare")
    again = ll.load_flare(small.plain("llama"), tmp_path / "flare")
    first = peft.PeftModel.from_pretrained(small.plain("llama"), tmp_path / "flare" / "first-stage")
    original = peft.PeftModel.from_pretrained(small.plain("llama"), tmp_path / "lora")
    with torch.no_grad():
        assert torch.equal(again(**given).logits, model(**given).logits)
        ids = given["input_ids"]
        assert torch.equal(first(input_ids=ids).logits, original(input_ids=ids).logits)


def test_unload_takes_both_off(tmp_path):
    trained("llama", tmp_path)
    backbone, given = small.plain("llama"), small.target_only(small.batch("llama"))
    keys = set(backbone.state_dict())
    with torch.no_grad():
        before = backbone(**given).logits
        back = staged("llama", tmp_path, backbone).unload()
        assert torch.equal(back(**given).logits, before)
    assert set(back.state_dict()) == keys


def test_a_cache_knows_of_it(tmp_path):
    trained("llama", tmp_path / "lora")
    one, other = staged("llama", tmp_path / "lora"), small.fused("llama")
    caches = [model.cache_sources([[5, 6, 7]], tmp_path / "cache", **QUIET) for model in (one, other)]
    assert caches[0].folder != caches[1].folder


def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path):
    trained("llama", tmp_path / "lora")
    wide = small.plain("llama", hidden_size=48)
    for backbone in (small.plain("xlmr"), wide):
        keys = set(backbone.state_dict())
        name = "xlmr" if backbone.config.model_type == "xlm-roberta" else "llama"
        with pytest.raises(ll.UserError, match=r"an adapter of this backbone"):
            staged(name, tmp_path / "lora", backbone)
        assert set(backbone.state_dict()) == keys
    biased = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    peft.get_peft_model(small.plain("llama"), biased).save_pretrained(tmp_path / "head")
    with refused("/head", "lm_head", "modules_to_save"):
        staged("llama", tmp_path / "head")
    biased = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True)
    with pytest.warns(UserWarning, match="bias"):
        peft.get_peft_model(small.plain("llama"), biased).save_pretrained(tmp_path / "biased")
    with refused("/biased", "lora_B.bias (lora_bias)"):
        staged("llama", tmp_path / "biased")
    rule = peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    peft.get_peft_model(small.plain("llama"), rule).save_pretrained(tmp_path / "ia3")
    with refused("/ia3", "is ia3", "LoRA"):
        staged("llama", tmp_path / "ia3")


def test_on_4_bit_weights(tmp_path):
    four, exact = small.rounded("llama", tmp_path / "backbone")
    trained("llama", tmp_path / "lora")
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(exact), tmp_path / "lora").merge_and_unload()
    given = small.batch("llama")
    with torch.no_grad():
        ours = staged("llama", tmp_path / "lora", four)(**given).logits
        theirs = small.fused("llama", merged)(**given).logits
    assert torch.allclose(small.real(ours, given, "llama"), small.real(theirs, given, "llama"), atol=1e-4)
