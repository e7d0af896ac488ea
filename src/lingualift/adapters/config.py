"""What an adapter's configuration may hold, and what it says: kind, ranks, scalings; why some kinds cannot be merged.

An `adapter_config.json` is data of others, and peft does what it says: imports a module, loads another model, fetches a
tokenizer. Every key that peft is given stands here with what it may hold; what makes peft load code or models is
refused.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingualift.adapters.patterns import Pattern, Patterns, is_simple
from lingualift.errors import UserError

CONFIG_FILE = "adapter_config.json"

FIRST_STAGE = "first-stage"
"""Folder within that of a FLARE adapter, of the first stage: a plain LoRA adapter. Key of its weights' sha256 too."""

FLARE, MIXUP = "flare", "x-mixup"
FUSED = (FLARE, MIXUP)
"""Kinds of adapters that read a source side (`Adapter.kind`)."""

BOTTLENECK = "BOTTLENECK"
"""The kind of bottleneck adapters, which plain peft does not know (`lingualift.bottlenecks`)."""

KINDS = {
    "LORA": "lora",
    "IA3": "ia3",
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    BOTTLENECK: "bottleneck",
}
"""Kinds that can be merged, by peft's name for them."""

PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the backbone as published."""

MAX_ALPHA = 1e30
"""Above it, float32 arithmetic on any factor would overflow."""

_CONVERT = (
    "save it with path_initial_model_for_weight_conversion, which turns it into plain LoRA: "
    "https://huggingface.co/docs/peft/developer_guides/lora#initialization"
)

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
            return Refusal(f"{key} is set: {reason}", "train with plain LoRA")
    start = config.get("init_lora_weights")
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in PLAIN_STARTS):
        reason = f"init_lora_weights is {start!r}, which changes the backbone when training starts"
        return Refusal(f"{reason}: its tensors are no difference to the published backbone", _CONVERT)
    return None


MAX_SIZE = 100_000
"""Above it no rank, width or number of layers or virtual tokens lies."""
MAX_LAYERS = 1_000
"""Layers that `layer_replication` may make."""

_HARMLESS = ("transformers", "peft", "torch")
"""Libraries that `auto_mapping` may name: those that are imported anyway."""

_Fits = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and is_simple(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return type(value) is float or _is_whole(value)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE


def _any(*kinds: _Fits) -> _Fits:
    return lambda value: any(fits(value) for fits in kinds)


def _list(entry: _Fits) -> _Fits:
    return lambda value: isinstance(value, list) and all(map(entry, value))


def _dict(entry: _Fits) -> _Fits:
    return lambda value: isinstance(value, dict) and all(map(entry, value.values()))


def _is_repetition(value: Any) -> bool:
    pairs = _list(_list(_is_whole))(value) and all(len(pair) == 2 for pair in value)
    return pairs and all(0 <= a < b for a, b in value) and sum(b - a for a, b in value) <= MAX_LAYERS


_Kind = tuple[str, _Fits]
_FLAG: _Kind = "true or false", lambda value: type(value) in (bool, int) and value in (0, 1)
_NUMBER: _Kind = "a number", _is_number
_SIZE: _Kind = f"a whole number above 0, at most {MAX_SIZE}", _is_size
_WORD: _Kind = "text", _is_text
_NAMES: _Kind = "a pattern or a list of names", _any(_is_text, _list(_is_text))
_LIST: _Kind = "a list of names", _list(_is_name)
_NAME: _Kind = "a name or a list of names", _any(_is_name, _list(_is_name))
_PATTERNS: _Kind = "numbers by module pattern", _dict(_is_number)
_NUMBERS = _dict(_any(_is_number, _list(_is_bool)))
_BY_NAME: _Kind = "numbers by module", lambda value: _NUMBERS(value) and all(map(is_simple, value))
_INDICES: _Kind = (
    "whole numbers, or lists of them by module",
    _any(lambda value: type(value) is int, _list(_is_whole), _dict(_list(_is_whole))),
)
_START: _Kind = "true, false or a name", _any(_is_bool, _is_text)
_PLAIN = _any(lambda value: value is None, _is_bool, _is_text, _is_number, _list(_is_text))
_RECORD: _Kind = "plain settings", _any(_is_bool, _dict(_PLAIN))
_REPEATED: _Kind = f"pairs of layers, {MAX_LAYERS} in all at most", _is_repetition

_KNOWN: tuple[tuple[_Kind, str], ...] = (
    (
        _WORD,
        "peft_type task_type peft_version base_model_name_or_path revision bias variant act_fn mask_type "
        "decomposition_method wavelet_family config_A_B config_C config_D_E poly_type ab_svd_init psoft_svd "
        "opt_weighted_loss_type encoder_reparameterization_type prompt_tuning_init prompt_tuning_init_text "
        "tokenizer_name_or_path",
    ),
    (_NAMES, "target_modules exclude_modules feedforward_modules fusion_modules"),
    (_LIST, "modules_to_save target_parameters"),
    (_NAME, "layers_pattern"),
    (_PATTERNS, "alpha_pattern lambda_pattern"),
    (_BY_NAME, "block_size_pattern n_frequency_pattern target_svd_config"),
    (_INDICES, "layers_to_transform trainable_token_indices token_indices alora_invocation_tokens"),
    (_INDICES, "cpt_token_ids cpt_mask cpt_tokens_type_mask"),
    (_REPEATED, "layer_replication"),
    (_START, "init_lora_weights init_weights"),
    (
        _FLAG,
        "inference_mode fan_in_fan_out use_rslora use_dora use_qalora lora_bias ensure_weight_tying init_ia3_weights "
        "prefix_projection use_asa use_dynamic_rank para save_projection progressbar runtime_offload_base_weight "
        "apply_GS use_effective_conv2d decompose_both rank_dropout_scale coft block_share use_cayley_neumann "
        "psoft_orth psoft_mag_b psoft_mag_a sample_at_inference sparse very_sparse select_top "
        "save_precomputed_indices save_indices save_only_topk_weights use_idwt proportional_parameters",
    ),
    (
        _SIZE,
        "r num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers "
        "encoder_hidden_size encoder_num_layers init_r target_r hybrid_r mini_r adapter_len adapter_layers "
        "num_frozen_tokens num_ranks num_tasks n_tasks n_skills n_splits depth num_B stride_A num_subspaces "
        "subspace_rank block_size boft_block_size boft_block_num boft_n_butterfly_factor oft_block_size group_size "
        "gralora_k qalora_group_size num_cayley_neumann_terms psoft_svd_lowrank_niter vector_length num_vectors topk",
    ),
    (
        _NUMBER,
        "lora_alpha lora_dropout tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step asa_target_subspaces "
        "init_warmup final_warmup mask_interval asa_importance_beta asa_uncertainty_beta asa_schedule_exponent "
        "svd_threshold random_seed boft_dropout opt_loss_decay_factor opt_projection_epsilon "
        "opt_projection_format_epsilon init_scale alpha deft_dropout delora_lambda module_dropout n_frequency scaling "
        "random_loc_seed projection_prng_key frod_dropout sparse_rate regularization_alpha gralora_dropout "
        "hira_dropout rank_dropout decompose_factor miss_dropout eps prompt_tuning_init_task effective_rank "
        "encoder_dropout psoft_alpha psoft_dropout cayley_neumann_eps pvera_dropout d_initial generator_seed "
        "randlora_dropout randlora_alpha sparsity u weight_tying projection_seed init_v_bound tinylora_dropout "
        "proj_seed theta_d_length unilora_dropout init_theta_d_bound vblora_dropout init_vector_bank_bound "
        "init_logits_std vera_dropout",
    ),
    (
        _RECORD,
        "kasa_config eva_config corda_config lora_ga_config loftq_config velora_config monteclora_config "
        "use_bdlora arrow_config",
    ),
    # of bottlenecks
    (_WORD, "placement activation"),
    (_SIZE, "size"),
    (_INDICES, "leave_out"),
    (_FLAG, "last_norm"),
    # of adapters that read a source side, which peft never sees
    (_WORD, "first-stage fusion source_state answer_source padding source_encoder source_encoder_dtype"),
    (_WORD, "source_encoder_revision source_encoder_fingerprint"),
    (_NUMBER, "layer ratio answer_consistency state_consistency"),
)
KNOWN: Mapping[str, _Kind] = {key: kind for kind, keys in _KNOWN for key in keys.split()}
"""Keys that peft may be given, and what they may hold."""

_NAMING = ("ADALORA", "OSF")
"""Kinds whose `rank_pattern` peft reads otherwise than by the end of a path."""
_LOADING_KINDS = {
    "XLORA": "which loads the adapters that it names",
    "SHADOW": "which loads the model that it names",
}


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Check that a configuration loads no code and no model, and that every key holds what it may.

    Args:
        config: Content of the file.
        path: The file.

    Raises:
        UserError: it does, or a key holds something else.
    """
    try:
        json.dumps(config, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(path, f"is not JSON ({error})", "a JSON file", "restore or rewrite it") from None
    _check_loading(config, path)
    named = {**KNOWN, "rank_pattern": _BY_NAME if config.get("peft_type") in _NAMING else _PATTERNS}
    for key, (expected, fits) in named.items():
        value = config.get(key)
        if value is not None and not fits(value):
            raise UserError(path, f"{key} is {_shown(value)}", expected, "mend the file")


def _check_loading(config: Mapping[str, Any], path: Path) -> None:
    kind, mapping = str(config.get("peft_type")), config.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, Mapping) else mapping
    core, imported = config.get("megatron_core"), str(library).split(".")[0]
    config_of_core = "sets megatron_config, by which peft imports the module that megatron_core names"
    loading = {
        f"is of the kind {kind}, {_LOADING_KINDS.get(kind)}": kind in _LOADING_KINDS,
        config_of_core: config.get("megatron_config"),
        f"names the module {_shown(core)} in megatron_core": core not in (None, "megatron.core"),
        f"names the library {_shown(library)} in auto_mapping, which peft may import": library is not None
        and imported not in _HARMLESS,
    }
    mend = "remove the key if you trust where the adapter comes from; nothing here needs it"
    for found, holds in loading.items():
        if holds:
            found = f"{found}: code that comes with an adapter is not run"
            raise UserError(path, found, "plain settings", mend)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


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
        self.rank_stabilised = bool(config.get("use_rslora"))
        self.biased = bool(config.get("lora_bias"))
        self._rank = self._checked_rank("r", config.get("r"))
        self._alpha = self._checked_alpha("lora_alpha", config.get("lora_alpha"))
        self._ranks = self._patterns(config, "rank_pattern", self._checked_rank)
        self._alphas = self._patterns(config, "alpha_pattern", self._checked_alpha)

    @functools.cached_property
    def _bounded(self) -> Patterns:
        return Patterns(self._path)

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
            found = f"{key} is {patterns!r}"
            raise UserError(self._path, found, "numbers by module pattern", "mend the file")
        return [
            (self._bounded.end(pattern), check(f"{key}[{pattern!r}]", value))
            for pattern, value in patterns.items()
        ]


def _first_match(patterns: list[tuple[Pattern, float]], module: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.matches(module)), default)
