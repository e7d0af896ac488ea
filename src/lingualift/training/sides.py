"""The source side of rows, for adapters that read it: the source text beside each text, and their batches."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lingualift.architectures import family_of, positions_of
from lingualift.attachment import is_fused
from lingualift.errors import UserError
from lingualift.tasks import Example
from lingualift.training.encoding import encode_prompt, set_language
from lingualift.training.heads import encode_choices, encode_classes, encode_windows

Side = dict[str, list[int]]
"""A source text as a fused model takes it: `source_input_ids` and, for some encoders, `source_token_type_ids`."""

PREFIX = "source_"


def prompt_sides(config: Any, tokenizer: Any, examples: Sequence[Example], max_length: int) -> list[Side]:
    """The source's prompts, for decoders and encoder-decoders.

    Args:
        config: transformers' configuration of the backbone.
        tokenizer: Its tokenizer; what it is told of the target's language stays.
        examples: Rows with their `source`.
        max_length: Tokens that a source may have.

    Raises:
        UserError: a row without a source, a source that is too long, a language without a tag.
    """
    sources = sources_of(examples)
    named = [(f"source of example {row.id!r}", source.prompt) for row, source in sources]
    with _speaking(tokenizer, sources[0][1].language):
        return [{f"{PREFIX}input_ids": ids} for ids in read_texts(config, tokenizer, named, max_length)]


def read_texts(
    config: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], max_length: int | None
) -> list[list[int]]:
    """Ids of source texts, as the model that reads them does: prompts on decoders, which nothing ends.

    Args:
        config: transformers' configuration of that model.
        tokenizer: Its tokenizer.
        texts: What each is called in messages, and the text.
        max_length: Tokens that a text may have; None for as many as the model has positions for.

    Raises:
        UserError: an empty text, or one over the limit.
    """
    prompts = family_of(config) == "decoder"
    limit = min(size for size in (max_length, positions_of(config), sys.maxsize) if size is not None)
    rows = []
    for where, text in texts:
        if not text.strip():
            raise UserError(where, "is empty", "a translation", "translate it")
        row = encode_prompt(tokenizer, text) if prompts else list(tokenizer(text)["input_ids"])
        if len(row) > limit:
            raise too_long(where, len(row), limit)
        rows.append(row)
    return rows


def too_long(where: str, tokens: int | None, limit: int) -> UserError:
    """The error of a source over the limit."""
    return UserError(
        where,
        f"has {tokens or 'more'} tokens",
        f"at most {limit}",
        "raise max_length (up to the positions that the model has) or shorten it: it is not cut",
    )


def class_sides(tokenizer: Any, examples: Sequence[Example], max_length: int) -> list[list[Side]]:
    """What stands beside the texts of each example: one of an example with classes, one for each of its choices.

    Raises:
        UserError: a row without a source, a source that is too long, one with another number of choices.
    """
    found = []
    for row, source in sources_of(examples):
        whole = bool(row.options)
        texts = (
            encode_choices(tokenizer, source, max_length)
            if whole
            else [encode_classes(tokenizer, source, max_length)]
        )
        if any(text.truncated for text in texts):
            raise too_long(f"source of example {row.id!r}", None, max_length)
        if whole and list(row.options) != list(source.options):
            raise UserError(
                f"source of example {row.id!r}",
                f"has the choices {', '.join(source.options)}",
                f"{', '.join(row.options)}, as its row",
                "pair the rows",
            )
        found.append([_side(text.inputs) for text in texts])
    return found


def window_sides(tokenizer: Any, example: Example, max_length: int, count: int) -> list[Side]:
    """What stands beside each of `count` windows of an example: the source's window of the same number, or its last.

    Raises:
        UserError: it has no source.
    """
    ((_, source),) = sources_of([example])
    windows = encode_windows(tokenizer, source, max_length)
    return [_side(windows[min(place, len(windows) - 1)].inputs) for place in range(count)]


def _side(inputs: Mapping[str, list[int]]) -> Side:
    """A text's inputs under the names of the source's; the mask follows from the padding."""
    return {f"{PREFIX}{name}": ids for name, ids in inputs.items() if name != "attention_mask"}


def sources_of(examples: Sequence[Example]) -> list[tuple[Example, Example]]:
    """Each example and its source.

    Raises:
        UserError: a row without one.
    """
    found = [(row, row.source) for row in examples if row.source is not None]
    if len(found) < len(examples):
        lacking = [row.id for row in examples if row.source is None]
        more = f" and {len(lacking) - 1} more rows" if len(lacking) > 1 else ""
        raise UserError(
            f"example {lacking[0]!r}{more}",
            "has no source side, which a fused adapter reads",
            "the same row in the source language beside it",
            "say where it is (`beside`), or take another adapter",
        )
    return found


@contextmanager
def _speaking(tokenizer: Any, language: str) -> Iterator[None]:
    """A tokenizer that tags its texts is told another language for a while."""
    before = getattr(tokenizer, "src_lang", None)
    set_language(tokenizer, language)
    try:
        yield
    finally:
        if before is not None:
            tokenizer.src_lang = tokenizer.tgt_lang = before


def scored_sides(model: Any, tokenizer: Any, examples: Sequence[Example], max_length: int) -> list[Side]:
    """As `prompt_sides` for a fused model; nothing for each example where the model reads no source."""
    if not is_fused(model):
        return [{} for _ in examples]
    return prompt_sides(model.get_base_model().config, tokenizer, examples, max_length)


def pad_sides(sides: Sequence[Side], pad: int, device: Any = None) -> dict[str, Any]:
    """Tensors (b, m) of the sides of a batch, padded on the right, with their mask; none for sides that are empty.

    Args:
        sides: Ids of each row's source.
        pad: Id of the padding token of the model that reads them.
        device: Where the tensors go.
    """
    import torch

    if not sides or not sides[0]:
        return {}
    ids = f"{PREFIX}input_ids"
    longest = max(len(side[ids]) for side in sides)

    def padded(rows: Sequence[list[int]], filler: int) -> Any:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=device)

    batch = {key: padded([side[key] for side in sides], pad if key == ids else 0) for key in sides[0]}
    return {**batch, f"{PREFIX}attention_mask": padded([[1] * len(side[ids]) for side in sides], 0)}
