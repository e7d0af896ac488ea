"""The source side of rows, for adapters that read it: what stands beside each text, and batches of it.

It is the row's text in the source language; with a translator (FLARE-MT) it is the row's own text, which the encoder of
a translation model reads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lingualift.backbone.architectures import family_of, positions_of
from lingualift.backbone.chat import ending
from lingualift.backbone.loading import BackboneRef
from lingualift.encoding.heads import Window, encode_choices, encode_classes, encode_windows
from lingualift.encoding.text import encode_pair, encode_prompt, set_language
from lingualift.errors import UserError
from lingualift.tasks import Example

if TYPE_CHECKING:
    from lingualift.fusion.translator import Translator

Side = dict[str, list[int]]
"""A source text as a fused model takes it: `source_input_ids` and, for some encoders, `source_token_type_ids`."""

PREFIX = "source_"
_SPECIAL = 8  # special tokens of a text or a pair, at most


def prompt_sides(
    config: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    max_length: int,
    translator: Translator | None = None,
) -> list[Side]:
    """The source's prompts, for decoders and encoder-decoders.

    Args:
        config: transformers' configuration of the backbone.
        tokenizer: Its tokenizer; what it is told of the target's language stays.
        examples: Rows with their `source`.
        max_length: Tokens that a source may have; a translator's encoder reads as many as it has positions for.
        translator: Reads the rows' own prompts instead.

    Raises:
        UserError: a row without a source, a source that is too long, a language without a tag.
    """
    if translator is not None:
        return _own(translator, [(row, (row.prompt,)) for row in examples])
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


def class_sides(
    tokenizer: Any, examples: Sequence[Example], max_length: int, translator: Translator | None = None
) -> list[list[Side]]:
    """What stands beside the texts of each example: one of an example with classes, one for each of its choices.

    Raises:
        UserError: a row without a source, a source that is too long, one with another number of choices.
    """
    if translator is not None:
        return [_own(translator, [(row, parts) for parts in _texts(row)]) for row in examples]
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


def answering(ref: BackboneRef, examples: Sequence[Example]) -> list[Example]:
    """The source sides with their answers: their own, or the rows' where both choose from the same labels.

    Raises:
        UserError: a row without a source, or one whose answer nobody knows.
    """
    found = []
    for row, source in sources_of(examples):
        if not (source.gold or row.choices or ref.head.kind in ("classes", "choices")):
            raise UserError(
                f"source of example {row.id!r}",
                "has no answer, which an X-Mixup adapter learns too",
                "labelled rows in the source language",
                "read them with their labels (`Beside(..., labelled=True)`)",
            )
        found.append(replace(source, gold=source.gold or row.gold))
    return found


def check_sides(
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
        UserError: as `prompt_sides`, `class_sides` and `answering`.
    """
    limit = min(max_length, positions_of(config) or max_length)
    if learnt and ref.family == "decoder":
        _check_answered(ref, tokenizer, examples, limit)
    long = [row for row in examples if ref.chat or (row.source and _bytes(row.source) + _SPECIAL > limit)]
    if not long or (ref.family == "encoder" and long[0].starts):
        return  # passages are read in windows
    if ref.family == "encoder":
        class_sides(tokenizer, long, max_length)
    else:
        prompt_sides(config, tokenizer, long, max_length)


def check_own(translator: Translator, ref: BackboneRef, examples: Sequence[Example]) -> None:
    """Check that the rows' own texts fit a translator; only those long enough to be in doubt are encoded.

    Raises:
        UserError: as `Translator.read`.
    """
    limit = translator.limit
    long = [row for row in examples if limit is not None and _bytes(row) + _SPECIAL > limit]
    if ref.family != "encoder":
        _own(translator, [(row, (row.prompt,)) for row in long])
    elif long and not long[0].starts:  # passages are read in windows
        _own(translator, [(row, parts) for row in long for parts in _texts(row)])


def _check_answered(ref: BackboneRef, tokenizer: Any, examples: Sequence[Example], limit: int) -> None:
    """Check that sources fit with the answers that follow them."""
    room = limit - len(ending(tokenizer))
    for source in answering(ref, examples):
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


def window_sides(
    tokenizer: Any,
    example: Example,
    max_length: int,
    own: Sequence[Window],
    translator: Translator | None = None,
) -> list[Side]:
    """What stands beside each of an example's own windows: the source's window of the same number, or its last.

    A translator reads the question and the part of the passage that is in the window.

    Raises:
        UserError: it has no source.
    """
    if translator is not None:
        question, passage = example.parts
        there = [[place for place in window.places if place] for window in own]
        cuts = [passage[places[0][0] : places[-1][1]] if places else "" for places in there]
        return _own(translator, [(example, (question, cut)) for cut in cuts])
    ((_, source),) = sources_of([example])
    windows = encode_windows(tokenizer, source, max_length)
    return [_side(windows[min(place, len(windows) - 1)].inputs) for place in range(len(own))]


def _own(translator: Translator, rows: Sequence[tuple[Example, Sequence[str]]]) -> list[Side]:
    """Texts of rows, as a translator reads them."""
    texts = [(f"example {row.id!r}", row.language, parts) for row, parts in rows]
    return [{f"{PREFIX}input_ids": ids} for ids in translator.read(texts)]


def _texts(example: Example) -> list[Sequence[str]]:
    """What an encoder reads of an example, by `encode_choices` and `encode_classes`."""
    if example.options:
        return [(" ".join(example.parts), text) for text in example.options.values()]
    return [example.parts or (example.prompt,)]


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
            "say where it is (`--beside` of predict and evaluate, `Source.beside` in a script), or take "
            "another adapter",
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
    return prompt_sides(model.get_base_model().config, tokenizer, examples, max_length, translator_on(model))


def is_fused(model: Any) -> bool:
    """Whether a model has an adapter on it that reads a source side."""
    return hasattr(model, "fusion_config")


def translator_on(model: Any) -> Translator | None:
    """What makes the source side of the rows' own texts, on a model with a source encoder."""
    return getattr(model, "translator", None)


def source_pad(model: Any, tokenizer: Any) -> int:
    """Id of the padding token of what reads the source: the source encoder's, or the backbone's."""
    translator = translator_on(model)
    return int(tokenizer.pad_token_id if translator is None else translator.pad)


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
