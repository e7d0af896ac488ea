"""lora_bias: the bias of lora_B is a part of the update, scaling·(B·A·x + b), and is merged as one."""

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.adapter_folders import llama
from builders.refusals import refused
from lingualift.adapters import inspect
from lingualift.merging import merge

SETTINGS = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
ROLES = ("task", "target_reference", "source_reference")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def backbone():
    torch.manual_seed(0)
    return llama().eval()


def adapter(folder, seed, *, biased=True, **more):
    torch.manual_seed(7)  # one draw of lora_A
    wrapped = peft.get_peft_model(backbone(), peft.LoraConfig(**{**SETTINGS, "lora_bias": biased, **more}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight += 0.5 * torch.randn_like(weight)
    wrapped.save_pretrained(folder)
    return folder


def loaded(folder):
    return peft.PeftModel.from_pretrained(backbone(), folder).eval()


def outputs(folder):
    """What every adapted layer adds for fixed inputs: what the adapter is, layer by layer."""
    found = {}
    for name, module in loaded(folder).named_modules():
        if isinstance(module, peft.tuners.lora.Linear):
            torch.manual_seed(3)
            states = torch.randn(5, module.in_features, dtype=torch.float64)
            module.double()
            with torch.no_grad():
                found[name] = module(states) - module.base_layer(states)
    return found


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


def three(tmp_path, **more):
    alphas = (4, 8, 6)
    return [
        adapter(tmp_path / role, seed, lora_alpha=alpha, **more)
        for seed, (role, alpha) in enumerate(zip(ROLES, alphas, strict=True))
    ]


@pytest.mark.parametrize("weight", [0.7, 1.0, 0.0])
@pytest.mark.parametrize("biased", [(True, True, True), (True, False, False), (False, True, False)])
def test_updates_add_up_with_their_biases(tmp_path, weight, biased):
    paths = [
        adapter(tmp_path / role, seed, lora_alpha=alpha, biased=has)
        for seed, (role, alpha, has) in enumerate(zip(ROLES, (4, 8, 6), biased, strict=True))
    ]
    given = dict(zip(ROLES, paths, strict=True))
    merge(method="adamergex", space="delta", weight=weight, **given, output=tmp_path / "out")
    task, target, source = map(outputs, paths)
    close(outputs(tmp_path / "out"), {key: task[key] + weight * (target[key] - source[key]) for key in task})
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["lora_bias"] is (biased[0] or (any(biased) and bool(weight)))


def test_a_module_that_is_left_out_keeps_its_own_bias_or_none(tmp_path):
    paths = [adapter(tmp_path / str(i), i, biased=bool(i)) for i in range(2)]
    given = {"adapters": [(path, 0.5) for path in paths], "modules": "q_proj"}
    merge(method="arithmetic", space="delta", **given, output=tmp_path / "out")
    one, two = map(outputs, paths)
    close(
        outputs(tmp_path / "out"),
        {name: (one[name] + two[name]) / 2 if "q_proj" in name else one[name] for name in one},
    )


def test_a_truncated_update_keeps_its_bias(tmp_path):
    paths = three(tmp_path)
    merge(
        method="adamergex",
        space="delta",
        rank=3,
        **dict(zip(ROLES, paths, strict=True)),
        output=tmp_path / "out",
    )
    expected = torch.zeros(16)
    for path, sign in zip(paths, (1, 1, -1), strict=True):
        module = loaded(path).base_model.model.model.layers[0].self_attn.q_proj
        expected += sign * module.lora_B["default"].bias.detach() * module.scaling["default"]
    module = loaded(tmp_path / "out").base_model.model.model.layers[0].self_attn.q_proj
    assert torch.allclose(module.lora_B["default"].bias * module.scaling["default"], expected, atol=1e-5)


@pytest.mark.parametrize("method", ["arithmetic", "ties", "dare"])
def test_in_factor_space_a_bias_is_a_factor_as_lora_b_is(tmp_path, method):
    paths = three(tmp_path)
    given = {
        "adapters": [(path, 0.4) for path in paths],
        **({} if method == "arithmetic" else {"density": 1.0}),
    }
    merge(method=method, **given, output=tmp_path / "out")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B"
    tensors = [load_file(path / "adapter_model.safetensors") for path in paths]
    folds = [1.0, 2.0, 1.5]  # their scalings by that of the first
    found = load_file(tmp_path / "out/adapter_model.safetensors")
    terms = torch.stack(
        [0.4 * fold * each[f"{name}.bias"] for each, fold in zip(tensors, folds, strict=True)]
    )
    expected = terms.sum(0)
    if method == "ties":
        agrees = terms.sign() == expected.sign()
        expected = (terms * agrees).sum(0) / agrees.sum(0)
    assert torch.allclose(found[f"{name}.bias"], expected, atol=1e-6)


def test_biases_that_peft_would_not_read_or_hold_are_refused(tmp_path):
    paths = three(tmp_path)
    roles = dict(zip(ROLES, paths, strict=True))
    with refused("/task", "lora_bias", "servers", mend='export="peft"'):
        merge(method="adamergex", space="delta", export="serving", **roles, output=tmp_path / "out")
    file = paths[1] / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: x for name, x in whole.items() if not name.endswith("bias")}, file)
    with refused("/target_reference", "lacks", "lora_B.bias'", "lora_bias: True", mend="restore"):
        merge(method="adamergex", space="delta", **roles, output=tmp_path / "out")
    save_file(whole, file)
    config = json.loads((paths[1] / "adapter_config.json").read_text())
    (paths[1] / "adapter_config.json").write_text(json.dumps({**config, "lora_bias": False}))
    with refused("/target_reference", "has a tensor", "lora_B.bias'", "lora_bias: False", mend="restore"):
        merge(method="adamergex", space="delta", **roles, output=tmp_path / "out")
    embedded = adapter(
        tmp_path / "embedded", 4, biased=False, target_modules=["q_proj", "down_proj", "embed_tokens"]
    )
    with refused("/embedded", "lora_bias", "embeddings lack", mend="'model.embed_tokens'"):
        merge(
            method="arithmetic",
            space="delta",
            adapters=[(embedded, 1.0), (paths[0], 0.5)],
            output=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()
    assert not inspect(paths[1]).mergeable
