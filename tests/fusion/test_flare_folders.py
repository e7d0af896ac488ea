"""Adapter folders: the same logits after reload, refused by plain peft, checked key by key."""

import contextlib
import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import lingualift as ll
from builders import small
from builders.refusals import refused
from lingualift.adapters import patterns
from lingualift.provenance import sha256_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention"])
@pytest.mark.parametrize("name", small.NAMES)
def test_the_same_logits_after_reload(tmp_path, name, fusion):
    backbone, given = small.plain(name), small.batch(name)
    how = {"fusion": fusion, "source_state": "block-output", "padding": "right", "lora_dropout": 0.1}
    model = small.fused(name, backbone, **how)
    model.save_pretrained(tmp_path / "adapter")
    again = ll.load_flare(small.plain(name), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(**given).logits, model(**given).logits)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert not again.training
    assert again.flare_config.to_dict() == model.flare_config.to_dict()
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [CONFIG, WEIGHTS]
    further = ll.load_flare(small.plain(name), tmp_path / "adapter", is_trainable=True)
    trained = {key for key, parameter in further.named_parameters() if parameter.requires_grad}
    assert trained == {key for key, _ in model.named_parameters() if "lora_" in key}


def test_a_head_is_saved_too(tmp_path):
    import transformers as hf

    from builders import tiny

    config = tiny.config_of("xlmr", small.WORDS)
    config.num_labels = 3

    def backbone():
        torch.manual_seed(0)
        return hf.AutoModelForSequenceClassification.from_config(config)

    how = ll.FlareConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = ll.flare(backbone(), how)
    small.draw(model)
    given = {**small.batch("xlmr"), "labels": torch.tensor([0, 2, 1])}
    model(**given).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.sub_(0.1 * parameter.grad)
    model.save_pretrained(tmp_path / "adapter")
    assert sum(".classifier." in key for key in load_file(tmp_path / "adapter" / WEIGHTS)) == 4
    again = ll.load_flare(backbone(), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(**given).logits, model.eval()(**given).logits)


def test_plain_peft_refuses_the_folder(tmp_path):
    small.fused("llama").save_pretrained(tmp_path)
    with pytest.raises(Exception, match="FLARE"):
        peft.PeftConfig.from_pretrained(str(tmp_path))
    with pytest.raises(Exception, match="FLARE"):
        peft.PeftModel.from_pretrained(small.plain("llama"), str(tmp_path))
    with pytest.raises(Exception, match="FLARE"):
        small.plain("llama").load_adapter(str(tmp_path))


def _spoil(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda tensors: tensors.pop(FIRST), "q_proj.lora_A.weight is missing"),
        (lambda tensors: tensors.update({"new": torch.ones(1)}), "new is none of the adapter's"),
        (lambda tensors: tensors.update({FIRST: torch.ones(4, 31)}), r"is \(4, 31\), not \(4, 32\)"),
        (lambda tensors: tensors[FIRST].fill_(float("nan")), "holds NaN or infinity"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, change, found):
    small.fused("llama").save_pretrained(tmp_path)
    _spoil(tmp_path, change)
    backbone = small.plain("llama")
    with pytest.raises(ll.UserError, match=found):
        ll.load_flare(backbone, tmp_path)
    assert not any("lora" in key for key in backbone.state_dict())


def test_what_is_no_flare_adapter_is_refused(tmp_path):
    plain = peft.get_peft_model(small.plain("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    plain.save_pretrained(tmp_path / "lora")
    with refused("adapter_config.json", "'LORA'"):
        ll.load_flare(small.plain("llama"), tmp_path / "lora")
    with refused("nowhere/adapter_config.json", "cannot be read"):
        ll.load_flare(small.plain("llama"), tmp_path / "nowhere")
    small.fused("llama").save_pretrained(tmp_path / "flare")
    for key, value, found in (
        ("fusoin", 1, "did you mean fusion"),
        ("fusion", "ad_relu", "did you mean add_relu"),
    ):
        shutil.copytree(tmp_path / "flare", tmp_path / key)
        config = json.loads((tmp_path / key / CONFIG).read_text())
        (tmp_path / key / CONFIG).write_text(json.dumps({**config, key: value}))
        with pytest.raises(ll.UserError, match=found):
            ll.load_flare(small.plain("llama"), tmp_path / key)


def _flip(file):
    data = bytearray(file.read_bytes())
    data[-2] ^= 0x40
    file.write_bytes(data)


def test_an_altered_folder_is_refused_with_its_first_stage(tmp_path):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(small.plain("llama"), lora).save_pretrained(tmp_path / "lora")
    backbone = small.plain("llama")
    model = ll.flare(backbone, ll.FlareConfig(r=4), first_stage=tmp_path / "lora")
    model.save_pretrained(tmp_path / "flare")
    facts = {"weights_sha256": sha256_file(tmp_path / "flare" / WEIGHTS)}
    (tmp_path / "flare/provenance.json").write_text(json.dumps(facts))
    ll.load_flare(small.plain("llama"), tmp_path / "flare")
    shutil.copytree(tmp_path / "flare", tmp_path / "other")
    _flip(tmp_path / "flare" / WEIGHTS)
    _flip(tmp_path / "other/first-stage" / WEIGHTS)
    (tmp_path / "lora/provenance.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    for act, found in (
        (lambda: ll.load_flare(small.plain("llama"), tmp_path / "flare"), "is damaged or was changed"),
        (lambda: ll.load_flare(small.plain("llama"), tmp_path / "other"), "is not the one"),
        (
            lambda: ll.flare(small.plain("llama"), ll.FlareConfig(r=4), first_stage=tmp_path / "lora"),
            "is damaged or was changed",
        ),
    ):
        with pytest.raises(ll.UserError, match=found):
            act()


VALUES = (None, True, 5, 0, -1, 99_999, 1e300, "", "x", "(.*?)*?[!?]", [], [5], ["x"], {}, {"x": 1}, [[]])


def test_any_type_anywhere_in_a_configuration_is_a_result_or_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    model = small.fused("llama")
    model.save_pretrained(tmp_path)
    plain = json.loads((tmp_path / CONFIG).read_text())
    backbone = model.unload()
    weights = {key: value.clone() for key, value in backbone.state_dict().items()}
    for key in (*plain, "first-stage", "megatron_core", "unheard_of"):
        for value in VALUES:
            (tmp_path / CONFIG).write_text(json.dumps({**plain, key: value}))
            with contextlib.suppress(ll.UserError):
                ll.load_flare(backbone, tmp_path).unload()
    assert all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "xlmr", "t5"])
def test_unload_gives_the_backbone_back(name):
    backbone, given = small.plain(name), small.target_only(small.batch(name))
    kinds = {key: type(module) for key, module in backbone.named_modules()}
    with torch.no_grad():
        before = backbone(**given).logits
        model = small.fused(name, backbone)
        back = model.unload()
        assert torch.equal(back(**given).logits, before)
    assert {key: type(module) for key, module in back.named_modules()} == kinds
    small.fused(name, back)


def test_nothing_of_lingualift_takes_it_for_a_lora_adapter(tmp_path):
    model = small.fused("llama")
    for name in ("one", "two", "three"):
        model.save_pretrained(tmp_path / name)
    with refused("/one", "FLARE adapters cannot be merged"):
        ll.merge(
            method="adamergex",
            task=tmp_path / "one",
            target_reference=tmp_path / "two",
            source_reference=tmp_path / "three",
            weight=0.5,
            output=tmp_path / "merged",
        )
    assert [found.kind for found in ll.inspect([tmp_path / "one"]).adapters] == ["flare"]
