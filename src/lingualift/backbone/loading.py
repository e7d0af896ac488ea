"""Loading backbones: checked by their configuration first, then frozen and put on this process's device."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lingualift.backbone.architectures import (
    EAGER,
    WORDS,
    Head,
    bound_of,
    family_of,
    head_modules,
    model_class,
    outside_blocks,
)
from lingualift.backbone.chat import frame
from lingualift.backbone.checkpoint import shapes_in, weight_files
from lingualift.backbone.reference import BackboneRef, load_tokenizer, loading, read_config
from lingualift.errors import UserError, setting
from lingualift.processes import device, multiplies_slowly, settle

# bitsandbytes, which peft imports where it is installed, looks for a kernel on the hub and goes without
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_PROBED = 4  # tokens of each of two texts

_BLOCK = re.compile(r"(?P<path>.+?)\.(?P<number>\d{1,9})\.")

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight: 4 bits, a scale of a byte per 64, and a float32 per 256 scales (QLoRA, arXiv 2305.14314)."""


@functools.cache
def check_loadable(ref: BackboneRef) -> None:
    """Check all of a backbone that can be checked without its weights: configuration, tokenizer, the weights' headers.

    Raises:
        UserError: something is damaged, or is not of the same model.
    """
    skeleton(ref)
    load_tokenizer(ref)


def skeleton(ref: BackboneRef) -> Any:
    """The model without its weights, made from its config alone, on torch's `meta` device.

    Raises:
        UserError: the config is none of a language model, or not that of the folder's weights.
    """
    model = blank(ref)
    _check_shapes(ref, model)
    return model


def blank(ref: BackboneRef) -> Any:
    """The model that a config makes, whatever weights lie beside it; raises a `UserError` if it makes none."""
    import torch

    config = _headed(read_config(ref), ref.head)
    kind = model_class(ref.family, ref.head)
    with loading(ref.name), torch.device("meta"):
        return kind.from_config(config, trust_remote_code=ref.trust_remote_code)


def _check_shapes(ref: BackboneRef, model: Any) -> None:
    """Refuse a folder whose weights are those of another configuration, before they are loaded.

    What is called by one name in both is compared; transformers tells the rest when it loads them. Rounded weights have
    shapes of their own.
    """
    if ref.revision is not None or hasattr(model.config, "quantization_config"):
        return
    found = {
        name: shape for file in weight_files(Path(ref.source)) for name, shape in shapes_in(file).items()
    }
    heads = head_modules(model) if ref.head.kind != "words" else ()
    for name, weight in model.named_parameters():
        shape = found.get(name, tuple(weight.shape))
        if math.prod(shape) != weight.numel() and not any(part in heads for part in name.split(".")):
            raise UserError(
                f"backbone {ref.name!r}",
                f"its weights are not of its config.json: {name} is {list(shape)}, and {list(weight.shape)} by that",
                "files of one model",
                "download config.json and weights again",
            )
    _check_left_out(ref, model, found)


def _check_left_out(ref: BackboneRef, model: Any, names: Iterable[str]) -> None:
    """Refuse weights of blocks that the configuration leaves out, which transformers would pass over.

    Args:
        ref: The backbone.
        model: What its configuration makes.
        names: Of its weights.

    Raises:
        UserError: some are of blocks behind the model's last, which it does not say that it ignores.
    """
    import torch

    lists = {path: len(part) for path, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)}
    passed = model._keys_to_ignore_on_load_unexpected or ()
    left: dict[str, str] = {}
    for name in sorted(names):
        inside = _BLOCK.match(name)
        beyond = inside and int(inside["number"]) >= lists.get(inside["path"], math.inf)
        if inside and beyond and not any(re.search(pattern, name) for pattern in passed):
            left[inside[0]] = name
    ahead = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    if len(left) > ahead:  # blocks that only guess further tokens are left out for good
        raise UserError(
            f"backbone {ref.name!r}",
            f"its config.json leaves out blocks that it has weights of ({next(iter(left.values()))})",
            "files of one model",
            "download config.json and weights again",
        )


def _headed(config: Any, head: Head, *, tied: bool = False) -> Any:
    """A configuration with as many outputs as a head has; `tied`: the head for words is the embeddings'."""
    if not head.outputs and not tied:
        return config
    changed = copy.deepcopy(config)
    if head.outputs:
        changed.num_labels = head.outputs
    else:
        changed.tie_word_embeddings = True
    return changed


@functools.cache
def parameters_of(ref: BackboneRef) -> int:
    """Numbers in a model's weights, from its configuration alone; what is shared counts once."""
    return sum(parameter.numel() for parameter in skeleton(ref).parameters())


def weight_bytes(ref: BackboneRef) -> int:
    """Bytes that the weights take once they are loaded, told from the config alone.

    Raises:
        UserError: the config is none of a language model.
    """
    import torch

    model = skeleton(ref)
    wide = set(model._keep_in_fp32_modules or ()) if ref.dtype == "float16" else set()
    alone = set(outside_blocks(model))
    rounded = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if ref.quantization and isinstance(module, torch.nn.Linear) and name not in alone
    }
    total = 0.0
    for name, weight in model.named_parameters():
        if name in rounded:
            total += weight.numel() * NF4_BYTES
        else:
            total += weight.numel() * (4 if wide & set(name.split(".")) else BYTES[ref.dtype])
    return round(total)


def scored_bytes(model: Any, tokens: int) -> int:
    """Bytes that a row of so many tokens takes while it is scored: keys and values, and the logits of a token."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return int(
        2 * config.num_hidden_layers * width * tokens * model.dtype.itemsize + 2 * 4 * config.vocab_size
    )


@functools.lru_cache(maxsize=1)
def load_backbone(ref: BackboneRef) -> tuple[Any, Any]:
    """As `load_model`; the last one stays resident."""
    return load_model(ref)


def load_model(ref: BackboneRef) -> tuple[Any, Any]:
    """The model (frozen, in eval mode, on this process's device) and its tokenizer.

    A head that the checkpoint does not hold has weights of no meaning until an adapter brings its own; their names
    are the model's `fresh_weights`. A head for words that `ref.words` names is put in its place, frozen too.

    Raises:
        UserError: the model or tokenizer cannot be loaded; weights of the model are missing.
    """
    import torch
    import transformers

    from lingualift.backbone.products import attend_unplanned, attend_wide, multiply_wide

    settle()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = read_config(ref)
    tokenizer = load_tokenizer(ref)
    kind, headed = model_class(ref.family, ref.head), _headed(config, ref.head, tied=_is_tied(ref))
    placed = _placement(ref)
    try:
        with loading(ref.name):
            model, loaded = kind.from_pretrained(
                ref.source,
                config=headed,
                dtype=getattr(torch, ref.dtype),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=ref.head.kind
                != "words",  # a head of another size is none of this task
                **_attention(config),
                **placed,
                revision=ref.revision,
                trust_remote_code=ref.trust_remote_code,
            )
    except UserError:
        skeleton(ref)  # which tells more, where sizes disagree
        raise
    fresh = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
    _check_loaded(ref, model, fresh)
    _check_left_out(ref, model, loaded["unexpected_keys"])
    _check_ids(ref, model, tokenizer)
    model.fresh_weights = fresh
    if ref.head == WORDS and ref.words is not None:
        _put_words(model, ref.words)
    _check_placed(ref, model)
    _keep_packing(model)
    _bound(model)
    read_in_order(model)
    if ref.head.kind != "words":
        _widen_head(model)
    if hasattr(
        model, "generation_config"
    ):  # what a backbone ships (penalties, sampling) is not greedy decoding
        model.generation_config = transformers.GenerationConfig(
            eos_token_id=ends_of(tokenizer) or None, pad_token_id=tokenizer.pad_token_id
        )
    model.requires_grad_(False).eval()
    if multiplies_slowly(model.dtype, device()):
        multiply_wide(model)
        attend_wide(model)
    if device() == "cuda":
        attend_unplanned(model)
    return model if ref.device_map or ref.quantization else model.to(device()), tokenizer


def _is_tied(ref: BackboneRef) -> bool:
    """Whether the head for words is the embeddings', since the checkpoint has none."""
    return ref.head == WORDS and ref.lacks_words


def _check_loaded(ref: BackboneRef, model: Any, missing: Iterable[str]) -> None:
    """Refuse a checkpoint that leaves weights out which no adapter brings."""
    head = () if ref.head.kind == "words" and not ref.lacks_words else head_modules(model)
    lost = sorted(key for key in missing if not any(part in head for part in key.split(".")))
    if lost:
        raise UserError(
            f"backbone {ref.name!r}",
            f"its checkpoint lacks {lost[0]}"
            + (f" and {len(lost) - 1} more weights" if len(lost) > 1 else ""),
            f"all weights of {type(model).__name__}",
            "take the checkpoint that was pretrained, with the head that it was pretrained with",
        )


def _check_ids(ref: BackboneRef, model: Any, tokenizer: Any) -> None:
    """Refuse ids that the model has no embedding for: special ones now, and those of texts when they are read.

    A GPU would die of them; to look there costs a wait for each batch, so that only a processor's are looked at.
    """
    table = model.get_input_embeddings()
    rows = table.weight.shape[0]

    def refuse(token: int) -> None:
        if token >= rows:
            raise UserError(
                f"backbone {ref.name!r}",
                f"its tokenizer writes id {token}, and it has embeddings of {rows} ids",
                "files of one model",
                "download tokenizer and weights again",
            )

    def check(_: Any, given: tuple[Any, ...]) -> None:
        if given and given[0].numel() and given[0].device.type == "cpu":
            refuse(int(given[0].max()))

    for token in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        refuse(token or 0)
    table.register_forward_pre_hook(check)


def _put_words(model: Any, folder: Path) -> None:
    """Put a trained head for words where the checkpoint has none."""
    from lingualift.backbone.words import load_words

    load_words(model, folder)
    model.fresh_weights = {
        name for name in model.fresh_weights if name.split(".")[0] not in head_modules(model)
    }


def _attention(config: Any) -> dict[str, str]:
    """The attention that an architecture demands; nothing where it takes any."""
    return {"attn_implementation": "eager"} if config.model_type in EAGER else {}


def _placement(ref: BackboneRef) -> dict[str, Any]:
    """How weights are rounded and where they go, as arguments of `from_pretrained`."""
    import torch
    import transformers

    placed: dict[str, Any] = {"device_map": ref.device_map} if ref.device_map else {}
    if ref.quantization is None:
        return placed
    nf4 = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, ref.dtype),
        llm_int8_skip_modules=outside_blocks(skeleton(ref)),
    )
    return {"device_map": device(), **placed, "quantization_config": nf4}


def _check_placed(ref: BackboneRef, model: Any) -> None:
    """Refuse a model that does not fit its devices: adapters cannot be trained on weights that come and go."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if "disk" in places or ("cpu" in places and len(places) > 1):
        raise UserError(
            f"backbone {ref.name!r}",
            f"does not fit: `device_map: auto` put parts of it on {', '.join(sorted(places & {'cpu', 'disk'}))}",
            "GPUs, or a processor's memory, that hold all of it",
            "take `quantization: nf4`, `dtype: bfloat16`, more devices or a smaller backbone",
        )


def _keep_packing(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew while a model is scored on a processor with AVX-512.

    It would round their scales to bfloat16 for good, and gradients would no longer go through them
    (bitsandbytes 0.50, `Linear4bit.forward`).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def read_in_order(model: Any) -> None:
    """Give the head for words a contiguous input, whoever cuts the logits: we, peft or transformers' `generate`.

    States that were cut from longer rows (`logits_to_keep` as a number) are not contiguous, and torch on a processor
    then copies the head's matrix once for every row: 50 s for 16 rows of Gemma 3's 262,144 words, against 0.04 s. It
    does so by the strides alone: of a single row, which counts as contiguous whatever they are, too.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_contiguous)


def _contiguous(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.contiguous().view(-1).view(value.shape) for value in given)


def _widen_head(model: Any) -> None:
    """Hold a head, which is trained, in float32 whatever the backbone is held in."""
    for name in head_modules(model):
        part = model.get_submodule(name if hasattr(model, name) else f"{model.base_model_prefix}.{name}")
        part.float().register_forward_pre_hook(_to_float32)


def _to_float32(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() for value in given)


def ending(tokenizer: Any) -> list[int]:
    """Ids that end an answer: of the assistant's turn, if it is asked by the chat template, else of the text."""
    if tokenizer.chat_template:
        return frame(tokenizer).end
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def ends_of(tokenizer: Any) -> list[int]:
    """Ids that a generated answer stops at: the first of its ending, and the end of the text; none if it has none."""
    return sorted({end for end in (*ending(tokenizer)[:1], tokenizer.eos_token_id) if end is not None})


def base_of(model: Any) -> Any:
    """The model within one that has an adapter on it; itself where it has none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def virtual_tokens(model: Any) -> int:
    """Virtual tokens that an adapter puts before a text (prompt- and prefix-tuning); 0 without such an adapter.

    peft puts them before the padding of a row, too, drops positions, and puts them before tokens that go on from a
    cache once more (0.21): a decoder with them reads every row alone, whole.
    """
    configs = getattr(model, "peft_config", {}).values()
    return sum(config.num_virtual_tokens for config in configs if config.is_prompt_learning)


def check_positions(limit: int | None, where: str, tokens: int, prefix: int = 0) -> None:
    """Check that a model has positions for so many tokens behind a prefix.

    Args:
        limit: How many it has (`bound_of`); None for any number.
        where: The setting that bounds the tokens.
        tokens: Tokens of the longest row.
        prefix: Virtual tokens before them.

    Raises:
        UserError: it has fewer.
    """
    if limit is not None and tokens + prefix > limit:
        behind = f" behind a prefix of {prefix}" if prefix else ""
        found = f"{tokens} tokens{behind} are more than the backbone's {limit} positions"
        raise UserError(where, found, f"at most {limit - prefix} tokens", f"set it to {limit - prefix}")


def check_room(model: Any, tokens: int) -> None:
    """Check that a loaded model, with or without an adapter, has positions for rows of `max_length`.

    Args:
        model: What `load_model` made, or `attach`.
        tokens: Of the longest row.

    Raises:
        UserError: it has fewer.
    """
    check_positions(
        getattr(base_of(model), "bound", None), setting("max_length"), tokens, virtual_tokens(model)
    )


def _bound(model: Any) -> None:
    """Let a model refuse more tokens than it has positions for, which a processor tells late and a GPU dies of."""
    model.bound = bound_of(model)
    if model.bound is not None:
        check = functools.partial(_check_passed, encoder=family_of(model.config) == "encoder")
        model.register_forward_pre_hook(check, with_kwargs=True)


def _check_passed(model: Any, _: Any, given: dict[str, Any], *, encoder: bool) -> None:
    """Of an encoder, what a cache holds is a prefix; else it is what was read or written earlier."""
    read, written = given.get("input_ids"), given.get("decoder_input_ids")
    read = given.get("inputs_embeds") if read is None else read
    cache: Any = given.get("past_key_values")
    earlier = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
    for tokens, before in ((read, earlier if written is None else 0), (written, earlier)):
        if tokens is not None:
            there, prefix = (0, before) if encoder else (before, 0)
            check_positions(model.bound, setting("max_length"), tokens.shape[1] + there, prefix)


def recompute_activations(model: Any) -> None:
    """Switch gradient checkpointing on, which transformers calls activation checkpointing from 5.23 on."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def keeps_apart(model: Any) -> bool:
    """Whether a decoder keeps texts apart that follow each other in one row, their positions beginning anew.

    Most of transformers' do; BLOOM, MPT, Falcon with ALiBi, XGLM and recurrent models go on reading. It is tried: what
    the second of two texts answers has no gradient, exactly, of what was read before it.
    """
    import torch

    base = base_of(model)
    if hasattr(base, "keeps_apart"):
        return bool(base.keeps_apart)
    read: list[Any] = []

    def keep(_: Any, __: Any, output: Any) -> Any:
        read.append(output.detach().requires_grad_())
        return read[-1].clone()  # which some models scale in place

    table = base.get_input_embeddings()
    ids = torch.arange(2 * _PROBED, device=table.weight.device)[None] % table.weight.shape[0]
    hook = table.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = base(input_ids=ids, position_ids=ids % _PROBED, use_cache=False).logits[0, _PROBED:]
            (logits.float() * torch.linspace(-1, 1, logits.shape[-1], device=logits.device)).sum().backward()
    finally:
        hook.remove()
    base.keeps_apart = not read[0].grad[0, :_PROBED].any()
    return bool(base.keeps_apart)


def keeps_logits(model: Any) -> bool:
    """Whether the model's forward pass can leave out the logits of a prompt (`logits_to_keep`)."""
    return "logits_to_keep" in inspect.signature(base_of(model).forward).parameters
