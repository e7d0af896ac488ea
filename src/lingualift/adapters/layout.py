"""How other tools write an adapter's names, brought back to those that peft reads.

peft loads what it knows and passes over the rest with a warning at most: an adapter whose names it does not know does
nothing. What is known here is renamed; what is not is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lingualift.adapters.structure import PREFIX, PROMPT, Structure
from lingualift.errors import UserError

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
}
"""Parts of a name that a wrapper of a module adds, and whose it is."""
_WRAPPED = re.compile(rf"(?<!\w)(?:{'|'.join(WRAPPERS)})\\?\.")
_MARKS = r"(?:base_layer|base_model|modules_to_save|original_module|ia3_l|trainable_tokens_delta)\.|lora_"
PLAIN = re.compile(rf"base_model\.model\.(?!module\.)(?:(?!{_MARKS})[^._][^.]*\.)+lora_[AB]\.weight")
"""Names of LoRA's tensors as peft writes them, in which nothing is to be brought back."""
_WITHIN = re.compile(
    r"^(?!base_model\.)(?P<holder>.+?)\.(?=base_model\.model\.)|(?<=^base_model\.model\.)module\."
)
_NAMED = re.compile(
    r"(?P<before>.+\.(?:lora_[AB]|lora_embedding_[AB]|ia3_l|trainable_tokens_delta))"
    r"\.(?P<adapter>(?!weight$|bias$)[^.]+)(?P<after>\.(?:weight|bias))?"
)
_SAVED = re.compile(r"\.modules_to_save\.(?:(?P<adapter>[^.]+)\.(?=.+))?")
_ENCODER = re.compile(r"prompt_encoder\.[^.]+\.embedding\.weight")
_TRAINED = re.compile(r".*\.(?:lora_[AB]\.(?:weight|bias)|lora_embedding_[AB]|ia3_l)")
_OLD = ".original_module."
_FORMER = (
    (r"language_model\.model\.", "model.language_model."),
    (r"language_model\.lm_head", "lm_head"),
    (r"(vision_tower|multi_modal_projector|visual)\.", r"model.\1."),
)
"""Where transformers 4 had the parts of models that read images too, and where 5 has them."""
_LATTER = (
    (r"model\.language_model\.", "language_model.model."),
    (r"lm_head", "language_model.lm_head"),
    (r"model\.(vision_tower|multi_modal_projector|visual)\.", r"\1."),
)
_TEXT = ((r"model\.(?=(?:layers|embed_tokens|norm)\b)", "model.language_model."),)
_ALONE = ((r"model\.language_model\.", "model."),)
_LAYOUTS = (_FORMER, _LATTER, _TEXT, _ALONE)
"""Ways of writing one model's names: of transformers 4 and 5, and of the text model alone and within."""
_PATTERNS = (
    "target_modules",
    "exclude_modules",
    "feedforward_modules",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
)
"""Keys of a configuration that name modules."""
_RETRAIN = (
    "save the adapter anew from the plain model: model.save_pretrained of the PeftModel that is not wrapped"
)


@dataclass(frozen=True)
class Layout:
    """An adapter's tensors by peft's names.

    Attributes:
        names: peft's name of a tensor -> its name in the file.
        copies: Name in the file of a tensor that stands there twice -> peft's name of it. Left out of `names`.
        notes: What was brought back, for people.
        plain: Whether the file has peft's names already, and each tensor once.
    """

    names: Mapping[str, str]
    copies: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    plain: bool = True


def layout_of(found: Iterable[str], config: Mapping[str, Any], path: Path) -> Layout:
    """Find peft's names of an adapter's tensors.

    Args:
        found: Names in the file.
        config: The adapter's configuration.
        path: The adapter's folder, for messages.

    Raises:
        UserError: two tensors have one name then, or a name is of no layout that is known.
    """
    found = list(found)
    notes: dict[str, None] = {}
    adapters = {match["adapter"] for name in found if (match := _NAMED.fullmatch(name))} | {"default"}
    homes = {name: _home(name, adapters, notes) for name in found if _OLD not in name}
    own = {home for name, home in homes.items() if not _SAVED.search(name)}
    copies = {name: home for name, home in homes.items() if _SAVED.search(name) and home in own}
    homes = {name: home for name, home in homes.items() if name not in copies}
    bare = [name for name, home in homes.items() if _TRAINED.fullmatch(home) and not home.startswith(PREFIX)]
    trained = [name for name, home in homes.items() if _TRAINED.fullmatch(home)]
    if bare and bare != trained:
        without = set(bare)
        other = next(name for name in trained if name not in without)
        raise UserError(path, f"mixes layouts: {bare[0]!r} beside {other!r}", "one layout", _RETRAIN)
    if bare:
        notes[f"names without {PREFIX!r}, as of inject_adapter_in_model"] = None
        homes = {name: home if home == PROMPT else f"{PREFIX}{home}" for name, home in homes.items()}
    names: dict[str, str] = {}
    for name, home in homes.items():
        if home in names:
            raise UserError(path, f"holds {names[home]!r} and {name!r}", "one adapter in a file", _RETRAIN)
        names[home] = name
        _check_known(name, home, config, path)
    return Layout(names, copies, tuple(notes), list(names.values()) == found == list(names))


def _home(name: str, adapters: Collection[str], notes: dict[str, None]) -> str:
    """Peft's name of one tensor, but for its prefix."""
    for part in name.split("."):
        if part in WRAPPERS:
            notes[f"names of a module wrapped by {WRAPPERS[part]} ({part})"] = None
    home = _WRAPPED.sub("", name)
    if match := _WITHIN.search(home):
        holder = match["holder"] or "module"
        whose = "by DDP or DeepSpeed" if set(holder.split(".")) == {"module"} else "in another"
        notes[f"names of a model wrapped {whose} ({holder})"] = None
        home = _WITHIN.sub("", home)
    if _ENCODER.fullmatch(home):
        notes["names of a model's own state (prompt_encoder)"] = None
        return PROMPT
    if match := _NAMED.fullmatch(home):
        notes[f"names of a model's own state, with the adapter's ({match['adapter']})"] = None
        return match["before"] + (match["after"] or "")

    def saved(match: re.Match[str]) -> str:
        known = match["adapter"] is None or match["adapter"] in adapters
        return "." if known else f".{match['adapter']}."

    return _SAVED.sub(saved, home)


def _check_known(name: str, home: str, config: Mapping[str, Any], path: Path) -> None:
    """Check that a name is one that peft can read."""
    inner = home.removeprefix(PREFIX)
    nested = ".base_layer.lora_" in inner or ".base_layer.ia3_l" in inner
    reasons = {
        "of an adapter on a model that has one already": home.startswith(PREFIX) and PREFIX in inner,
        # of several bare parameters of one module, peft itself writes such
        "of a layer within another adapter's": nested and not config.get("target_parameters"),
        "of a wrapper that is not known": any(part.startswith("_") for part in inner.split(".")),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(
                path, f"tensor {name!r} is {reason}; peft would pass over it", "peft's names", _RETRAIN
            )


def same_modules(ours: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """Names of modules in another layout of the same model -> their names here; empty where none brings them together.

    Args:
        ours: Names here.
        theirs: Names in the other layout, none of which is here.
    """
    here = set(ours)
    for rules in _LAYOUTS:
        moved = {name: _moved(name, rules) for name in theirs}
        if here & set(moved.values()) and len(set(moved.values())) == len(moved):
            return {name: new for name, new in moved.items() if name != new}
    return {}


def _moved(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, new in rules:
        found, count = re.subn(rf"^{pattern}", new, name)
        if count:
            return found
    return name


def renamed(layout: Layout, structure: Structure, moved: Mapping[str, str]) -> tuple[Layout, Structure]:
    """The same tensors and modules with other names of some modules, as `same_modules` found them."""
    names, new_name = {}, {}
    for name, theirs in layout.names.items():
        home = name.removeprefix(PREFIX)
        holders = (home[:end] for end in range(len(home)) if home[end] == ".")
        old = next((module for module in holders if module in moved), None)
        new_name[name] = name if old is None else f"{PREFIX}{moved[old]}{home.removeprefix(old)}"
        names[new_name[name]] = theirs
    modules = {
        moved.get(name, name): replace(
            module,
            name=moved.get(name, name),
            tensors=tuple(new_name[part] for part in module.tensors),
            bias=new_name[module.bias] if module.bias else "",
        )
        for name, module in structure.modules.items()
    }
    first, new = next(iter(moved.items()))
    note = f"names of another layout of the backbone ({first} for {new})"
    whole = tuple(new_name[name] for name in structure.whole)
    return replace(layout, names=names, notes=(*layout.notes, note), plain=False), Structure(modules, whole)


def either(module: str) -> str:
    """A pattern of a module's name that matches it in transformers 5 too, where 4 had another name for it."""
    now = _moved(module, _FORMER)
    return re.escape(module) if now == module else f"(?:{re.escape(module)}|{re.escape(now)})"


def brought_back(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose names of modules are peft's too."""
    changed = dict(config)
    for key in _PATTERNS:
        value = config.get(key)
        if isinstance(value, str):
            changed[key] = _WRAPPED.sub("", value)
        elif isinstance(value, list):
            changed[key] = [_WRAPPED.sub("", part) if isinstance(part, str) else part for part in value]
        elif isinstance(value, dict):
            changed[key] = {_WRAPPED.sub("", part): number for part, number in value.items()}
    return changed
