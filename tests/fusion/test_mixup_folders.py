"""X-Mixup adapters on disk, and what cannot be: said before anything runs, and never unmixed in silence."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import lingualift as ll
from builders import mixed, small
from builders.refusals import refused
from lingualift.adapters import open_adapter

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize("name", mixed.NAMES)
def test_the_same_logits_after_reload(name, tmp_path):
    backbone, given = mixed.plain(name), mixed.batch(name)
    first = peft.get_peft_model(mixed.plain(name), peft.LoraConfig(r=3, target_modules=small.NAMES[name]))
    small.draw(first, seed=8)
    first.save_pretrained(tmp_path / "first")
    model = mixed.mixed(name, backbone, first_stage=tmp_path / "first", layer=1, ratio=0.4)
    model.save_pretrained(tmp_path / "mixed")
    assert open_adapter(tmp_path / "mixed").kind == "x-mixup"
    again = ll.load_mixup(mixed.plain(name), tmp_path / "mixed")
    assert not any(parameter.requires_grad for parameter in again.parameters())
    trainable = ll.load_mixup(mixed.plain(name), tmp_path / "mixed", is_trainable=True)
    with torch.no_grad():
        expected = model(**given)
        for other in (again, trainable.eval()):
            found = other(**given)
            assert torch.equal(found.logits, expected.logits)
            assert torch.equal(found.loss, expected.loss)
    names = {key for key, value in trainable.named_parameters() if value.requires_grad}
    assert {key for key in names if key.startswith("mixer.")} == {
        f"mixer.{part}.weight" for part in ("query", "key", "value", "up")
    }
    assert all(".lora_" in key or "mixer." in key or ".modules_to_save.default." in key for key in names)


def test_plain_peft_refuses_it_and_so_does_flare(tmp_path):
    mixed.mixed("llama").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "X-MIXUP"
    with pytest.raises((KeyError, ValueError)):
        peft.PeftModel.from_pretrained(small.plain("llama"), tmp_path)
    with refused("adapter_config.json", "'X-MIXUP'", "'FLARE'"):
        ll.load_flare(small.plain("llama"), tmp_path)
    small.fused("llama").save_pretrained(tmp_path / "flare")
    with refused("adapter_config.json", "'FLARE'", "'X-MIXUP'"):
        ll.load_mixup(small.plain("llama"), tmp_path / "flare")


def test_damaged_folders_leave_the_backbone_as_it_was(tmp_path):
    mixed.mixed("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    removed = {key: value for key, value in tensors.items() if key != "mixer.up.weight"}
    assert len(removed) == len(tensors) - 1
    save_file(removed, tmp_path / WEIGHTS)
    backbone, given = small.plain("llama"), small.target_only(small.batch("llama"))
    keys, kinds = set(backbone.state_dict()), [type(module) for module in backbone.modules()]
    with refused("adapter_model.safetensors", "mixer.up.weight is missing"):
        ll.load_mixup(backbone, tmp_path)
    assert set(backbone.state_dict()) == keys
    assert [type(module) for module in backbone.modules()] == kinds
    with torch.no_grad():
        assert torch.equal(backbone(**given).logits, small.plain("llama")(**given).logits)


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("llama", {"layer": 2}, "layer: is 2; expected 0 to 1"),
        ("llama", {"layer": -1}, "layer: is -1; expected 0 to 1"),
        ("t5", {"layer": 3}, "layer: is 3; expected 0 to 2"),
        ("llama", {"ratio": 0.0}, "ratio: is 0.0; expected above 0"),
        ("llama", {"ratio": 1.5}, "above 0 and at most 1"),
        ("llama", {"answer_consistency": -1}, "answer_consistency: is -1; expected a weight"),
        ("llama", {"state_consistency": float("nan")}, "state_consistency: is nan"),
        ("llama", {"r": 0}, "a whole number above 0"),
        ("llama", {"target_modules": ["q_prj"]}, "'q_prj' is no linear layer"),
        ("xlmr", {"modules_to_save": ["classifer"]}, "'classifer' matches no module"),
        ("xlmr", {"modules_to_save": ["encoder"]}, "encoder is a part of what reads the source"),
    ],
)
def test_settings_that_cannot_be(name, settings, found):
    backbone = mixed.plain(name)
    with pytest.raises(ll.UserError, match=found):
        ll.mixup(backbone, ll.MixupConfig(**{"target_modules": small.NAMES[name], **settings}))
    assert not any("lora" in key for key in backbone.state_dict())


def test_all_linear_layers_of_the_blocks_are_the_default():
    for name, count in (("llama", 7), ("xlmr", 6)):
        model = ll.mixup(mixed.plain(name), ll.MixupConfig())
        assert sum(".lora_A." in key for key, _ in model.named_parameters()) == 2 * count


@pytest.mark.parametrize("name", mixed.NAMES)
def test_it_never_runs_unmixed(name):
    model, given = mixed.mixed(name), mixed.batch(name)
    with pytest.raises(RuntimeError, match="is mixed and got no source: pass source_input_ids"):
        model(**small.target_only(mixed.prompts(given)))
    with pytest.raises(RuntimeError, match="is mixed and got no source"):
        model.get_base_model()(**small.target_only(given))
    lacking = {key: value for key, value in given.items() if key != "source_labels"}
    with refused("source_labels", "not given"):
        model(**lacking)
    with refused("source_labels", "not given"):
        model(**small.target_only(given))
    ids = {key: value for key, value in given.items() if key != "source_input_ids"}
    with refused("source_input_ids", "not given"):
        model(**ids)
    rows = {key: value[:2] if key.startswith("source_") else value for key, value in given.items()}
    with refused("source_input_ids", "2 rows", "3, one for each"):
        model(**rows)
    decoder = {"decoder_input_ids": given["labels"].clamp(min=0)} if name == "t5" else {}
    alone = {**small.target_only(mixed.prompts(given)), **decoder}
    both = {**mixed.prompts(given), **decoder}
    with torch.no_grad():
        with model.fusion_off():
            off = model(**alone).logits
        assert not torch.allclose(off, model(**both).logits, atol=1e-3)
        assert torch.allclose(off, mixed.mixed(name, ratio=1.0)(**both).logits, atol=1e-5)


def test_a_row_without_an_answer_or_a_prompt_is_refused():
    model, given = mixed.mixed("llama"), mixed.batch("llama")
    empty = {**given, "labels": given["labels"].clone()}
    empty["labels"][1] = -100
    with refused("labels", "has none"):
        model(**empty)
    whole = {**given, "source_labels": given["source_input_ids"]}
    with refused("labels", "no prompt"):
        model(**whole)


@pytest.mark.parametrize("name", mixed.NAMES)
def test_gradient_checkpointing_keeps_the_mixing(name):
    given, found = mixed.batch(name), {}
    backbone = mixed.plain(name, **({"dropout_rate": 0.0} if name == "t5" else {}))
    for reentrant in (None, False, True):
        model = mixed.mixed(name, backbone)
        if reentrant is not None:
            base = model.get_base_model()
            base.activation_checkpointing_enable({"use_reentrant": reentrant})
            base.enable_input_require_grads()
        model.train()
        loss = model(**given).loss
        loss.backward()
        found[reentrant] = [loss, *(p.grad for p in model.parameters() if p.requires_grad)]
    for reentrant in (False, True):
        for one, other in zip(found[None], found[reentrant], strict=True):
            assert torch.allclose(one, other, atol=1e-6, rtol=1e-5)
