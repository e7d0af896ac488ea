"""Somebody's adapter folder: a result or one message whatever it holds, and no code of it runs."""

import contextlib
import dataclasses
import json
import os
import shutil

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from builders.adapter_folders import config_of, write_lora
from builders.refusals import refused
from lingualift.adapters import inspect, open_adapter, targets
from lingualift.errors import UserError
from lingualift.merging import merge

VALUES = [
    None,
    True,
    5,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "((.*)*)*[!?]",
    "\ud800",
    [],
    [5],
    ["x"],
    [[]],
    [None],
    {},
    {"x": "y"},
    {"(": 4},
    {"((.*)*)*[!?]": 4},
    {"x": [1]},
]
LOADING = [
    {"megatron_config": {"a": 1}, "megatron_core": "megatron.payload"},
    {"megatron_config": [1]},
    {"megatron_core": "payload"},
    {"auto_mapping": {"base_model_class": "X", "parent_library": "payload"}},
    {"auto_mapping": {"parent_library": ["payload"]}},
    {"auto_mapping": "payload"},
    {"peft_type": "XLORA", "adapters": {"0": "/elsewhere"}},
    {"peft_type": "SHADOW", "shadow_model": "org/model"},
]


def changed(folder, **more):
    config = {**config_of(folder), **more}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_every_key_of_peft_is_judged():
    for kind in PEFT_TYPE_TO_CONFIG_MAPPING.values():
        names = {field.name for field in dataclasses.fields(kind)}
        if kind.__name__ not in ("XLoraConfig", "ShadowConfig"):  # refused as they are
            assert names <= {*targets.KNOWN, *targets.IGNORED, "rank_pattern"}, kind


@pytest.mark.parametrize("loading", LOADING, ids=lambda loading: next(iter(loading)))
def test_what_loads_code_or_models_is_refused_wherever_it_is_read(tmp_path, loading):
    bad = changed(write_lora(tmp_path / "bad"), **loading)
    others = [(write_lora(tmp_path / str(seed), seed=seed), 1.0) for seed in range(2)]
    acts = (
        lambda: open_adapter(bad),
        lambda: inspect([others[0][0], bad]),
        lambda: merge(method="arithmetic", adapters=[*others, (bad, 1.0)], output=tmp_path / "out"),
    )
    for act in acts:
        with refused("adapter_config.json", "code", "is not run", mend="remove the key"):
            act()
    assert not (tmp_path / "out").exists()


def test_what_peft_writes_by_default_loads_nothing(tmp_path):
    mapping = {"base_model_class": "OptimizedModule", "parent_library": "torch._dynamo.eval_frame"}
    written = {"megatron_config": None, "megatron_core": "megatron.core", "auto_mapping": mapping}
    assert open_adapter(changed(write_lora(tmp_path / "a"), **written)).modules


@pytest.fixture
def answered(tmp_path):
    """Sees that a folder is inspected and merged, or refused in one message, and that nothing is half-written."""
    other = write_lora(tmp_path / "other", seed=5)

    def answer(folder):
        for number, roles in enumerate(((folder, other), (other, folder))):
            with contextlib.suppress(UserError):
                inspect(roles)
            output = tmp_path / f"out{number}"
            with contextlib.suppress(UserError):
                merge(method="arithmetic", space="delta", adapters=[(x, 0.5) for x in roles], output=output)
                assert {"README.md", "provenance.json"} < {file.name for file in output.iterdir()}
            shutil.rmtree(output, ignore_errors=True)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "other"]

    return answer


KEYS = [
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "init_lora_weights",
    "use_rslora",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "auto_mapping",
    "unheard_of",
]


@pytest.mark.parametrize("key", KEYS)
def test_any_type_anywhere_in_a_configuration(tmp_path, answered, key):
    folder = write_lora(tmp_path / "a")
    plain = config_of(folder)
    for value in VALUES:
        (folder / "adapter_config.json").write_text(json.dumps({**plain, key: value}))
        answered(folder)


RECORDED = {
    "weights_sha256": None,
    "config_sha256": None,
    "initialisation": "x",
    "backbone": {"name": "b", "revision": "r", "fingerprint": "f", "formerly": "g"},
    "languages": ["en"],
    "language": "en",
    "labels": ["a"],
    "chat_template": False,
    "method": "m",
    "kind": "k",
    "beside_language": "en",
    "unheard_of": 1,
}


@pytest.mark.parametrize("key", [*RECORDED, *(f"backbone.{key}" for key in RECORDED["backbone"])])
def test_any_type_anywhere_in_a_provenance(tmp_path, answered, key):
    folder = write_lora(tmp_path / "a")
    for value in VALUES:
        outer, _, inner = key.partition(".")
        put = {**RECORDED["backbone"], inner: value} if inner else value
        (folder / "provenance.json").write_text(json.dumps({**RECORDED, outer: put}))
        answered(folder)
    for text in ("5", "[]", '"x"', '{"a":' + "[" * 900 + "]" * 900 + "}", "{", ""):
        (folder / "provenance.json").write_text(text)
        answered(folder)


def test_a_folder_that_cannot_be_read_is_one_message(tmp_path):
    with refused("/xxx", "too long", mend="may read it"):
        open_adapter(tmp_path / ("x" * 300))
    folder = write_lora(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()
    with refused("/a", "adapter_config.json", mend="path"):
        open_adapter(folder)
    if os.geteuid():
        for part in ("adapter_model.safetensors", "."):
            locked = write_lora(tmp_path / f"locked{part}") / part
            locked.chmod(0)
            with refused("/locked", "Permission denied"):
                open_adapter(tmp_path / f"locked{part}")
            locked.chmod(0o700)


def test_a_file_that_changes_is_hashed_anew(tmp_path):
    folder = write_lora(tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    first = open_adapter(folder).weights_sha256
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert open_adapter(folder).weights_sha256 != first
