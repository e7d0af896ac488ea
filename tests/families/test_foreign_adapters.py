"""Somebody's adapter on a backbone: what was recorded is checked, no code of it runs, nothing searches for ever."""

import contextlib
import json
import sys
import time
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from builders.refusals import refused
from lingualift.adapters import patterns, targets
from lingualift.attachment import attach, check_adapter, detach
from lingualift.backbone.loading import load_backbone
from lingualift.errors import UserError
from lingualift.provenance import sha256_file

WEIGHTS = "adapter_model.safetensors"
IDS = torch.arange(2, 66).reshape(2, -1)
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def written(ref, folder, made=None):
    """An adapter that plain peft wrote, as if trained, and what it answers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(ref.source)
    wrapped = peft.get_peft_model(model, made or peft.LoraConfig(**LORA)).eval()
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        wrapped.save_pretrained(folder)
        return wrapped(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def changed(folder, **more):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))


def flipped(file):
    data = bytearray(file.read_bytes())
    data[-2] ^= 0x40
    file.write_bytes(data)


def test_an_altered_adapter_is_used_nowhere(backbone, tmp_path):
    ref = backbone("llama3")
    written(ref, tmp_path / "a")
    weights = tmp_path / "a" / WEIGHTS
    recorded = sha256_file(weights)
    (tmp_path / "a/provenance.json").write_text(json.dumps({"weights_sha256": recorded}))
    detach(attach(ref, tmp_path / "a"))
    flipped(weights)
    for use in (check_adapter, attach):
        with refused("/a/adapter_model.safetensors", sha256_file(weights), recorded, mend="weights_sha256"):
            use(ref, tmp_path / "a")


def test_no_code_of_an_adapter_runs(backbone, tmp_path, monkeypatch):
    ref = backbone("llama3")
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron/payload.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    core = {"megatron_config": {"a": 1}, "megatron_core": "megatron.payload"}
    mapping = {"auto_mapping": {"parent_library": "megatron.payload", "base_model_class": "X"}}
    for loading in (core, mapping):
        written(ref, tmp_path / "megatron")
        changed(tmp_path / "megatron", **loading)
        for use in (check_adapter, attach):
            with refused("/adapter_config.json", next(iter(loading)), "not run", mend="remove the key"):
                use(ref, tmp_path / "megatron")
    assert not (tmp_path / "ran").exists()
    assert "megatron.payload" not in sys.modules


PATTERNS = {
    "targets": {"target_modules": r".*\.(?:self_attn|mlp)\.(?:q|up)_proj"},
    "left out": {"target_modules": r".*_proj", "exclude_modules": r".*\.0\..*|.*(?:gate|down)_proj"},
    "ranks": {"rank_pattern": {r"layers\.[1-9]\..*": 4, "v_proj": 1}, "alpha_pattern": {r".*\.q_\w+": 32}},
    "repeated": {
        "target_modules": r".*layers\.[12]\..*q_proj",
        "layer_replication": [(0, 2), (1, 2)],
        "rank_pattern": {r".*\.2\..*": 3},
    },
}


@pytest.mark.parametrize("name", PATTERNS)
def test_what_is_named_by_patterns_is_used_and_saved_as_it_was(backbone, tmp_path, name):
    ref = backbone("llama3")
    expected = written(ref, tmp_path / "a", peft.LoraConfig(**{**LORA, **PATTERNS[name]}))
    wrapped = attach(ref, tmp_path / "a", trainable=True).eval()
    try:
        with torch.no_grad():
            found = wrapped(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        wrapped.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    finally:
        detach(wrapped)
    assert torch.allclose(found, expected, atol=1e-4)
    before, after = (json.loads((tmp_path / x / "adapter_config.json").read_text()) for x in ("a", "again"))
    for key in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        assert after[key] == before[key] or sorted(after[key]) == sorted(before[key])
    assert load_file(tmp_path / "a" / WEIGHTS).keys() == load_file(tmp_path / "again" / WEIGHTS).keys()


@pytest.mark.parametrize(
    "key", ["target_modules", "exclude_modules", "rank_pattern", "modules_to_save", "layers_pattern"]
)
def test_no_pattern_of_an_adapter_searches_for_ever(backbone, tmp_path, monkeypatch, key):
    monkeypatch.setattr(patterns, "SECONDS", 0.3)
    ref = backbone("llama3")
    written(ref, tmp_path / "a")
    endless = r"(.*?)*?[!?]"
    value = {"rank_pattern": {endless: 2}, "modules_to_save": [endless]}.get(key, endless)
    changed(tmp_path / "a", **{key: value})
    if key == "layers_pattern":
        changed(tmp_path / "a", layers_to_transform=[0])
    told = key if key in ("modules_to_save", "layers_pattern") else "over 0.3 s"
    began = time.process_time()
    with refused("/adapter_config.json", endless, told):
        attach(ref, tmp_path / "a")
    assert time.process_time() - began < 5


def test_a_tokenizer_that_an_adapter_names_is_not_fetched(backbone, tmp_path):
    ref = backbone("llama3")
    tokenizer = {
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "x",
        "tokenizer_name_or_path": "org/other",
    }
    expected = written(
        ref, tmp_path / "a", peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    )
    changed(tmp_path / "a", **tokenizer, tokenizer_kwargs={"trust_remote_code": True})
    wrapped = attach(ref, tmp_path / "a", trainable=True).eval()
    try:
        with torch.no_grad():
            found = wrapped(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        assert (
            wrapped.peft_config["default"].to_dict() | tokenizer == wrapped.peft_config["default"].to_dict()
        )
    finally:
        detach(wrapped)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_key_that_peft_knows_and_nobody_judged_is_refused(backbone, tmp_path, monkeypatch):
    ref = backbone("llama3")
    written(ref, tmp_path / "a")
    known = {key: kind for key, kind in targets.KNOWN.items() if key != "use_dora"}
    monkeypatch.setattr(targets, "KNOWN", known)
    detach(attach(ref, tmp_path / "a"))
    changed(tmp_path / "a", use_dora=True)
    with refused("/adapter_config.json", "use_dora", "not known", mend="update lingualift"):
        attach(ref, tmp_path / "a")


VALUES = [
    None,
    True,
    5,
    -1,
    0,
    99_999,
    1.5,
    "",
    "x",
    "(",
    [],
    [0],
    [5],
    ["x"],
    [[0, 1]],
    [[0, 900]],
    {},
    {"x": 1},
]
KEYS = [
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "bias",
]
KEYS += ["modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"]
KEYS += ["alpha_pattern", "trainable_token_indices", "layer_replication", "target_parameters", "use_rslora"]
KEYS += ["loftq_config", "eva_config", "corda_config", "kasa_config", "velora_config", "monteclora_config"]
KEYS += [
    "arrow_config",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "alora_invocation_tokens",
    "lora_bias",
    "unheard_of",
]


def test_any_type_anywhere_leaves_a_result_or_a_message_and_the_backbone(backbone, tmp_path):
    ref = backbone("llama3")
    written(ref, tmp_path / "a")
    file = tmp_path / "a/adapter_config.json"
    plain = json.loads(file.read_text())
    model, _ = load_backbone(ref)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for key in KEYS:
        for value in VALUES:
            file.write_text(json.dumps({**plain, key: value}))
            with contextlib.suppress(UserError):
                detach(attach(ref, tmp_path / "a"))
    after = load_backbone(ref)[0].state_dict()
    assert load_backbone(ref)[0] is model
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_tensors_of_another_kind_than_numbers_are_one_message(backbone, tmp_path):
    ref = backbone("llama3")
    written(ref, tmp_path / "a")
    file = tmp_path / "a" / WEIGHTS
    tensors = load_file(file)
    for kind in (torch.bool, torch.int8, torch.int64):
        save_file({name: weight.to(kind) for name, weight in tensors.items()}, file)
        with contextlib.suppress(UserError):
            detach(attach(ref, tmp_path / "a"))


def test_numbers_beyond_every_number_are_used_nowhere(backbone, tmp_path):
    ref = backbone("llama3")
    written(ref, tmp_path / "a")
    changed(tmp_path / "a", lora_alpha=1e308)
    for use in (check_adapter, attach):
        with refused("/adapter_config.json", "1e+308", "1e+30", "alpha"):
            use(ref, tmp_path / "a")
    changed(tmp_path / "a", lora_alpha=4)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, tmp_path / "a" / WEIGHTS)
    for use in (check_adapter, attach):
        with refused("/adapter_model.safetensors", next(iter(tensors)), "NaN", mend="restore"):
            use(ref, tmp_path / "a")
