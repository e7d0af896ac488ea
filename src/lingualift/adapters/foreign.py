"""Somebody's `adapter_config.json`, read by a list of keys that are known.

Such a file is data of others, and peft does what it says: imports a module, loads another model, fetches a tokenizer.
Every key that peft is given stands here with what it may hold; what makes peft load code or models is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lingualift.adapters.patterns import is_simple
from lingualift.errors import UserError

MAX_SIZE = 100_000
"""Above it no rank, width or number of layers or virtual tokens lies."""
MAX_LAYERS = 1_000
"""Layers that `layer_replication` may make."""

_HARMLESS = ("transformers", "peft", "torch")
"""Libraries that `auto_mapping` may name: those that are imported anyway."""


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(entry) is int and abs(entry) < 2**63 for entry in value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | str) or _is_number(value) or _is_words(value)


def _is_repetition(value: Any) -> bool:
    pairs = isinstance(value, list) and all(_is_numbers(pair) and len(pair) == 2 for pair in value)
    return pairs and all(0 <= a < b for a, b in value) and sum(b - a for a, b in value) <= MAX_LAYERS


_Kind = tuple[str, Callable[[Any], bool]]
_FLAG: _Kind = (
    "true or false",
    lambda value: isinstance(value, bool) or (type(value) is int and value in (0, 1)),
)
_NUMBER: _Kind = "a number", _is_number
_SIZE: _Kind = f"a whole number above 0, at most {MAX_SIZE}", _is_size
_WORD: _Kind = "text", lambda value: isinstance(value, str)
_NAMES: _Kind = "a pattern or a list of names", lambda value: isinstance(value, str) or _is_words(value)
_LIST: _Kind = "a list of names", lambda value: _is_words(value) and all(map(is_simple, value))
_NAME: _Kind = (
    "a name or a list of names",
    lambda value: (isinstance(value, str) and is_simple(value)) or _LIST[1](value),
)
_PATTERNS: _Kind = (
    "numbers by module pattern",
    lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
)
_BY_NAME: _Kind = (
    "numbers by module",
    lambda value: (
        isinstance(value, dict)
        and all(map(is_simple, value))
        and all(_is_number(entry) or _is_flags(entry) for entry in value.values())
    ),
)
_INDICES: _Kind = (
    "whole numbers, or lists of them by module",
    lambda value: (
        type(value) is int
        or _is_numbers(value)
        or (isinstance(value, dict) and all(map(_is_numbers, value.values())))
    ),
)
_START: _Kind = "true, false or a name", lambda value: isinstance(value, bool | str)
_RECORD: _Kind = (
    "plain settings",
    lambda value: (
        isinstance(value, bool) or (isinstance(value, dict) and all(map(_is_plain, value.values())))
    ),
)
_REPEATED: _Kind = f"pairs of layers, {MAX_LAYERS} in all at most", _is_repetition


def _is_flags(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, bool) for entry in value)


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
    (
        _INDICES,
        "layers_to_transform trainable_token_indices token_indices alora_invocation_tokens cpt_token_ids",
    ),
    (_INDICES, "cpt_mask cpt_tokens_type_mask"),
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
    # of adapters that read a source side, which peft never sees
    (_WORD, "first-stage fusion source_state answer_source padding source_encoder source_encoder_dtype"),
    (_WORD, "source_encoder_revision source_encoder_fingerprint"),
    (_NUMBER, "layer ratio answer_consistency state_consistency"),
)
KNOWN: Mapping[str, _Kind] = {key: kind for kind, keys in _KNOWN for key in keys.split()}
"""Keys that peft may be given, and what they may hold."""

BEGUN_BY = (
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "prompt_tuning_init_task",
    "tokenizer_name_or_path",
)
"""Keys of how virtual tokens began. peft would load a tokenizer by them, to draw what the adapter's tensors replace."""

IGNORED = (
    "auto_mapping",
    "megatron_config",
    "megatron_core",
    "runtime_config",
    "tokenizer_kwargs",
    "prompt_tuning_init_state_dict_path",
)
"""Keys of peft's that it is never given."""

_NAMING = ("ADALORA", "OSF")
"""Kinds whose `rank_pattern` peft reads otherwise than by the end of a path."""
_LOADING_KINDS = {
    "XLORA": "which loads the adapters that it names",
    "SHADOW": "which loads the model that it names",
}


def check(config: Mapping[str, Any], path: Path) -> None:
    """Check that a configuration loads no code and no model, and that every key holds what it may.

    Args:
        config: Content of the file.
        path: The file.

    Raises:
        UserError: it does, or a key holds something else.
    """
    _check_json(config, path)
    _check_loading(config, path)
    named = {**KNOWN, "rank_pattern": _BY_NAME if config.get("peft_type") in _NAMING else _PATTERNS}
    for key, (expected, fits) in named.items():
        value = config.get(key)
        if value is not None and not fits(value):
            raise UserError(path, f"{key} is {_shown(value)}", expected, "mend the file")


def unknown(config: Mapping[str, Any], defaults: Mapping[str, Any], path: Path) -> None:
    """Check that nothing is set that peft knows and this list does not: what it would do cannot be told.

    Args:
        config: The adapter's configuration.
        defaults: The fields of peft's class for its kind, with their defaults.
        path: The file.

    Raises:
        UserError: something is.
    """
    for key in sorted(config.keys() & defaults.keys() - {*KNOWN, "rank_pattern", *IGNORED}):
        if config[key] and config[key] != defaults[key]:
            mend = "update lingualift, or train an adapter without it"
            raise UserError(path, f"sets {key}, which is not known here", "keys that are known", mend)


def _check_json(config: Mapping[str, Any], path: Path) -> None:
    try:
        json.dumps(config, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(path, f"is not JSON ({error})", "a JSON file", "restore or rewrite it") from None


def _check_loading(config: Mapping[str, Any], path: Path) -> None:
    kind, mapping = str(config.get("peft_type")), config.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, Mapping) else mapping
    core = config.get("megatron_core")
    loading = {
        f"is of the kind {kind}, {_LOADING_KINDS.get(kind)}": kind in _LOADING_KINDS,
        "sets megatron_config, by which peft imports the module that megatron_core names": config.get(
            "megatron_config"
        ),
        f"names the module {_shown(core)} in megatron_core": core not in (None, "megatron.core"),
        f"names the library {_shown(library)} in auto_mapping, which peft may import": library is not None
        and str(library).split(".")[0] not in _HARMLESS,
    }
    for found, holds in loading.items():
        if holds:
            mend = "remove the key if you trust where the adapter comes from; nothing here needs it"
            raise UserError(
                path, f"{found}: code that comes with an adapter is not run", "plain settings", mend
            )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
