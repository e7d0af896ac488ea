"""Adapters as other tools write them: brought back to peft's own names, or refused by name."""

import copy
import json
import os
import warnings

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file

from builders.adapter_folders import PREFIX
from builders.refusals import refused
from lingualift.adapters import inspect, open_adapter
from lingualift.adapters.layout import PLAIN, Layout, layout_of
from lingualift.adapters.structure import Targets
from lingualift.merging import merge

WEIGHTS = "adapter_model.safetensors"
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def model_of(kind=transformers.LlamaForCausalLM, config=transformers.LlamaConfig, **more):
    torch.manual_seed(0)
    small = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return kind(
        config(
            **small,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            initializer_range=0.2,
            **more,
        )
    ).eval()


def trained(wrapped, seed):
    """A model whose adapter acts, as if trained."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name or "ia3" in name:
                weight += 0.3 * torch.randn_like(weight)
    return wrapped


def written(folder, tensors, config):
    folder.mkdir()
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, folder / WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def adapter(folder, seed=1, model=None, **more):
    wrapped = trained(peft.get_peft_model(model or model_of(), peft.LoraConfig(**{**LORA, **more})), seed)
    wrapped.save_pretrained(folder)
    return wrapped


def logits(folder, model=None):
    """What plain peft makes of a folder."""
    wrapped = peft.PeftModel.from_pretrained(model or model_of(), folder).eval()
    with torch.no_grad():
        return wrapped(input_ids=torch.arange(2, 38).reshape(2, -1)).logits


def assert_merges_alike(*folders):
    """See that plain peft makes one thing of the merges of two adapters."""
    found = []
    for folder in folders:
        output = folder.with_name(f"of-{folder.name}")
        merge(method="arithmetic", space="delta", adapters=[(folder, 0.5)], output=output)
        found.append(logits(output))
    assert torch.equal(*found)


def compiled(folder):
    """Adapters put on a model that torch.compile wraps."""
    wrapped = trained(peft.get_peft_model(torch.compile(model_of()), peft.LoraConfig(**LORA)), 1)
    wrapped.save_pretrained(folder)


def compiled_after(folder):
    """The state of a whole peft model that torch.compile wraps."""
    adapter(folder)
    wrapped = torch.compile(peft.PeftModel.from_pretrained(model_of(), folder))
    state = {name: value for name, value in wrapped.state_dict().items() if "lora_" in name}
    save_file(state, folder / WEIGHTS)


def compiled_blocks(folder):
    """Adapters in blocks that are compiled each by itself, as compile_repeated_blocks does."""
    model = model_of()
    for index, block in enumerate(model.model.layers):
        model.model.layers[index] = torch.compile(block)
    trained(peft.get_peft_model(model, peft.LoraConfig(**LORA)), 1).save_pretrained(folder)


def parallel(folder):
    """The state of a model that DistributedDataParallel wraps."""
    adapter(folder)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    try:
        loaded = peft.PeftModel.from_pretrained(model_of(), folder, is_trainable=True)
        state = torch.nn.parallel.DistributedDataParallel(loaded).state_dict()
    finally:
        torch.distributed.destroy_process_group()
    save_file({name: value for name, value in state.items() if "lora_" in name}, folder / WEIGHTS)


def recomputed(folder):
    """Adapters in blocks that recompute their activations, as FSDP's and axolotl's trainers wrap them."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    adapter(folder)
    model = peft.PeftModel.from_pretrained(model_of(), folder)
    layers = model.base_model.model.model.layers
    for index, block in enumerate(layers):
        layers[index] = checkpoint_wrapper(block)
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    state = dict(model.named_parameters())
    save_file({name.replace(".default", ""): state[name].data for name in names}, folder / WEIGHTS)


def injected(folder):
    """Adapters that inject_adapter_in_model put in, without a peft model around them."""
    config = peft.LoraConfig(**LORA)
    model = trained(peft.inject_adapter_in_model(config, model_of()), 1)
    written(
        folder, peft.get_peft_model_state_dict(model), json.loads(json.dumps(config.to_dict(), default=list))
    )


def own_state(folder):
    """The adapter's part of a model's own state, with the adapter's name in it."""
    wrapped = adapter(folder)
    state = {name: value.clone() for name, value in wrapped.state_dict().items() if "lora_" in name}
    assert any(".lora_A.default.weight" in name for name in state)
    save_file(state, folder / WEIGHTS)


def sharded(folder):
    """FSDP's names, by hand: it takes no processor in one process."""
    adapter(folder)
    tensors = load_file(folder / WEIGHTS)
    inner = ".layers.0._fsdp_wrapped_module."
    save_file({name.replace(".layers.0.", inner): x for name, x in tensors.items()}, folder / WEIGHTS)


LAYOUTS = {
    "torch.compile": (compiled, compiled_after, compiled_blocks),
    "DDP": (parallel,),
    "activation checkpointing": (recomputed,),
    "inject_adapter_in_model": (injected,),
    "own state": (own_state,),
    "FSDP": (sharded,),
}


@pytest.mark.parametrize(
    ("name", "make"), [(name, make) for name, makes in LAYOUTS.items() for make in makes]
)
def test_what_other_tools_write_merges_as_what_peft_writes(tmp_path, name, make):
    adapter(tmp_path / "plain")
    make(tmp_path / "theirs")
    adapter(tmp_path / "other", seed=2)
    found = inspect(tmp_path / "theirs")
    assert found.mergeable
    assert any(name in note for note in found.adapters[0].layout)
    for number, first in enumerate(("plain", "theirs")):
        report = merge(
            method="arithmetic",
            space="delta",
            adapters=[(tmp_path / first, 0.7), (tmp_path / "other", 0.4)],
            output=tmp_path / f"out{number}",
        )
    assert any(name in note for note in report.notes)
    provenance = json.loads((tmp_path / "out1/provenance.json").read_text())
    assert provenance["inputs"][0]["layout"]
    assert load_file(tmp_path / "out1" / WEIGHTS).keys() == load_file(tmp_path / "out0" / WEIGHTS).keys()
    theirs, plain = logits(tmp_path / "out1"), logits(tmp_path / "out0")
    assert torch.equal(theirs, plain)
    with torch.no_grad():
        bare = model_of()(input_ids=torch.arange(2, 38).reshape(2, -1)).logits
    assert (theirs - bare).abs().max() > 0.1, "peft passes over the result"


@pytest.mark.parametrize(
    ("change", "where", "name", "why"),
    [
        (lambda name: name.replace(".layers.0.", ".layers.0._wrapped."), "one", ".0._wrapped.", "a wrapper"),
        (
            lambda name: name.replace(PREFIX, PREFIX * 2),
            "one",
            f"'{PREFIX}{PREFIX}model.layers.0.",
            "one already",
        ),
        (
            lambda name: name.replace(".lora_", ".base_layer.lora_"),
            "one",
            ".q_proj.base_layer.",
            "another adapter",
        ),
        (
            lambda name: name.removeprefix(PREFIX) if "layers.0" in name else name,
            "one",
            "'model.layers.0.",
            "mixes",
        ),
        (
            lambda name: name.replace("q_proj", "k_proj"),
            "one",
            "layers.0.self_attn.k_proj'",
            "its configuration",
        ),
        (
            lambda name: name.replace(".layers.", ".blocks.0."),
            "other",
            "blocks.0.0.self_attn.q_proj",
            "no module",
        ),
    ],
)
def test_what_peft_would_pass_over_is_refused_by_name(tmp_path, change, where, name, why):
    adapter(tmp_path / "one")
    tensors = {change(name): x for name, x in load_file(tmp_path / "one" / WEIGHTS).items()}
    save_file(tensors, tmp_path / "one" / WEIGHTS)
    adapter(tmp_path / "other", seed=2)
    with refused(f"/{where}", name, why):
        merge(
            method="arithmetic",
            space="delta",
            adapters=[(tmp_path / "one", 0.5), (tmp_path / "other", 0.5)],
            output=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


OWN = ("layers", "0", "q_proj", "model", "x_y")
PARTS = (
    *(*OWN, "module", "base_model", "base_layer", "_orig_mod", "_own", "modules_to_save", "original_module"),
    *("lora_A", "lora_embedding_A", "ia3_l", "trainable_tokens_delta", "default", "weight", "bias"),
)


@given(st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5), min_size=1, max_size=2))
@settings(max_examples=2000, deadline=None, derandomize=True)
def test_names_that_count_as_peft_s_own_are_those_that_nothing_is_brought_back_in(tmp_path_factory, inner):
    names = list(dict.fromkeys(f"{PREFIX}{'.'.join(parts)}.lora_A.weight" for parts in inner))
    if all(map(PLAIN.fullmatch, names)):
        assert layout_of(names, {}, tmp_path_factory.getbasetemp()) == Layout({name: name for name in names})
    if all(set(parts) <= set(OWN) for parts in inner):
        assert all(map(PLAIN.fullmatch, names))


def test_a_tensor_is_never_taken_for_two(tmp_path):
    adapter(tmp_path / "one")
    tensors = load_file(tmp_path / "one" / WEIGHTS)
    twice = {name.replace(PREFIX, f"{PREFIX}_orig_mod."): x + 1 for name, x in tensors.items()}
    save_file({**tensors, **twice}, tmp_path / "one" / WEIGHTS)
    with refused("/one", "_orig_mod", "one adapter in a file"):
        open_adapter(tmp_path / "one")


def test_a_configuration_that_names_wrappers_is_peft_s_too(tmp_path):
    adapter(
        tmp_path / "plain",
        target_modules=r".*\.layers\.\d\.self_attn\.q_proj",
        rank_pattern={"layers.1.self_attn.q_proj": 3},
    )
    tensors = load_file(tmp_path / "plain" / WEIGHTS)
    config = json.loads((tmp_path / "plain/adapter_config.json").read_text())
    config["target_modules"] = r".*_orig_mod\.model\.layers\.\d\.self_attn\.q_proj"
    config["rank_pattern"] = {"_orig_mod.model.layers.1.self_attn.q_proj": 3}
    theirs = {name.replace(PREFIX, f"{PREFIX}_orig_mod."): x for name, x in tensors.items()}
    written(tmp_path / "theirs", theirs, config)
    assert_merges_alike(tmp_path / "plain", tmp_path / "theirs")


def vision(folder, seed, former):
    """Gemma 3 with images; `former`: as transformers 4.50 named it."""
    model = vision_model()
    adapter(
        folder,
        seed,
        model,
        target_modules=r".*language_model.*\.(q_proj|v_proj)",
        rank_pattern={"layers.1.self_attn.q_proj": 3},
    )
    if former:
        tensors = load_file(folder / WEIGHTS)
        old, new = f"{PREFIX}model.language_model.", f"{PREFIX}language_model.model."
        save_file({name.replace(old, new): x for name, x in tensors.items()}, folder / WEIGHTS)


def vision_model():
    torch.manual_seed(0)
    text = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "sliding_window": 8}
    look = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={**look, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        boi_token_index=36,
        eoi_token_index=37,
        image_token_index=38,
    )
    return transformers.Gemma3ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("former", [(True, False, False), (False, True, True), (True, True, True)])
def test_two_layouts_of_one_model_are_merged_by_the_first_one_s(tmp_path, former):
    roles = ("task", "target_reference", "source_reference")
    for seed, (role, old) in enumerate(zip(roles, former, strict=True)):
        vision(tmp_path / f"new-{role}", seed, former=False)
        vision(tmp_path / f"any-{role}", seed, former=old)
    for kind in ("new", "any"):
        given = {role: tmp_path / f"{kind}-{role}" for role in roles}
        report = merge(method="adamergex", space="delta", **given, output=tmp_path / kind)
    assert ("names of another layout" in " ".join(report.notes)) == (len(set(former)) > 1)
    assert torch.equal(logits(tmp_path / "any", vision_model()), logits(tmp_path / "new", vision_model()))
    names = load_file(tmp_path / "any" / WEIGHTS)
    assert all(("language_model.model." in name) == former[0] for name in names)


NAMES = st.sampled_from(["q_proj", "self_attn", "layers", "1", "model.layers.1.mlp.up", "experts.3.w1"])
PARTS = st.sampled_from(
    ["model", "layers", "0", "1", "3", "mlp", "experts", "q_proj", "self_attn", "w1", "up"]
)


@settings(max_examples=500, deadline=None)
@given(
    module=st.lists(PARTS, min_size=1).map(".".join),
    targets=st.lists(NAMES, max_size=3) | st.sampled_from([r".*\.q_proj", r"model\..*", "up"]),
    excluded=st.none() | st.lists(NAMES, max_size=2) | st.sampled_from([r".*\.0\..*"]),
    saved=st.none() | st.lists(NAMES, max_size=1),
    layers=st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2),
    lists=st.sampled_from([None, "layers", "experts", "", ["layers"], ["experts", "layers"], []]),
)
def test_what_a_configuration_reaches_is_what_peft_reaches(module, targets, excluded, saved, layers, lists):
    bounded = not isinstance(targets, str)
    config = {
        "target_modules": targets,
        "exclude_modules": excluded,
        "modules_to_save": saved,
        "layers_to_transform": layers if bounded else None,
        "layers_pattern": lists if bounded and layers is not None else None,
    }
    theirs = copy.copy(peft.LoraConfig(target_modules=["x"]))
    for key, value in config.items():
        setattr(theirs, key, value)
    assert Targets(config, "").reaches(module) == bool(check_target_module_exists(theirs, module))


def grown(folder, vocabulary, seed=1):
    """What peft 0.21 saves by default where the vocabulary has grown: saved modules twice, and what they were."""
    base = folder.parent / "base"
    if not base.exists():
        model_of().save_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(vocabulary)
    torch.manual_seed(seed)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"]))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight += 0.3 * torch.randn_like(weight)
    wrapped.save_pretrained(folder)
    return wrapped


def test_saved_modules_that_stand_there_twice_are_read_once(tmp_path):
    wrapped = grown(tmp_path / "grown", 44)
    names = load_file(tmp_path / "grown" / WEIGHTS)
    assert any(name.endswith("lm_head.modules_to_save.weight") for name in names), (
        "peft writes them once by now"
    )
    other = grown(tmp_path / "other", 44, seed=2)
    merge(
        method="arithmetic",
        space="delta",
        adapters=[(tmp_path / "grown", 1.0), (tmp_path / "other", 0.0)],
        output=tmp_path / "out",
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(44)
    model.load_state_dict(other.get_base_model().state_dict(), strict=False)
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    assert not any("original_module" in name or "modules_to_save" in name for name in tensors)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    ids = torch.arange(2, 42).reshape(2, -1)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, wrapped.eval()(input_ids=ids).logits)


def test_a_tensor_and_its_copy_must_agree(tmp_path):
    grown(tmp_path / "grown", 44)
    grown(tmp_path / "other", 44, seed=2)
    file = tmp_path / "grown" / WEIGHTS
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("lm_head.modules_to_save.weight"))
    save_file({**tensors, name: tensors[name] + 1}, file)
    adapters = [(tmp_path / "grown", 0.5), (tmp_path / "other", 0.5)]
    with refused("grown/adapter_model.safetensors", "lm_head.modules_to_save.weight' differs"):
        merge(method="arithmetic", space="delta", adapters=adapters, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def unsloth(folder):
    """As unsloth writes it, by hand: a pattern for modules, keys of its own, a 4-bit copy as the backbone."""
    adapter(folder)
    file = folder / "adapter_config.json"
    pattern = (
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.self_attn\.(?:(?:q_proj|v_proj)))"
    )
    mapping = {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
    }
    more = {"target_modules": pattern, "auto_mapping": {**mapping, "unsloth_fixed": True}}
    more |= {"base_model_name_or_path": "unsloth/llama-bnb-4bit", "unsloth_version": "2026.1"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))


def test_an_adapter_as_unsloth_writes_it_is_merged(tmp_path):
    adapter(tmp_path / "plain")
    unsloth(tmp_path / "theirs")
    assert_merges_alike(tmp_path / "plain", tmp_path / "theirs")


def test_tensors_that_deepspeed_did_not_gather_are_refused(tmp_path):
    adapter(tmp_path / "one")
    tensors = {name: torch.empty(0) for name in load_file(tmp_path / "one" / WEIGHTS)}
    save_file(tensors, tmp_path / "one" / WEIGHTS)
    found = inspect(tmp_path / "one")
    assert not found.mergeable
    assert "have shapes (0,)" in found.obstacles[0].reason


def mixtral():
    return model_of(transformers.MixtralForCausalLM, transformers.MixtralConfig, num_local_experts=2)


def of_experts(folder, seed):
    """LoRA on each expert, as peft wrote it with transformers 4."""
    torch.manual_seed(seed)
    sizes = {"w1": (24, 16), "w3": (24, 16), "w2": (16, 24)}
    tensors = {}
    for layer in range(2):
        for expert in range(2):
            for end, (outputs, inputs) in sizes.items():
                name = f"{PREFIX}model.layers.{layer}.block_sparse_moe.experts.{expert}.{end}"
                tensors[f"{name}.lora_A.weight"] = torch.randn(2, inputs)
                tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, 2)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": list(sizes),
        "task_type": "CAUSAL_LM",
    }
    written(folder, tensors, config)
    return tensors


def test_experts_that_transformers_has_in_one_tensor_by_now_are_merged(tmp_path):
    adapters = [of_experts(tmp_path / str(seed), seed) for seed in (1, 2)]
    weights = (0.1, 0.07)
    given = [(tmp_path / str(seed), weight) for seed, weight in zip((1, 2), weights, strict=True)]
    report = merge(method="arithmetic", space="delta", adapters=given, output=tmp_path / "out")
    assert "single experts" in " ".join(report.notes)
    by_hand = mixtral()
    with torch.no_grad():
        for index, layer in enumerate(by_hand.model.layers):
            for expert in range(2):
                name = f"{PREFIX}model.layers.{index}.block_sparse_moe.experts.{expert}"
                first, second, third = (
                    sum(
                        weight
                        * 2
                        * tensors[f"{name}.{end}.lora_B.weight"]
                        @ tensors[f"{name}.{end}.lora_A.weight"]
                        for weight, tensors in zip(weights, adapters, strict=True)
                    )
                    for end in ("w1", "w2", "w3")
                )
                layer.mlp.experts.gate_up_proj[expert] += torch.cat([first, third])
                layer.mlp.experts.down_proj[expert] += second
        expected = by_hand(input_ids=torch.arange(2, 38).reshape(2, -1)).logits
    assert torch.allclose(logits(tmp_path / "out", mixtral()), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("rename", "config", "match"),
    [
        (
            lambda name: name.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b"),
            {},
            "lora_a",
        ),
        (lambda name: name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"), {}, "lora_down"),
        (lambda name: name.removesuffix(".weight"), {}, "lora_A"),
        (lambda name: name, {"peft_type": None}, "has no peft_type"),
    ],
    ids=["MLX", "kohya", "loralib", "no configuration of peft's"],
)
def test_other_formats_are_refused_by_name(tmp_path, rename, config, match):
    adapter(tmp_path / "one")
    tensors = {rename(name): x for name, x in load_file(tmp_path / "one" / WEIGHTS).items()}
    written(
        tmp_path / "theirs",
        tensors,
        {**json.loads((tmp_path / "one/adapter_config.json").read_text()), **config},
    )
    found = inspect(tmp_path / "theirs")
    assert not found.mergeable
    assert match in found.obstacles[0].reason


def held(folder):
    """The state of a module that holds a peft model, as Lightning's and distillation's do."""
    wrapped = adapter(folder)
    holder = torch.nn.Module()
    holder.student = wrapped
    save_file(
        {name: x.clone() for name, x in holder.state_dict().items() if "lora_" in name}, folder / WEIGHTS
    )


def test_a_model_within_another_is_brought_back(tmp_path):
    adapter(tmp_path / "plain")
    held(tmp_path / "theirs")
    assert "in another (student)" in inspect(tmp_path / "theirs").adapters[0].layout[0]
    assert_merges_alike(tmp_path / "plain", tmp_path / "theirs")


def test_the_own_state_of_an_adapter_of_another_name_is_brought_back_with_its_saved_modules(tmp_path):
    config = peft.LoraConfig(**LORA, modules_to_save=["lm_head"])
    wrapped = trained(peft.get_peft_model(model_of(), config, adapter_name="sw"), 1)
    wrapped.save_pretrained(tmp_path, selected_adapters=["sw"])
    state = {
        name: x.clone() for name, x in wrapped.state_dict().items() if "lora_" in name or "modules_to" in name
    }
    written(tmp_path / "theirs", state, json.loads((tmp_path / "sw/adapter_config.json").read_text()))
    assert_merges_alike(tmp_path / "sw", tmp_path / "theirs")


def test_what_peft_writes_for_biases_of_a_saved_head_is_read(tmp_path):
    """peft 0.21 writes the head's biases under three names."""
    config = transformers.XLMRobertaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=3,
        max_position_embeddings=40,
        pad_token_id=0,
    )

    def model():
        torch.manual_seed(0)
        return transformers.XLMRobertaForSequenceClassification(config).eval()

    made = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", bias="all")
    wrapped = peft.get_peft_model(model(), made)
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight += 0.1
    wrapped.save_pretrained(tmp_path / "one")
    assert any(".modules_to_save." in name for name in load_file(tmp_path / "one" / WEIGHTS))
    merge(method="arithmetic", space="delta", adapters=[(tmp_path / "one", 0.5)], output=tmp_path / "out")
    assert not any(".modules_to_save." in name for name in load_file(tmp_path / "out" / WEIGHTS))
    loaded = peft.PeftModel.from_pretrained(model(), tmp_path / "out")
    ours, theirs = dict(loaded.named_parameters()), dict(wrapped.named_parameters())
    for name, weight in theirs.items():
        expected = 0.5 if "lora_B" in name else 1.0
        if "lora_" not in name:
            assert torch.equal(ours[name], weight), (name, expected)


def test_adapters_of_several_bare_parameters_are_peft_s_own(tmp_path):
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    wrapped = peft.get_peft_model(mixtral(), peft.LoraConfig(r=2, target_modules=[], target_parameters=names))
    wrapped.save_pretrained(tmp_path / "one")
    found = inspect(tmp_path / "one")
    assert "target_parameters is set" in found.obstacles[0].reason


def test_a_bias_of_lora_b_is_renamed_with_its_module(tmp_path):
    for seed, name in enumerate(("one", "two")):
        adapter(
            tmp_path / name,
            seed,
            vision_model(),
            target_modules=r".*language_model.*\.q_proj",
            lora_bias=True,
        )
    tensors = load_file(tmp_path / "two" / WEIGHTS)
    old, new = f"{PREFIX}model.language_model.", f"{PREFIX}_orig_mod.language_model.model."
    written(
        tmp_path / "theirs",
        {name.replace(old, new): x for name, x in tensors.items()},
        json.loads((tmp_path / "two/adapter_config.json").read_text()),
    )
    for second in ("two", "theirs"):
        given = [(tmp_path / "one", 0.5), (tmp_path / second, 0.5)]
        merge(method="arithmetic", space="delta", adapters=given, output=tmp_path / f"of-{second}")
    ours, theirs = (load_file(tmp_path / f"of-{name}" / WEIGHTS) for name in ("two", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
