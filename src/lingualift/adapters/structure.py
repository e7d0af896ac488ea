"""Which tensors of an adapter belong together: its modules, and the whole values beside them; do several fit?"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lingualift.adapters.config import CONFIG_FILE, LoraSettings
from lingualift.adapters.patterns import Patterns, is_simple
from lingualift.adapters.tensorfile import FLOATS, TensorSpec
from lingualift.errors import UserError
from lingualift.provenance import PROVENANCE_FILE

if TYPE_CHECKING:
    from lingualift.adapters.folder import Adapter

PREFIX = "base_model.model."
"""What peft writes before the backbone's own names."""
PROMPT = "prompt_embeddings"
"""peft's name of the virtual tokens of a prefix or prompt."""

Form = Literal["linear", "embedding", "vector", "block", "bottleneck"]
"""How a module meets the backbone: LoRA on a linear layer or embedding, an (IA)³ vector, virtual tokens, bottleneck."""

_LORA = re.compile(r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")
_BIAS = re.compile(r".+\.bias")
_TOKENS = re.compile(r".+\.(?:base_layer\.(?:weight|bias)|token_adapter\.trainable_tokens_delta)")
_EMBEDDINGS = re.compile(
    r".+\.(?:embed_tokens|lm_head|shared|wte|wpe|word_embeddings|embed_out|embed_in|decoder|tok_embeddings|output)"
    r"\.(?:weight|bias)"
)
SAME_START = 0.3
"""Cosine of two lora_A from which they count as grown from one draw; independent draws lie near 0, and training
moves a factor by a fraction of its length."""

_SAMPLED = 8
_RESTORE = "restore the adapter from its source"


@dataclass(frozen=True)
class Module:
    """The tensors with which an adapter meets one place of the backbone.

    Args:
        name: Path of the backbone's module; `layers.0.key` and the like for virtual tokens.
        form: How it meets the backbone.
        tensors: Tensor names: lora_A and lora_B, or the one vector; `prompt_embeddings` for virtual tokens; weight and
            bias of a bottleneck's way down, then of its way up.
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


class Targets:
    """The modules that a configuration names (peft 0.21.2, `tuners/tuners_utils.py:check_target_module_exists`).

    Args:
        config: The adapter's configuration.
        where: Its file, for messages.

    Raises:
        UserError: a pattern is no regular expression, or names are no names.
    """

    def __init__(self, config: Mapping[str, Any], where: object) -> None:
        self._where = where
        self._targets = config.get("target_modules")
        self._named = self._names("target_modules", self._targets)
        self._left_out = self._names("exclude_modules", config.get("exclude_modules"))
        saved = config.get("modules_to_save") or ()
        self._saved = [self._written(rf"(^|.*\.){name}($|\..*)", name) for name in saved]
        self._layers = self._in_layers(config)

    @functools.cached_property
    def _patterns(self) -> Patterns:
        return Patterns(self._where)

    def reaches(self, module: str) -> bool:
        """Whether peft makes an adapter's layer for a module, so that tensors of it are read and not passed over.

        Where the configuration leaves that to the backbone (`all-linear`, or no targets), it is taken to.

        Raises:
            UserError: the patterns take too long to match.
        """
        if self._left_out(module) or any(saved.match(module) for saved in self._saved):
            return False
        if self._targets is None or self._targets == "all-linear":
            return True
        if not self._named(module):
            return False
        return isinstance(self._targets, str) or module in self._targets or self._layers(module)

    def _names(self, key: str, names: Any) -> Callable[[str], bool]:
        if isinstance(names, str):
            return self._patterns.whole(names).matches if names else lambda _: False
        if names is not None and not isinstance(names, list | set | tuple):
            found = f"{key} names modules by {names!r}"
            raise UserError(self._where, found, "a pattern or a list", "mend it")
        given = frozenset(names or ())
        ends = tuple(f".{name}" for name in given)
        return lambda module: module in given or module.endswith(ends)

    def _written(self, pattern: str, name: object) -> re.Pattern[str]:
        """What peft makes of a name that it puts into a pattern as it stands."""
        if not isinstance(name, str) or not is_simple(name):
            found = f"{name!r} is no name of a module"
            raise UserError(self._where, found, "a name, not a pattern", "mend it")
        return re.compile(pattern)

    def _in_layers(self, config: Mapping[str, Any]) -> Callable[[str], bool]:
        """Whether a module is in the layers that a configuration bounds its targets to, if it bounds them."""
        chosen, lists = config.get("layers_to_transform"), config.get("layers_pattern")
        if chosen is None or chosen == []:
            return lambda _: True
        starts = [lists] if isinstance(lists, str) and lists else list(lists or ())
        patterns = [self._written(rf"(?:^|.*?\.){each}\.(?P<layer>\d+)\.", each) for each in starts]
        patterns = patterns or [re.compile(r".*?\.[^.]*\.(?P<layer>\d+)\.")]
        numbers = chosen if isinstance(chosen, list) else [chosen]

        def within(module: str) -> bool:
            found = next((match for pattern in patterns if (match := pattern.match(module))), None)
            return found is not None and found["layer"] is not None and int(found["layer"]) in numbers

        return within


def structure(
    kind: str,
    modules: dict[str, Module],
    config: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    path: Path,
) -> Structure:
    """Sort an adapter's tensors into its modules, which are found, and whole values.

    Args:
        kind: A value of `adapters.config.KINDS`.
        modules: What `lora`, or another kind's function, found.
        config: The adapter's configuration.
        specs: The tensors of its file.
        path: The adapter's folder, for messages.

    Raises:
        UserError: a tensor has no known meaning or no partner, or a shape contradicts the configuration.
    """
    used = {tensor for module in modules.values() for tensor in (*module.tensors, module.bias) if tensor}
    if not modules:
        other = f"; it has {next(iter(specs))!r}, which peft would pass over" if specs else ""
        found = f"holds no {kind} tensors by peft's names{other}"
        raise UserError(path, found, f"those of a {kind} adapter", _RESTORE)
    for name in used:
        if specs[name].code not in FLOATS:
            found = f"tensor {name!r} is {specs[name].code}"
            raise UserError(path, found, "floating-point numbers", _RESTORE)
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


def _is_whole(name: str, saved: Sequence[Any]) -> bool:
    if ".lora_" in name:
        return False
    if any(f".{module}." in f".{name.removeprefix(PREFIX)}" for module in saved):
        return True
    return bool(_TOKENS.fullmatch(name) or _EMBEDDINGS.fullmatch(name) or _BIAS.fullmatch(name))


def lora(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Module]:
    """The modules of a LoRA adapter by name; arguments and errors as of `structure`."""
    settings = LoraSettings(config, path)
    pairs: dict[str, dict[str, str]] = {}
    for name in specs:
        if match := _LORA.fullmatch(name):
            module, factor = match["module"].removeprefix(PREFIX), match["linear"] or match["embedding"]
            if factor in pairs.setdefault(module, {}):
                raise UserError(path, f"module {module!r} has two lora_{factor}", "one", _RESTORE)
            pairs[module][factor] = name
    return {module: _pair(module, pair, settings, specs, path) for module, pair in pairs.items()}


def _pair(
    module: str,
    pair: Mapping[str, str],
    settings: LoraSettings,
    specs: Mapping[str, TensorSpec],
    path: Path,
) -> Module:
    for factor in "AB":
        if factor not in pair:
            raise UserError(path, f"module {module!r} has no lora_{factor}", "lora_A and lora_B", _RESTORE)
    tensors, rank = (pair["A"], pair["B"]), settings.rank(module)
    form: Form = "linear" if all(name.endswith(".weight") for name in tensors) else "embedding"
    down, up = (specs[name].shape for name in tensors)
    if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank or 0 in (down[1], up[0]):
        found = f"lora_A and lora_B of {module!r} have shapes {down} and {up}"
        raise UserError(path, found, f"({rank}, n) and (m, {rank}), as its configuration says", _RESTORE)
    bias = f"{pair['B'].removesuffix('weight')}bias" if form == "linear" else ""
    biased = settings.biased and form == "linear"
    if (bias in specs) != biased:
        found = f"{'has a' if bias in specs else 'lacks the'} tensor {bias!r}"
        raise UserError(path, found, f"as its configuration says (lora_bias: {settings.biased})", _RESTORE)
    if biased and specs[bias].shape != up[:1]:
        raise UserError(path, f"tensor {bias!r} has shape {specs[bias].shape}", f"{up[:1]}", _RESTORE)
    scaling = settings.scaling(module)
    return Module(module, form, tensors, (down, up), rank, scaling, bias if biased else "")


def conflicts(adapters: Sequence[Adapter]) -> Iterator[UserError]:
    """Every reason why these adapters cannot be merged, each with its mend."""
    usable = []
    for adapter in adapters:
        try:
            _ = adapter.structure
            usable.append(adapter)
        except UserError as error:
            yield error
    for other in usable[1:]:
        yield from _pairwise(usable[0], other)


def same_initialisation(adapters: Sequence[Adapter]) -> tuple[bool | None, str]:
    """Whether LoRA adapters were trained from one draw, and how that is known.

    Told from `initialisation` in every `provenance.json`, else from the factors that were drawn at random
    (lora_A; for embeddings lora_B). None where nothing tells.
    """
    recorded = {adapter.initialisation for adapter in adapters}
    if None not in recorded:
        return len(recorded) == 1, "provenance"
    if any(adapter.kind != "lora" for adapter in adapters) or len(adapters) < 2:
        return None, "unknown"
    cosines = [_start_cosine(adapters[0], other) for other in adapters[1:]]
    known = [cosine for cosine in cosines if cosine is not None]
    if len(known) < len(cosines):
        return None, "unknown"
    return min(known) >= SAME_START, f"tensors, cosine of the drawn factors {min(known):.2f}"


def _start_cosine(first: Adapter, other: Adapter) -> float | None:
    theirs = {name: module.shapes for name, module in other.modules.items()}
    shared = [name for name, module in first.modules.items() if module.shapes == theirs.get(name)]
    cosines = []
    for name in shared[:: max(1, len(shared) // _SAMPLED)]:
        drawn = 1 if first.modules[name].form == "embedding" else 0
        a, b = (x.read(x.modules[name].tensors[drawn]).ravel().astype(np.float64) for x in (first, other))
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        if length and np.isfinite(length):
            cosines.append(float(a @ b) / length)
    return float(np.median(cosines)) if cosines else None


def _pairwise(first: Adapter, other: Adapter) -> Iterator[UserError]:
    if first.kind != other.kind:
        expected = f"{first.kind} as {first.path} is"
        yield UserError(other.path, f"is a {other.kind} adapter", expected, "merge adapters of one kind")
        return
    for key in ("placement", "activation", "scaling", "last_norm") if first.kind == "bottleneck" else ():
        ours, theirs = first.config.get(key), other.config.get(key)
        if ours != theirs:
            expected = f"{ours!r} as in {first.path}"
            yield UserError(other.path, f"{key} is {theirs!r}", expected, "merge bottlenecks of one kind")
            return
    yield from _backbone_conflict(first, other)
    shared = first.modules.keys() & other.modules.keys()
    if not shared:
        found = f"shares no module with {first.path} (it has {next(iter(other.modules))!r} and others)"
        expected = f"modules such as {next(iter(first.modules))!r}"
        yield UserError(other.path, found, expected, "train both on the same modules of one backbone class")
    for name in sorted(shared):
        ours, theirs = first.modules[name], other.modules[name]
        if (ours.form, ours.fits) != (theirs.form, theirs.fits):
            found = f"module {name!r} is {theirs.form} with shapes {theirs.shapes}"
            expected = f"{ours.form} with {ours.shapes} as in {first.path}"
            yield UserError(other.path, found, expected, "merge adapters of one backbone")
            return


def _backbone_conflict(first: Adapter, other: Adapter) -> Iterator[UserError]:
    ours, theirs = first.backbone, other.backbone
    found, expected = f"its backbone is {_text(theirs)}", f"{_text(ours)} as {first.path}"
    if ours["fingerprint"] and theirs["fingerprint"]:
        told = [{facts["fingerprint"], facts["formerly"]} - {None} for facts in (ours, theirs)]
        if not told[0] & told[1]:
            file = other.path / PROVENANCE_FILE
            mend = (
                "merge adapters of one backbone; if you know that the two are one, remove `fingerprint` and `formerly` "
                f"under `backbone` in {file}, and see that the names agree"
            )
            yield UserError(other.path, found, expected, mend)
        return
    names = ours["name"], theirs["name"]
    revisions = {str(facts["revision"] or "main") for facts in (ours, theirs)}
    if all(names) and (names[0] != names[1] or len(revisions) > 1):
        mend = (
            "merge adapters of one backbone; if you know that the two are one, set base_model_name_or_path and "
            f"revision in {other.path / CONFIG_FILE} to those of the other"
        )
        yield UserError(other.path, found, expected, mend)


def _text(facts: dict[str, Any]) -> str:
    revision = f" at revision {facts['revision']}" if facts["revision"] else ""
    fingerprint = f" (fingerprint {str(facts['fingerprint'])[:12]})" if facts["fingerprint"] else ""
    return f"{facts['name']!r}{revision}{fingerprint}"
