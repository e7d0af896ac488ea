"""The bundled world: real languages, small enough to pretrain a backbone on in a minute or two.

Sixteen people buy, find, lose, see, sell and hide sixteen things of six colours in ten places, and say what they make
of them, in seven languages with hand-written forms: English is dominant; German, Spanish and French are middling;
Swahili, Indonesian and Haitian Creole are weak, because little of the pretraining text is theirs. Every sentence is
said from a meaning, so all text is parallel by construction, and a meaning held out is held out in every language.
Text is in lower case but for names and German nouns.

Tasks: `mini-sentiment` (a review of two clauses, the verdict in the second decides; the words may be negated) and
`mini-qa` (a one-fact story and a question after the thing, the place or the colour, answered in the story's language).
Reference text is stories and opinions: no questions, no tags, no label words. Beside the test rows of `mini-sentiment`
lie English translations of which a fifth of the words are wrong.

The backbone in `BACKBONE` is a small Llama pretrained on such text, questions and tagged reviews of every language
included, as web text has them; `python backbones/decoder.py --output DIR`, in the repository,
makes another one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lingualift.miniworld.data import LABEL_WORDS, QA_PROMPT, SENTIMENT_PROMPT, write_data
from lingualift.miniworld.languages import GRAMMARS
from lingualift.miniworld.pretraining import WEAK

LANGUAGES: Final = tuple(GRAMMARS)
"""Codes of the languages, the dominant one first."""
BACKBONE: Final = Path(__file__).parent / "backbone"
"""Folder of the backbone that ships with the package."""

__all__ = [
    "BACKBONE",
    "LABEL_WORDS",
    "LANGUAGES",
    "QA_PROMPT",
    "SENTIMENT_PROMPT",
    "WEAK",
    "write_data",
]
