"""FLARE-MT: the translation model whose encoder reads the rows' own text (https://arxiv.org/abs/2501.06892)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lingualift.backbone.architectures import positions_of
from lingualift.backbone.loading import load_model
from lingualift.backbone.reference import BackboneRef, find_backbone, load_tokenizer, read_config
from lingualift.config import Backbone
from lingualift.encoding.text import language_tag
from lingualift.errors import UserError
from lingualift.fusion.config import FlareConfig, FusionConfig

Text = tuple[str, str, Sequence[str]]
"""What a text is called in messages, the code of its language, and the text or the pair."""


@dataclass(frozen=True)
class Translator:
    """A translation model that reads; its weights are loaded when `encoder` is first asked for.

    Attributes:
        ref: The model.
        tokenizer: Its tokenizer, whose language changes with what it reads.
    """

    ref: BackboneRef
    tokenizer: Any

    @property
    def pad(self) -> int:
        """Id of its padding token."""
        return int(self.tokenizer.pad_token_id)

    @property
    def encoder(self) -> Any:
        """The encoder, frozen, on this process's device; that of one model stays resident.

        Raises:
            UserError: the model cannot be loaded.
        """
        return _encoder(self.ref)

    @property
    def limit(self) -> int | None:
        """The most tokens that a text may have: the encoder's positions."""
        return positions_of(read_config(self.ref))

    def tag(self, language: str) -> str:
        """What the tokenizer calls a language.

        Raises:
            UserError: it has no tag for it.
        """
        try:
            return language_tag(self.tokenizer, language)[1]
        except UserError as error:
            found = f"has no tag in the tokenizer of the source encoder {self.ref.name!r}"
            mend = f"{error.mend}; or FLARE without a source encoder"
            raise UserError(error.where, found, error.expected, mend) from None

    def read(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids of texts, each tagged with its own language, with the special tokens of the model.

        Raises:
            UserError: a language without a tag, or a text of more tokens than the encoder has positions.
        """
        limit, rows, told = self.limit, [], None
        for where, language, parts in texts:
            if language != told:
                self.tokenizer.src_lang, told = self.tag(language), language
            ids = list(self.tokenizer(*parts)["input_ids"])
            if limit is not None and len(ids) > limit:
                raise UserError(
                    where,
                    f"has {len(ids)} tokens for the source encoder {self.ref.name!r}",
                    f"at most {limit}, its positions",
                    "shorten it: it is not cut",
                )
            rows.append(ids)
        return rows


def find_translator(name: str, dtype: str = "float32", base: Path = Path()) -> Translator:
    """Find the translation model whose encoder is to read, without loading its weights.

    Args:
        name: A hub id or a folder.
        dtype: Number format of its weights.
        base: Folder that a relative path starts from.

    Raises:
        UserError: there is no such model, or it is no translation model whose tokenizer tags languages.
    """
    return _found(Backbone(name=name, dtype=dtype), base)  # type: ignore[arg-type]


_COMMIT = 40  # characters: a fingerprint was a commit before


def translator_of(config: FlareConfig) -> Translator:
    """The translation model that a saved adapter was trained with.

    One on the hub is taken at the commit that the adapter was trained with.

    Raises:
        UserError: it is gone, or another by now; or as `find_translator`.
    """
    assert config.source_encoder is not None
    wanted = config.source_encoder_fingerprint
    entry = Backbone(name=config.source_encoder, dtype=config.source_encoder_dtype)
    if not Path(config.source_encoder).is_dir():
        before = wanted if wanted is not None and len(wanted) == _COMMIT else None
        entry = entry.model_copy(update={"revision": config.source_encoder_revision or before})
    try:
        found = _found(entry, Path())
    except UserError as error:
        mend = (
            f"{error.mend}, or set source_encoder in the adapter's adapter_config.json to where the model is"
        )
        raise UserError(error.where, error.found, error.expected, mend) from None
    if wanted is not None and not found.ref.known_as(wanted):
        raise UserError(
            f"source encoder {config.source_encoder!r}",
            f"is not the one that the adapter was trained with (fingerprint {found.ref.fingerprint[:12]})",
            f"the model of fingerprint {wanted[:12]}",
            "restore it there, or set source_encoder in adapter_config.json to where it is",
        )
    return found


def named(config: FusionConfig, base: Path) -> tuple[FusionConfig, Translator | None]:
    """A configuration that says which source encoder it means, from wherever it is read; and that encoder.

    Raises:
        UserError: as `find_translator`.
    """
    if not isinstance(config, FlareConfig) or config.source_encoder is None:
        return config, None
    found = find_translator(config.source_encoder, config.source_encoder_dtype, base)
    pinned = {
        "source_encoder": found.ref.source,
        "source_encoder_revision": found.ref.revision,
        "source_encoder_fingerprint": found.ref.fingerprint,
    }
    return replace(config, **pinned), found  # type: ignore[arg-type]


def _found(entry: Backbone, base: Path) -> Translator:
    where = f"source encoder {entry.name!r}"
    try:
        ref = find_backbone(entry, base)
        tokenizer = _tokenizer(ref)
    except UserError as error:
        raise UserError(where, f"{error.where} {error.found}", error.expected, error.mend) from None
    if ref.family != "encoder-decoder" or not hasattr(tokenizer, "src_lang"):
        found = "is no translation model whose tokenizer tags languages"
        raise UserError(where, found, "NLLB, M2M100 or mBART", "name such a model")
    return Translator(ref, tokenizer)


@functools.lru_cache(maxsize=1)
def _tokenizer(ref: BackboneRef) -> Any:
    return load_tokenizer(ref)


@functools.lru_cache(maxsize=1)
def _encoder(ref: BackboneRef) -> Any:
    model, _ = load_model(ref)
    return model.get_encoder()  # the decoder is let go
