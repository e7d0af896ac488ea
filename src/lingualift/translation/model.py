"""Translation by an encoder-decoder whose tokenizer tags languages: NLLB, M2M100, mBART."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import BackboneRef, load_tokenizer, read_config
from lingualift.config import Translation
from lingualift.encoding.collator import Padding
from lingualift.encoding.text import language_tag
from lingualift.errors import UserError
from lingualift.languages import language as find_language
from lingualift.provenance import library_versions
from lingualift.translation.cache import Sentence


class Model:
    """A translation model, for one pair of languages; its weights are loaded when they are first needed.

    Args:
        ref: The model.
        source: Code of the language that is read.
        target: Code of the language that is written.
        settings: Beams and lengths.

    Raises:
        UserError: no translation model, or none of these languages.
    """

    def __init__(self, ref: BackboneRef, source: str, target: str, settings: Translation) -> None:
        self._tokenizer = _tokenizer(ref)
        self.ref, self.settings = ref, settings
        self.script = find_language(target).script
        self.tags = tuple(language_tag(self._tokenizer, code)[0] for code in (source, target))
        names = [language_tag(self._tokenizer, code)[1] for code in (source, target)]
        self._tokenizer.src_lang, self._tokenizer.tgt_lang = names
        positions = getattr(read_config(ref), "max_position_embeddings", None) or 2 * settings.max_length
        self.limit = min(settings.max_length, positions, self._tokenizer.model_max_length)
        self.new_tokens = min(2 * self.limit, positions - 1)

    @property
    def identity(self) -> dict[str, Any]:
        """What determines a translation; of the settings not the size of batches, by which rounding alone differs."""
        return {
            "model": self.ref.identity(),
            "tags": self.tags,
            "beams": self.settings.beams,
            "new_tokens": self.new_tokens,
            **library_versions("transformers"),
        }

    def fits(self, text: str) -> bool:
        """Whether a text and the tokens around it are within the limit."""
        return bool(len(self._tokenizer(text, verbose=False)["input_ids"]) <= self.limit)

    def knows(self, text: str) -> bool:
        """Whether the tokenizer has no unknown token in a text."""
        return self._tokenizer.unk_token_id not in self._tokenizer(text)["input_ids"]

    def translate(self, sentences: Sequence[str]) -> list[Sentence]:
        """Translate one batch, by beam search.

        Raises:
            UserError: the weights cannot be loaded.
        """
        import torch

        model, _ = load_backbone(self.ref)
        rows = [self._tokenizer(text) for text in sentences]
        inputs = Padding(self._tokenizer.pad_token_id)(
            [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
        )
        with torch.inference_mode():
            written = model.generate(
                **{name: value.to(model.device) for name, value in inputs.items()},
                generation_config=self._search(model.config.decoder_start_token_id),
            )
        end = self._tokenizer.eos_token_id
        return [
            Sentence(self._tokenizer.decode(ids, skip_special_tokens=True).strip(), end in ids[1:])
            for ids in written.tolist()  # of which NLLB begins with the token that ends
        ]

    def _search(self, start: int | None) -> Any:
        import transformers

        tag = self._tokenizer.convert_tokens_to_ids(self.tags[1])
        end = self._tokenizer.eos_token_id
        return transformers.GenerationConfig(
            max_new_tokens=self.new_tokens,
            do_sample=False,
            num_beams=self.settings.beams,
            use_cache=True,
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_id=end,
            decoder_start_token_id=end if start is None else start,
            forced_bos_token_id=tag,
        )


def check_languages(ref: BackboneRef, languages: Iterable[str]) -> None:
    """Check that a model translates, and that it knows these languages; no weights are loaded.

    Raises:
        UserError: no translation model, or none of one of these languages.
    """
    tokenizer = _tokenizer(ref)
    for code in languages:
        try:
            language_tag(tokenizer, code)
        except UserError as error:
            found = f"has no tag in the tokenizer of {ref.name!r}"
            mend = (
                "choose a translation model that knows the language, tell it a near language's tag (`nllb` of "
                "`languages.own`), or name translations of yours"
            )
            raise UserError(error.where, found, error.expected, mend) from None


def _tokenizer(ref: BackboneRef) -> Any:
    """The tokenizer of a translation model, which tags languages; raises as `check_languages`."""
    if ref.family != "encoder-decoder":
        raise _no_translator(ref, f"is one of the {ref.family}s")
    found = load_tokenizer(ref)
    if not hasattr(found, "src_lang"):
        raise _no_translator(ref, "has a tokenizer without language tags")
    return found


def _no_translator(ref: BackboneRef, found: str) -> UserError:
    return UserError(
        f"model {ref.name!r}",
        f"{found}, so it translates nothing",
        "NLLB, M2M100 or mBART",
        "name such a model",
    )
