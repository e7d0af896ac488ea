"""The step that trains a head for words, which some encoders lack."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lingualift.adapters.card import shown
from lingualift.backbone.loading import skeleton
from lingualift.backbone.reference import BackboneRef
from lingualift.backbone.words import own_weights
from lingualift.config import Training
from lingualift.data.datasets import Texts
from lingualift.pipeline.steps.base import TRAINED, Progress, Step, losses
from lingualift.provenance import PROVENANCE_FILE, read_json

_LOG = logging.getLogger("lingualift.pipeline")


@dataclass(frozen=True, eq=False)
class WordsHead(Step):
    """Train the head for words of an encoder whose checkpoint has none, for all references of a seed.

    Attributes:
        dataset: The reference task and its text.
        languages: Those whose text the references read.
        settings: The head's own.
    """

    kind = "words-head"
    split: ClassVar[str] = "train"
    code = ("training", "encoding", "backbone", "tasks/base.py")
    backbone: BackboneRef
    dataset: Texts
    languages: tuple[str, ...]
    settings: Training
    seed: int
    segment_tokens: int

    @property
    def cost(self) -> int:
        """Training steps, guessed where epochs are given, each about half of a reference's."""
        return max(1, (self.settings.steps or 500 * len(self.languages)) // 2)

    @override
    def units(self, rows: int) -> int:
        return self.settings.optimiser_steps(rows)

    @override
    def sizes(self, numbers: int, row: int, rows: int) -> tuple[int, int]:
        own = _words_numbers(self.backbone)
        return TRAINED * own + row * self.settings.batch_size, 4 * own

    def recipe(self) -> dict[str, Any]:
        """Backbone, text, settings and seed."""
        return {
            "backbone": self.backbone.identity(),
            "rows": [self.dataset.identity(code, self.split) for code in self.languages],
            "settings": self.settings.model_dump(mode="json", exclude={"checkpoint_steps"}),
            "seed": self.seed,
            "segment_tokens": self.segment_tokens,
        }

    @override
    def what(self) -> str:
        return f"train the head for words that {shown(self.backbone.name)} lacks"

    @override
    def label(self) -> str:
        return f"{self.what()} on {', '.join(self.languages)}, seed {self.seed}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Train the head, and say so."""
        from lingualift.training.words import train_words

        texts = {code: self.dataset.rows(code, self.split) for code in self.languages}
        about = {"data": {code: self.dataset.identity(code, self.split)["data"] for code in self.languages}}
        _LOG.warning(
            "the checkpoint of %s has no head for words: one is trained on %s, for the references alone",
            shown(self.backbone.name),
            ", ".join(self.languages),
        )
        train_words(
            self.backbone,
            texts,
            self.settings,
            seed=self.seed,
            output=output,
            work=work,
            segment_tokens=self.segment_tokens,
            about=about,
            progress=progress,
        )

    def facts(self, folder: Path) -> dict[str, Any]:
        """Languages, settings, and the loss along the way."""
        recorded = read_json(folder / PROVENANCE_FILE)
        names = ("languages", "seed", "rows", "segments", "steps", "settings")
        return {**{name: recorded[name] for name in names}, "loss": losses(folder)}


def words_head(
    backbone: BackboneRef,
    dataset: Texts,
    languages: tuple[str, ...],
    settings: Training,
    seed: int,
    segment_tokens: int,
) -> WordsHead:
    """The step that trains a head for words; arguments as of `WordsHead`, with the references' settings."""
    from lingualift.training.words import settings_of

    own = settings_of(settings, len(languages))
    return WordsHead(backbone, dataset, languages, own, seed, segment_tokens)


@functools.cache
def _words_numbers(backbone: BackboneRef) -> int:
    """Numbers in a head for words that are its own."""
    return sum(weight.numel() for weight in own_weights(skeleton(backbone)).values())
