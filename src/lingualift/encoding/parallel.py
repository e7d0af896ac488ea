"""The source side of rows, for adapters that read it: what stands beside each text, and batches of it.

It is the row's text in the source language; with a translator (FLARE-MT) it is the row's own text, which the encoder of
a translation model reads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lingualift.adapters import open_adapter
from lingualift.adapters.config import FUSED
from lingualift.backbone.architectures import family_of, positions_of
from lingualift.backbone.reference import BackboneRef
from lingualift.encoding.heads import Window, encode_choices, encode_classes, encode_windows
from lingualift.encoding.text import encode_prompt, set_language
from lingualift.errors import UserError
from lingualift.languages import language as find_language
from lingualift.tasks import Example

SourceInputs = dict[str, list[int]]
"""A source text as a fused model takes it: `source_input_ids` and, for some encoders, `source_token_type_ids`."""

PREFIX = "source_"


class TextReader(Protocol):
    """What reads the rows' own text (FLARE-MT); `lingualift.fusion.translator` has it."""

    @property
    def pad(self) -> int:
        """Id of its padding token."""

    @property
    def limit(self) -> int | None:
        """The most tokens that a text may have."""

    def read(self, texts: Sequence[tuple[str, str, Sequence[str]]]) -> list[list[int]]:
        """Token ids of texts: what each is called in messages, the code of its language, and the text or the pair."""


def source_language(adapter: Path | None, beside: object, language: str | None) -> str | None:
    """Code of the language of the source side that rows are given with, which an adapter must read.

    Args:
        adapter: Adapter folder; None for the plain backbone.
        beside: Where the source side is; None for rows alone.
        language: Its language; the one that the adapter was trained with if None.

    Returns:
        The code; None without a source side.

    Raises:
        UserError: no adapter, or a damaged one; no source side, and the adapter reads one; a source side, and it reads
            none; a language that is not told or not known.
    """
    opened = None if adapter is None else open_adapter(adapter)
    encoder = opened and opened.config.get("source_encoder")
    reads = opened is not None and opened.kind in FUSED and not encoder
    if beside is None and language is not None:
        raise UserError(
            "beside_language (--beside-language)",
            f"is {language!r}, and there are no rows in it",
            mend="name them: `beside` (--beside), or leave it out",
        )
    if beside is None:
        if reads:
            raise UserError(
                adapter,
                "reads each row beside its translation, and there are no translations",
                "the same rows in the source language",
                "name them: `beside` (--beside); `lingualift translate` writes them",
            )
        return None
    if not reads:
        what = "the plain backbone" if adapter is None else str(adapter)
        why = "reads no source side" if not encoder else "makes the source side of the rows' own text"
        mend = "leave it out, or name an adapter that reads a source side (docs/fusing.md)"
        raise UserError("beside (--beside)", f"is given, and {what} {why}", mend=mend)
    recorded = (opened and opened.provenance) or {}
    code = language or recorded.get("beside_language")
    if code is None:
        raise UserError(
            adapter,
            "does not say which language it was trained to read beside the rows",
            "that of `beside`",
            "name it: `beside_language` (--beside-language), for example en",
        )
    find_language(code)
    return str(code)


def source_prompts(
    config: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    max_length: int,
    translator: TextReader | None = None,
) -> list[SourceInputs]:
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
        return read_own(translator, [(row, (row.prompt,)) for row in examples])
    sources = sources_of(examples)
    named = [(f"source of example {row.id!r}", source.prompt) for row, source in sources]
    with speaking(tokenizer, sources[0][1].language):
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


def source_texts(
    tokenizer: Any, examples: Sequence[Example], max_length: int, translator: TextReader | None = None
) -> list[list[SourceInputs]]:
    """What stands beside the texts of each example: one of an example with classes, one for each of its choices.

    Raises:
        UserError: a row without a source, a source that is too long, one with another number of choices.
    """
    if translator is not None:
        return [read_own(translator, [(row, parts) for parts in encoder_texts(row)]) for row in examples]
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
        found.append([_as_source(text.inputs) for text in texts])
    return found


def answered_sources(ref: BackboneRef, examples: Sequence[Example]) -> list[Example]:
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


def source_windows(
    tokenizer: Any,
    example: Example,
    max_length: int,
    own: Sequence[Window],
    translator: TextReader | None = None,
) -> list[SourceInputs]:
    """What stands beside each of an example's own windows: the source's window of the same number, or its last.

    A translator reads the question and the part of the passage that is in the window.

    Raises:
        UserError: it has no source.
    """
    if translator is not None:
        question, passage = example.parts
        there = [[place for place in window.places if place] for window in own]
        cuts = [passage[places[0][0] : places[-1][1]] if places else "" for places in there]
        return read_own(translator, [(example, (question, cut)) for cut in cuts])
    ((_, source),) = sources_of([example])
    windows = encode_windows(tokenizer, source, max_length)
    return [_as_source(windows[min(place, len(windows) - 1)].inputs) for place in range(len(own))]


def read_own(translator: TextReader, rows: Sequence[tuple[Example, Sequence[str]]]) -> list[SourceInputs]:
    """Texts of rows, as a translator reads them."""
    texts = [(f"example {row.id!r}", row.language, parts) for row, parts in rows]
    return [{f"{PREFIX}input_ids": ids} for ids in translator.read(texts)]


def encoder_texts(example: Example) -> list[Sequence[str]]:
    """What an encoder reads of an example, by `encode_choices` and `encode_classes`."""
    if example.options:
        return [(" ".join(example.parts), text) for text in example.options.values()]
    return [example.parts or (example.prompt,)]


def _as_source(inputs: Mapping[str, list[int]]) -> SourceInputs:
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
def speaking(tokenizer: Any, language: str) -> Iterator[None]:
    """A tokenizer that tags its texts is told another language for a while."""
    before = getattr(tokenizer, "src_lang", None)
    set_language(tokenizer, language)
    try:
        yield
    finally:
        if before is not None:
            tokenizer.src_lang = tokenizer.tgt_lang = before


def sources_for(
    model: Any, tokenizer: Any, examples: Sequence[Example], max_length: int
) -> list[SourceInputs]:
    """As `source_prompts` for a fused model; nothing for each example where the model reads no source."""
    if not is_fused(model):
        return [{} for _ in examples]
    return source_prompts(
        model.get_base_model().config, tokenizer, examples, max_length, translator_on(model)
    )


def is_fused(model: Any) -> bool:
    """Whether a model has an adapter on it that reads a source side."""
    return hasattr(model, "fusion_config")


def translator_on(model: Any) -> TextReader | None:
    """What makes the source side of the rows' own texts, on a model with a source encoder."""
    return getattr(model, "translator", None)


def source_pad(model: Any, tokenizer: Any) -> int:
    """Id of the padding token of what reads the source: the source encoder's, or the backbone's."""
    translator = translator_on(model)
    return int(tokenizer.pad_token_id if translator is None else translator.pad)


def pad_sources(sources: Sequence[SourceInputs], pad: int, device: Any = None) -> dict[str, Any]:
    """Tensors (b, m) of the sources of a batch, padded on the right, with their mask; none for sources that are empty.

    Args:
        sources: Ids of each row's source.
        pad: Id of the padding token of the model that reads them.
        device: Where the tensors go.
    """
    import torch

    if not sources or not sources[0]:
        return {}
    ids = f"{PREFIX}input_ids"
    longest = max(len(source[ids]) for source in sources)

    def padded(rows: Sequence[list[int]], filler: int) -> Any:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=device)

    batch = {key: padded([source[key] for source in sources], pad if key == ids else 0) for key in sources[0]}
    return {**batch, f"{PREFIX}attention_mask": padded([[1] * len(source[ids]) for source in sources], 0)}
