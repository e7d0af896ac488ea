"""What an adapter's configuration says: its kind, ranks and scalings, and why some kinds cannot be merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingualift.adapters.patterns import Pattern, Patterns
from lingualift.errors import UserError

CONFIG_FILE = "adapter_config.json"

FIRST_STAGE = "first-stage"
"""Folder within that of a FLARE adapter, of the first stage: a plain LoRA adapter. Key of its weights' sha256 too."""

FLARE, MIXUP = "flare", "x-mixup"
FUSED = (FLARE, MIXUP)
"""Kinds of adapters that read a source side (`Adapter.kind`)."""

KINDS = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}
"""Kinds that can be merged, by peft's name for them."""

PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the backbone as published."""

MAX_ALPHA = 1e30
"""Above it, float32 arithmetic on any factor would overflow."""

_CONVERT = (
    "save it with path_initial_model_for_weight_conversion, which turns it into plain LoRA: "
    "https://huggingface.co/docs/peft/developer_guides/lora#initialization"
)
_TRAIN = "train with plain LoRA"

_LORA_VARIANTS = {
    "use_dora": "DoRA divides by the norm of backbone plus update: it holds no difference to the backbone",
    "use_qalora": "QA-LoRA pools its input, so its factors are no difference to the backbone",
    "use_bdlora": "BD-LoRA's factors are block-diagonal, which sums and low-rank forms do not keep",
    "alora_invocation_tokens": "aLoRA acts only after its invocation tokens, which a merge cannot carry",
    "arrow_config": "Arrow routes between adapters at run time",
    "kasa_config": "KaSA changes the backbone when training starts",
    "monteclora_config": "MonteCLoRA holds distributions, not one update",
    "velora_config": "VeLoRA's state is not written to the adapter",
    "target_parameters": "LoRA on bare parameters packs several experts into one tensor",
}

_OTHER_KINDS = {
    "ADALORA": "AdaLoRA's updates live in pruned singular values of their own bases",
    "LOHA": "its update is a product of products, which no sum of its tensors gives",
    "LOKR": "its update is a Kronecker product, which no sum of its tensors gives",
    "OFT": "it rotates the backbone's weights; rotations do not add up",
    "BOFT": "it rotates the backbone's weights; rotations do not add up",
    "HRA": "it reflects the backbone's weights; reflections do not add up",
    "VERA": "its factors are shared random matrices that the adapter need not hold",
    "P_TUNING": "its prompt comes out of an encoder that the adapter does not hold",
    "MULTITASK_PROMPT_TUNING": "its prompt is a product of a shared and a task's part",
    "LN_TUNING": "it holds whole layer norms, not differences to the backbone",
}


@dataclass(frozen=True)
class Refusal:
    """Why an adapter cannot be merged, and what to do about it."""

    reason: str
    mend: str


def refusal(config: Mapping[str, Any]) -> Refusal | None:
    """Why an adapter of this configuration has no sound merge, or None where it has one."""
    kind = str(config.get("peft_type"))
    if config.get("peft_type") is None:
        return Refusal(
            f"its {CONFIG_FILE} has no peft_type: it is none of peft's",
            "save the adapter by peft, or convert it with the tool that made it",
        )
    if kind not in KINDS:
        reason = _OTHER_KINDS.get(kind, "no operation is known that merges it soundly")
        mergeable = ", ".join(KINDS)
        return Refusal(f"{kind} adapters cannot be merged: {reason}", f"train one of {mergeable}")
    if kind != "LORA":
        return None
    for key, reason in _LORA_VARIANTS.items():
        if config.get(key):
            return Refusal(f"{key} is set: {reason}", _TRAIN)
    start = config.get("init_lora_weights")
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in PLAIN_STARTS):
        reason = f"init_lora_weights is {start!r}, which changes the backbone when training starts"
        return Refusal(f"{reason}: its tensors are no difference to the published backbone", _CONVERT)
    return None


class LoraSettings:
    """Rank and scaling of every module of a LoRA adapter, as peft reads them.

    Pattern keys are regular expressions that must match a whole module path, or the end of one after a dot;
    the first key that matches counts (peft 0.21.2, `utils/other.py:get_pattern_key`).

    Args:
        config: The adapter's configuration.
        path: Its file, for messages.

    Raises:
        UserError: a rank, alpha or pattern is not what peft accepts.
    """

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self._path = path
        self._bounded = Patterns(path)
        self.rank_stabilised = bool(config.get("use_rslora"))
        self.biased = bool(config.get("lora_bias"))
        self._rank = self._checked_rank("r", config.get("r"))
        self._alpha = self._checked_alpha("lora_alpha", config.get("lora_alpha"))
        self._ranks = self._patterns(config, "rank_pattern", self._checked_rank)
        self._alphas = self._patterns(config, "alpha_pattern", self._checked_alpha)

    def rank(self, module: str) -> int:
        """The module's rank."""
        return int(_first_match(self._ranks, module, self._rank))

    def scaling(self, module: str) -> float:
        """The factor of B·A: alpha / r, or alpha / √r where `use_rslora` is set."""
        rank, alpha = self.rank(module), float(_first_match(self._alphas, module, self._alpha))
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank

    def _checked_rank(self, key: str, value: Any) -> float:
        if type(value) is not int or value <= 0:
            raise UserError(self._path, f"{key} is {value!r}", "a whole number above 0", "mend the file")
        return value

    def _checked_alpha(self, key: str, value: Any) -> float:
        if type(value) not in (int, float) or not 0 < abs(value) < MAX_ALPHA:
            raise UserError(self._path, f"{key} is {value!r}", "a number other than 0", "mend the file")
        return float(value)

    def _patterns(
        self, config: Mapping[str, Any], key: str, check: Callable[[str, Any], float]
    ) -> list[tuple[Pattern, float]]:
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise UserError(
                self._path, f"{key} is {patterns!r}", "numbers by module pattern", "mend the file"
            )
        return [
            (self._bounded.end(pattern), check(f"{key}[{pattern!r}]", value))
            for pattern, value in patterns.items()
        ]


def _first_match(patterns: list[tuple[Pattern, float]], module: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.matches(module)), default)
