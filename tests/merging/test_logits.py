"""Merged adapters in real model classes with random weights: the logits that the formula gives."""

import copy
import warnings

import pytest
import torch

from builders.adapter_folders import PREFIX, SMALL, config_of, distance, llama, numbers, scaling_of, updates
from lingualift.adapters import open_adapter
from lingualift.merging import merge


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(**SMALL, num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=0)
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config)


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    )


def xlmr():
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    return XLMRobertaForSequenceClassification(
        XLMRobertaConfig(
            **SMALL, num_attention_heads=2, num_labels=3, max_position_embeddings=40, pad_token_id=0
        )
    )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config)


CLASSES = {
    "llama": (llama, ["q_proj", "v_proj", "down_proj"], "CAUSAL_LM"),
    "gemma2": (gemma2, ["q_proj", "o_proj", "gate_proj"], "CAUSAL_LM"),
    "t5": (t5, ["q", "v", "wo"], "SEQ_2_SEQ_LM"),
    "xlmr": (xlmr, ["query", "value"], "SEQ_CLS"),
    "gpt2": (gpt2, ["c_attn", "c_proj"], "CAUSAL_LM"),
}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def backbone(name):
    torch.manual_seed(0)
    return CLASSES[name][0]().eval()


def train(name, path, seed, make_config):
    """An adapter as peft saves it, its parameters drawn at random."""
    from peft import get_peft_model

    model = get_peft_model(backbone(name), make_config())
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                start = 1.0 if "ia3_l" in key else 0.0
                parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=random))
    model.save_pretrained(path)
    return path


def logits(name, model):
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    more = {"decoder_input_ids": ids[:, :3]} if name == "t5" else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits.double()


def loaded(name, path):
    from peft import PeftModel

    return logits(name, PeftModel.from_pretrained(backbone(name), path).eval())


def with_weights(name, changed, whole):
    """Logits of the plain backbone whose weights were changed by the formula, saved modules put in place."""
    model = copy.deepcopy(backbone(name))
    with torch.no_grad():
        for module, update in changed.items():
            layer, update = model.get_submodule(module), torch.from_numpy(update).float()
            layer.weight += update.T if type(layer).__name__ == "Conv1D" else update
        for key, value in whole.items():
            model.get_parameter(key.removeprefix(PREFIX)).copy_(torch.from_numpy(value))
    return logits(name, model)


def lora_cases():
    """Every class in every space; rsLoRA on two; no serving of a saved head, which test_refusals refuses."""
    for name in CLASSES:
        for space in ("factors", "delta", "core", "delta cut", "serving"):
            if (name, space) != ("xlmr", "serving"):
                yield name, space, False
        if name in ("llama", "t5"):
            yield name, "factors", True
            yield name, "delta", True
            yield name, "serving", True


@pytest.mark.parametrize(("name", "space", "stabilised"), list(lora_cases()))
def test_lora(tmp_path, name, space, stabilised):
    from peft import LoraConfig

    _, targets, task_type = CLASSES[name]

    def config(end=targets[0]):
        return LoraConfig(
            task_type=task_type,
            r=4,
            lora_alpha=6,
            target_modules=targets,
            use_rslora=stabilised,
            alpha_pattern={end: 5},
            fan_in_fan_out=name == "gpt2",
        )

    paths = [train(name, tmp_path / f"in{seed}", seed, config) for seed in range(3)]
    options = {
        "factors": {"space": "factors"},
        "delta": {"space": "delta"},
        "core": {"space": "core"},
        "delta cut": {"space": "delta", "rank": 8},
        "serving": {"space": "delta", "export": "serving", "rank": 16},
    }[space]
    task, target, source = paths
    report = merge(
        method="adamergex",
        task=task,
        target_reference=target,
        source_reference=source,
        weight=0.7,
        output=tmp_path / "out",
        **options,
    )
    whole = {key: value for key, value in numbers(task).items() if "lora_" not in key}
    expected = expected_updates(paths, space, updates(report.output))
    found = loaded(name, report.output)
    assert distance(found.numpy(), with_weights(name, expected, whole).numpy()) < 1e-5
    assert distance(found.numpy(), loaded(name, task).numpy()) > 1e-3, "the merge matters"


def expected_updates(paths, space, cut):
    if space == "delta cut":
        return cut
    if space == "factors":
        inputs, config = [numbers(path) for path in paths], config_of(paths[0])

        def mixed(key):
            return inputs[0][key] + 0.7 * (inputs[1][key] - inputs[2][key])

        modules = [key.removesuffix(".lora_A.weight") for key in inputs[0] if key.endswith(".lora_A.weight")]
        return {
            module.removeprefix(PREFIX): scaling_of(config, module.removeprefix(PREFIX))
            * mixed(f"{module}.lora_B.weight")
            @ mixed(f"{module}.lora_A.weight")
            for module in modules
        }
    task, target, source = map(updates, paths)
    return {module: task[module] + 0.7 * (target[module] - source[module]) for module in task}


@pytest.mark.parametrize(("name", "targets", "forward"), [("llama", ["k_proj", "down_proj"], ["down_proj"])])
def test_vectors(tmp_path, name, targets, forward):
    from peft import IA3Config

    def config():
        return IA3Config(task_type=CLASSES[name][2], target_modules=targets, feedforward_modules=forward)

    paths = [train(name, tmp_path / f"in{seed}", seed, config) for seed in range(3)]
    task, target, source = paths
    roles = {"task": task, "target_reference": target, "source_reference": source}
    out = merge(method="adamergex", **roles, weight=0.7, output=tmp_path / "out").output
    one, two, three = map(numbers, paths)
    model = backbone(name)
    with torch.no_grad():
        for key, value in one.items():
            scale = value * (0.7 * (two[key] / three[key] - 1) + 1)
            weight = model.get_submodule(key.removeprefix(PREFIX).removesuffix(".ia3_l")).weight
            weight *= torch.from_numpy(scale).float()
    assert distance(loaded(name, out).numpy(), logits(name, model).numpy()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_prefix_loads_and_acts(tmp_path, name):
    from peft import PrefixTuningConfig

    def config():
        return PrefixTuningConfig(task_type=CLASSES[name][2], num_virtual_tokens=3)

    paths = [train(name, tmp_path / f"in{seed}", seed, config) for seed in range(3)]
    task, target, source = paths
    roles = {"task": task, "target_reference": target, "source_reference": source}
    out = merge(method="adamergex", **roles, weight=0.7, output=tmp_path / "out").output
    assert distance(loaded(name, out).numpy(), loaded(name, task).numpy()) > 1e-4
    same = merge(method="adamergex", **roles, weight=0, output=tmp_path / "same").output
    assert torch.equal(loaded(name, same), loaded(name, task))


def test_modules_that_only_some_adapters_have(tmp_path):
    """The result names its modules and ranks one by one, so that plain peft finds them all."""
    from peft import LoraConfig

    targets = (["q_proj", "v_proj"], ["q_proj", "down_proj"], ["q_proj", "down_proj"])
    paths = []
    for seed, (names, rank) in enumerate(zip(targets, (4, 2, 3), strict=True)):

        def config(names=names, rank=rank):
            return LoraConfig(
                task_type="CAUSAL_LM", r=rank, lora_alpha=6, target_modules=names, layers_to_transform=None
            )

        paths.append(train("llama", tmp_path / f"in{seed}", seed, config))
    task, target, source = paths
    roles = {"task": task, "target_reference": target, "source_reference": source}
    report = merge(method="adamergex", **roles, weight=0.7, space="delta", output=tmp_path / "out")
    one, two, three = map(updates, paths)
    expected = {
        name: one.get(name, 0) + 0.7 * (two.get(name, 0) - three.get(name, 0)) for name in {*one, *two}
    }
    assert (
        distance(loaded("llama", report.output).numpy(), with_weights("llama", expected, {}).numpy()) < 1e-5
    )
    assert {name.rpartition(".")[2] for name in report.kept} == {"v_proj"}
    assert {module.rank for module in open_adapter(report.output).modules.values()} == {9, 5, 4}
