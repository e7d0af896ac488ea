"""Adapter folders and oracles for the tests; written with torch, safetensors and peft, not with the code under test."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
PREFIX = "base_model.model."
SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


def write_folder(path: Path, tensors, config, provenance=None) -> Path:
    path.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path / "adapter_model.safetensors"
    )
    (path / "adapter_config.json").write_text(json.dumps(config))
    if provenance is not None:
        (path / "provenance.json").write_text(json.dumps(provenance))
    return path


def lora_tensors(modules, seed, dtype=torch.float32, embedding=()):
    """modules: {name: (out, in, rank)}. The random factor shares a draw over seeds, as one experiment's adapters do."""
    tensors = {}
    for number, (name, (outputs, inputs, rank)) in enumerate(modules.items()):
        start = torch.Generator().manual_seed(1000 + number)
        own = torch.Generator().manual_seed(7919 * (seed + 1) + number)

        def drawn(shape, start=start, own=own):
            return torch.randn(shape, generator=start) + 0.2 * torch.randn(shape, generator=own)

        if name in embedding:
            tensors[f"{PREFIX}{name}.lora_embedding_A"] = torch.randn((rank, inputs), generator=own).to(dtype)
            tensors[f"{PREFIX}{name}.lora_embedding_B"] = drawn((outputs, rank)).to(dtype)
        else:
            tensors[f"{PREFIX}{name}.lora_A.weight"] = drawn((rank, inputs)).to(dtype)
            tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn((outputs, rank), generator=own).to(dtype)
    return tensors


def lora_config(modules, r, alpha, **more):
    ends = sorted({name.rpartition(".")[2] for name in modules})
    return {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "target_modules": ends,
        "base_model_name_or_path": "tiny",
        "init_lora_weights": True,
        **more,
    }


def write_lora(
    path, modules=None, *, seed=0, r=4, alpha=8, dtype=torch.float32, embedding=(), provenance=None, **more
):
    """A LoRA folder; modules maps name to (out, in) at rank r, or to (out, in, rank) with a rank pattern."""
    modules = modules or {"layers.0.q_proj": (6, 5), "layers.0.v_proj": (3, 5)}
    sized = {name: (*shape, r) if len(shape) == 2 else shape for name, shape in modules.items()}
    odd = {name: shape[2] for name, shape in sized.items() if shape[2] != r}
    if odd:
        more = {"rank_pattern": odd, **more}
    config = lora_config(modules, r, alpha, **more)
    return write_folder(path, lora_tensors(sized, seed, dtype, embedding), config, provenance)


def numbers(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder in float64."""
    return {
        name: tensor.double().numpy()
        for name, tensor in load_file(path / "adapter_model.safetensors").items()
    }


def raw(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "adapter_model.safetensors")


def config_of(path: Path):
    return json.loads((path / "adapter_config.json").read_text())


def scaling_of(config, module: str) -> float:
    """alpha / r or alpha / √r with patterns looked up by peft's own function."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = ranks.get(get_pattern_key(ranks.keys(), module), config["r"])
    alpha = alphas.get(get_pattern_key(alphas.keys(), module), config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def updates(path: Path) -> dict[str, np.ndarray]:
    """ΔW = scaling·B·A by module, in float64."""
    tensors, config, found = numbers(path), config_of(path), {}
    for name in tensors:
        for down, up in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
            if name.endswith(down):
                module = name.removesuffix(down)
                short = module.removeprefix(PREFIX)
                found[short] = scaling_of(config, short) * tensors[module + up] @ tensors[name]
    return found


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative Frobenius distance."""
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))


def write_bottleneck(path, seed=0, dtype=torch.float32, blocks=2, size=3, width=6):
    """A Pfeiffer bottleneck on each block of a small Llama."""
    torch.manual_seed(seed)
    shapes = {
        "down.weight": (size, width),
        "down.bias": (size,),
        "up.weight": (width, size),
        "up.bias": (width,),
    }
    modules = [f"model.layers.{block}.mlp.down_proj" for block in range(blocks)]
    tensors = {
        f"{PREFIX}{module}.bottleneck_{part}": torch.randn(shape).to(dtype)
        for module in modules
        for part, shape in shapes.items()
    }
    config = {
        "peft_type": "BOTTLENECK",
        "placement": "pfeiffer",
        "size": size,
        "activation": "relu",
        "scaling": 1.0,
    }
    return write_folder(path, tensors, {**config, "target_modules": modules})


def three(root, write, **more):
    """Folders of three adapters that differ in their seed."""
    return [write(root / f"in{seed}", seed=seed, **more) for seed in range(3)]


def run(paths, output, **options):
    """The folder of an AdaMergeX merge of task, target and source."""
    from lingualift.merging import merge

    task, target, source = paths
    return merge(
        method="adamergex",
        task=task,
        target_reference=target,
        source_reference=source,
        output=output,
        **options,
    ).output


def same(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in expected.items())


def write_vectors(path, seed, dtype=torch.float32, **more):
    random = torch.Generator().manual_seed(seed)
    tensors = {
        f"{PREFIX}layers.0.k_proj.ia3_l": 1 + 0.3 * torch.randn((8, 1), generator=random),
        f"{PREFIX}layers.0.down_proj.ia3_l": 1 + 0.3 * torch.randn((1, 24), generator=random),
    }
    config = {
        "peft_type": "IA3",
        "target_modules": ["k_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    }
    return write_folder(path, {name: x.to(dtype) for name, x in tensors.items()}, {**config, **more})


def write_prefix(path, seed, tokens=3, layers=2, width=8, dtype=torch.float32):
    matrix = torch.randn((tokens, layers * 2 * width), generator=torch.Generator().manual_seed(seed))
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": tokens,
        "num_layers": layers,
        "token_dim": width,
        "num_attention_heads": 2,
        "num_transformer_submodules": 1,
    }
    return write_folder(path, {"prompt_embeddings": matrix.to(dtype)}, config)


def write_prompt(path, seed, tokens=3, parts=2, width=8):
    matrix = torch.randn((parts * tokens, width), generator=torch.Generator().manual_seed(seed))
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": tokens,
        "token_dim": width,
        "num_transformer_submodules": parts,
    }
    return write_folder(path, {"prompt_embeddings": matrix}, config)


def ties_by_hand(arrays, weights, density):
    """The algorithm of the paper's section 4, element by element."""
    trimmed = []
    for array in arrays:
        count = math.ceil(density * array.size)
        limit = np.sort(np.abs(array).ravel())[::-1][count - 1]
        trimmed.append(np.where(np.abs(array) >= limit, array, 0.0))
    result = np.zeros_like(arrays[0])
    for place in np.ndindex(result.shape):
        terms = [w * x[place] for w, x in zip(weights, trimmed, strict=True)]
        elected = np.sign(sum(terms))
        agreeing = [term for term in terms if term and np.sign(term) == elected]
        result[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return result


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(**SMALL, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0)
    )
