"""The steps of an experiment. Each is a pure function of its inputs, and its key says all that determines it."""

from lingualift.pipeline.steps.base import Part, Progress, Step
from lingualift.pipeline.steps.scoring import (
    PREDICTIONS_FILE,
    SCORES_FILE,
    SWEEP_FILE,
    Evaluate,
    Merge,
    MergeRecipe,
    Sweep,
)
from lingualift.pipeline.steps.training import Adapted, Initialise, InitialiseFused, Train
from lingualift.pipeline.steps.translation import Back, Translate, back, translation
from lingualift.pipeline.steps.words import WordsHead, words_head

KINDS: dict[str, type[Step]] = {
    kind.kind: kind
    for kind in (Translate, Initialise, InitialiseFused, WordsHead, Train, Sweep, Merge, Evaluate)
}
"""Every kind of step, by its folder in the store."""
__all__ = [
    "KINDS",
    "PREDICTIONS_FILE",
    "SCORES_FILE",
    "SWEEP_FILE",
    "Adapted",
    "Back",
    "Evaluate",
    "Initialise",
    "InitialiseFused",
    "Merge",
    "MergeRecipe",
    "Part",
    "Progress",
    "Step",
    "Sweep",
    "Train",
    "Translate",
    "WordsHead",
    "back",
    "translation",
    "words_head",
]
