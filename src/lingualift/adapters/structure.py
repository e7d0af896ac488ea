"""Which tensors of an adapter belong together: its modules, and the whole values beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lingualift.adapters.config import CONFIG_FILE, LoraSettings
from lingualift.adapters.layout import PREFIX, PROMPT
from lingualift.adapters.targets import Targets
from lingualift.adapters.tensorfile import FLOATS, TensorSpec
from lingualift.errors import UserError

Form = Literal["linear", "embedding", "vector", "block"]
"""How a module meets the backbone: LoRA on a linear layer or embedding, an (IA)³ vector, virtual tokens."""

_LORA = re.compile(r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")
_VECTOR = re.compile(r"(?P<module>.+)\.ia3_l")
_BIAS = re.compile(r".+\.bias")
_TOKENS = re.compile(r".+\.(?:base_layer\.(?:weight|bias)|token_adapter\.trainable_tokens_delta)")
_EMBEDDINGS = re.compile(
    r".+\.(?:embed_tokens|lm_head|shared|wte|wpe|word_embeddings|embed_out|embed_in|decoder|tok_embeddings|output)"
    r"\.(?:weight|bias)"
)
_RESTORE = "restore the adapter from its source"


@dataclass(frozen=True)
class Module:
    """The tensors with which an adapter meets one place of the backbone.

    Args:
        name: Path of the backbone's module; `layers.0.key` and the like for virtual tokens.
        form: How it meets the backbone.
        tensors: Tensor names: lora_A and lora_B, or the one vector; `prompt_embeddings` for virtual tokens.
        bias: Name of the bias of lora_B, which is a part of the update: ΔW·x + scaling·b; empty without one.
        shapes: Their shapes, in the same order.
        rank: LoRA's rank, else 0.
        scaling: LoRA's factor of B·A, else 1.
        columns: For virtual tokens, the columns of the flat matrix; else empty.
        rows: For virtual tokens, its rows; else empty.
    """

    name: str
    form: Form
    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    rank: int = 0
    scaling: float = 1.0
    bias: str = ""
    columns: tuple[int, int] = (0, 0)
    rows: tuple[int, int] = (0, 0)

    @property
    def fits(self) -> tuple[int, ...]:
        """What must agree between adapters for them to meet the same place: sizes without the rank."""
        if not self.rank:
            return tuple(size for shape in self.shapes for size in shape)
        return self.shapes[1][0], self.shapes[0][1]


@dataclass(frozen=True)
class Structure:
    """All modules by name, and the names of tensors that hold whole values (biases, saved modules)."""

    modules: dict[str, Module]
    whole: tuple[str, ...]


def structure(kind: str, config: Mapping[str, Any], specs: Mapping[str, TensorSpec], path: Path) -> Structure:
    """Sort an adapter's tensors into modules and whole values.

    Args:
        kind: A value of `adapters.config.KINDS`.
        config: The adapter's configuration.
        specs: The tensors of its file.
        path: The adapter's folder, for messages.

    Raises:
        UserError: a tensor has no known meaning or no partner, or a shape contradicts the configuration.
    """
    sort = {"lora": _lora, "ia3": _vectors, "prefix": _prefix, "prompt": _prompt}[kind]
    modules = sort(config, specs, path)
    used = {tensor for module in modules.values() for tensor in (*module.tensors, module.bias) if tensor}
    if not modules:
        other = f"; it has {next(iter(specs))!r}, which peft would pass over" if specs else ""
        raise UserError(
            path, f"holds no {kind} tensors by peft's names{other}", f"those of a {kind} adapter", _RESTORE
        )
    for name in used:
        if specs[name].code not in FLOATS:
            raise UserError(
                path, f"tensor {name!r} is {specs[name].code}", "floating-point numbers", _RESTORE
            )
    whole = tuple(name for name in specs if name not in used)
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list):
        raise UserError(path, f"modules_to_save is {saved!r}", "a list of names", "mend adapter_config.json")
    targets = Targets(config, path / CONFIG_FILE)
    for name, module in modules.items():
        if module.form != "block" and not targets.reaches(name):
            found = (
                f"holds tensors of {name!r}, which its configuration leaves out: peft would pass over them"
            )
            raise UserError(path, found, "target_modules that reach every module", "mend adapter_config.json")
    for name in whole:
        if not _is_whole(name, saved):
            mend = "remove the tensor, or name its module in modules_to_save"
            raise UserError(path, f"tensor {name!r} has no known meaning and would stay unmerged", mend=mend)
    return Structure(modules, whole)


def module_name(tensor: str) -> str:
    """The backbone's name of a module, without peft's prefix."""
    return tensor.removeprefix(PREFIX)


def _is_whole(name: str, saved: Sequence[Any]) -> bool:
    if ".lora_" in name:
        return False
    parts = module_name(name).split(".")
    if any(_contains(parts, str(module).split(".")) for module in saved):
        return True
    return bool(_TOKENS.fullmatch(name) or _EMBEDDINGS.fullmatch(name) or _BIAS.fullmatch(name))


def _contains(parts: list[str], wanted: list[str]) -> bool:
    return any(parts[i : i + len(wanted)] == wanted for i in range(len(parts) - len(wanted)))


def _lora(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Module]:
    settings = LoraSettings(config, path)
    pairs: dict[str, dict[str, str]] = {}
    embeddings = set()
    for name in specs:
        if match := _LORA.fullmatch(name):
            module = module_name(match["module"])
            factor = match["linear"] or match["embedding"]
            if match["embedding"]:
                embeddings.add(module)
            if factor in pairs.setdefault(module, {}):
                raise UserError(path, f"module {module!r} has two lora_{factor}", "one", _RESTORE)
            pairs[module][factor] = name
    forms: dict[str, Form] = {name: "embedding" if name in embeddings else "linear" for name in pairs}
    return {name: _pair(name, pair, forms[name], settings, specs, path) for name, pair in pairs.items()}


def _pair(
    module: str,
    pair: Mapping[str, str],
    form: Form,
    settings: LoraSettings,
    specs: Mapping[str, TensorSpec],
    path: Path,
) -> Module:
    for factor in "AB":
        if factor not in pair:
            raise UserError(path, f"module {module!r} has no lora_{factor}", "lora_A and lora_B", _RESTORE)
    tensors = pair["A"], pair["B"]
    down, up = (specs[name].shape for name in tensors)
    rank = settings.rank(module)
    if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank or 0 in (down[1], up[0]):
        found = f"lora_A and lora_B of {module!r} have shapes {down} and {up}"
        raise UserError(path, found, f"({rank}, n) and (m, {rank}), as its configuration says", _RESTORE)
    bias = f"{pair['B'].removesuffix('weight')}bias" if form == "linear" else ""
    if (bias in specs) != (settings.biased and form == "linear"):
        found = f"{'has a' if bias in specs else 'lacks the'} tensor {bias!r}"
        raise UserError(path, found, f"as its configuration says (lora_bias: {settings.biased})", _RESTORE)
    if bias not in specs:
        bias = ""
    elif specs[bias].shape != up[:1]:
        raise UserError(path, f"tensor {bias!r} has shape {specs[bias].shape}", f"{up[:1]}", _RESTORE)
    return Module(module, form, tensors, (down, up), rank, settings.scaling(module), bias)


def _vectors(_: Mapping[str, Any], specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Module]:
    modules = {}
    for name, spec in specs.items():
        if match := _VECTOR.fullmatch(name):
            module = module_name(match["module"])
            if len(spec.shape) < 2 or max(spec.shape) != math.prod(spec.shape):
                raise UserError(path, f"tensor {name!r} has shape {spec.shape}", "(n, 1) or (1, n)", _RESTORE)
            modules[module] = Module(module, "vector", (name,), (spec.shape,))
    return modules


def _count(config: Mapping[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if type(value) is not int or value <= 0:
        raise UserError(path, f"{key} is {value!r}", "a whole number above 0", "mend adapter_config.json")
    return value


def _matrix(specs: Mapping[str, TensorSpec], rows: int, columns: int, path: Path) -> tuple[int, int]:
    if PROMPT not in specs:
        raise UserError(path, f"has no tensor {PROMPT!r}", "the virtual tokens", _RESTORE)
    shape = specs[PROMPT].shape
    if shape != (rows, columns):
        expected = f"({rows}, {columns}), as its configuration says"
        raise UserError(path, f"tensor {PROMPT!r} has shape {shape}", expected, _RESTORE)
    return rows, columns


def _prefix(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Module]:
    """Blocks of a prefix: peft's columns run over layers, in each the key's and the value's width."""
    tokens, layers, width = (
        _count(config, key, path) for key in ("num_virtual_tokens", "num_layers", "token_dim")
    )
    shape = _matrix(specs, tokens, layers * 2 * width, path)
    modules = {}
    for index in range(layers * 2):
        name = f"layers.{index // 2}.{('key', 'value')[index % 2]}"
        columns = (index * width, (index + 1) * width)
        modules[name] = Module(name, "block", (PROMPT,), (shape,), columns=columns, rows=(0, tokens))
    return modules


def _prompt(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Module]:
    """Blocks of a prompt: peft stacks one per sub-module (encoder, decoder)."""
    tokens, width = (_count(config, key, path) for key in ("num_virtual_tokens", "token_dim"))
    parts = _count(config, "num_transformer_submodules", path)
    shape = _matrix(specs, parts * tokens, width, path)
    modules = {}
    for index in range(parts):
        rows = (index * tokens, (index + 1) * tokens)
        name = f"prompt.{index}"
        modules[name] = Module(name, "block", (PROMPT,), (shape,), columns=(0, width), rows=rows)
    return modules
