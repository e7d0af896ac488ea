"""Whether source texts fit into what reads them, told before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lingualift.backbone.architectures import positions_of
from lingualift.backbone.chat import ending
from lingualift.backbone.reference import BackboneRef
from lingualift.encoding.parallel import (
    TextReader,
    answered_sources,
    encoder_texts,
    read_own,
    source_prompts,
    source_texts,
    too_long,
)
from lingualift.encoding.text import encode_pair
from lingualift.errors import UserError
from lingualift.tasks import Example

_SPECIAL = 8  # special tokens of a text or a pair, at most


def check_sources(
    ref: BackboneRef,
    config: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    max_length: int,
    learnt: bool = False,
) -> None:
    """Check that sources fit, without a model; only those long enough to be in doubt are encoded.

    Args:
        ref: The backbone.
        config: transformers' configuration of it.
        tokenizer: Its tokenizer.
        examples: Rows with their `source`.
        max_length: Tokens that a source may have.
        learnt: Whether it is answered too, which on decoders follows the prompt.

    Raises:
        UserError: as `source_prompts`, `source_texts` and `answered_sources`.
    """
    limit = min(max_length, positions_of(config) or max_length)
    if learnt and ref.family == "decoder":
        _check_answered(ref, tokenizer, examples, limit)
    long = [row for row in examples if ref.chat or (row.source and _bytes(row.source) + _SPECIAL > limit)]
    if not long or (ref.family == "encoder" and long[0].starts):
        return  # passages are read in windows
    if ref.family == "encoder":
        source_texts(tokenizer, long, max_length)
    else:
        source_prompts(config, tokenizer, long, max_length)


def check_own_texts(translator: TextReader, ref: BackboneRef, examples: Sequence[Example]) -> None:
    """Check that the rows' own texts fit a translator; only those long enough to be in doubt are encoded.

    Raises:
        UserError: as `TextReader.read`.
    """
    limit = translator.limit
    long = [row for row in examples if limit is not None and _bytes(row) + _SPECIAL > limit]
    if ref.family != "encoder":
        read_own(translator, [(row, (row.prompt,)) for row in long])
    elif long and not long[0].starts:  # passages are read in windows
        read_own(translator, [(row, parts) for row in long for parts in encoder_texts(row)])


def _check_answered(ref: BackboneRef, tokenizer: Any, examples: Sequence[Example], limit: int) -> None:
    """Check that sources fit with the answers that follow them."""
    room = limit - len(ending(tokenizer))
    for source in answered_sources(ref, examples):
        if ref.chat or _bytes(source) + len(source.answer.encode()) + _SPECIAL > limit:
            pair = encode_pair(tokenizer, source.prompt, source.answer, room)
            if pair.truncated:
                raise too_long(f"source of example {source.id!r}", limit + pair.truncated, limit)


def _bytes(example: Example) -> int:
    """No fewer than its tokens, but for special ones."""
    options = max((len(text.encode()) for text in example.options.values()), default=0)
    return max(len(example.prompt.encode()), sum(len(text.encode()) for text in example.parts) + options)


def check_kept(ref: BackboneRef, tokenizer: Any) -> None:
    """Check that source states can be kept: token types, by which encoders such as BERT tell texts apart, are not.

    Raises:
        UserError: the backbone is an encoder, and its tokenizer gives token types.
    """
    if ref.family == "encoder" and "token_type_ids" in tokenizer.model_input_names:
        found = f"keeps no token types, by which the tokenizer of {ref.name!r} tells the texts of a pair"
        raise UserError("flare.cache_sources", found, "false", "leave it out")
