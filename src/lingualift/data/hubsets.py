"""Where the rows of shipped tasks are published on the hub: the data sets, and what is odd about each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lingualift.config import Aside
from lingualift.languages import language as find_language
from lingualift.tasks import RowError

WIKIPEDIA = "wikipedia"
"""What reference text is called where tasks are named: it is of no task of its own."""


def _codes(codes: str) -> dict[str, str]:
    return {code: code for code in codes.split()}


@dataclass(frozen=True)
class DataSet:
    """A data set on the hub that holds rows of a task, or text.

    Attributes:
        hub: Its id.
        config: Template of its configuration's name.
        splits: Split -> what it calls it.
        languages: Code -> what it calls the language, `{language}` in templates; empty where every language may be
            there, by its own code.
        id: The column that holds a row's id; a row is called by its place (the first is 1) where the data set has none.
        beginning: Template of what the ids of a language's rows begin with, where one configuration holds several.
        change: Makes the task's columns of a row that has others.
    """

    hub: str
    config: str
    splits: Mapping[str, str]
    languages: Mapping[str, str] = field(default_factory=dict)
    id: str = "id"
    beginning: str = ""
    change: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict

    def knows(self, code: str) -> bool:
        """Whether it has rows in a language, as far as is known before it is asked."""
        return not self.languages or find_language(code).code in self.languages


@dataclass(frozen=True)
class HubSets:
    """The data sets of a task.

    Attributes:
        sets: No two of them hold the same split of a language.
        aside: Rows to put aside for validation, where no data set has a split for it.
        missing: Why none can be read, where there are none.
    """

    sets: tuple[DataSet, ...] = ()
    aside: Aside | None = None
    missing: str = ""


def _worked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of GSM8K as MGSM's: the steps without their calculator notes, and the number behind `####`.

    The steps end as those of MGSM's exemplars do, with the number, since the last number of a text is its answer.
    """
    steps, mark, number = str(row["answer"]).rpartition("####")
    digits = number.strip().replace(",", "")
    if not mark or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", digits):
        raise RowError(f"answer ends with {str(row['answer'])[-20:]!r}, and not with #### and a number")
    text = re.sub(r"<<[^>]*>>", "", steps).strip()
    return {**row, "answer": f"{text}\nThe answer is {digits}.", "answer_number": digits}


_ALL = {"train": "train", "validation": "validation", "test": "test"}
_XLSUM = {
    **{"am": "amharic", "ar": "arabic", "az": "azerbaijani", "bn": "bengali", "cy": "welsh", "en": "english"},
    **{"es": "spanish", "fa": "persian", "fr": "french", "gd": "scottish_gaelic", "gu": "gujarati"},
    **{"ha": "hausa", "hi": "hindi", "id": "indonesian", "ig": "igbo", "ja": "japanese", "ko": "korean"},
    **{"ky": "kyrgyz", "mr": "marathi", "my": "burmese", "ne": "nepali", "om": "oromo", "pa": "punjabi"},
    **{"ps": "pashto", "pt": "portuguese", "rn": "kirundi", "ru": "russian", "si": "sinhala", "so": "somali"},
    **{"sr": "serbian_cyrillic", "sw": "swahili", "ta": "tamil", "te": "telugu", "th": "thai"},
    **{"ti": "tigrinya", "tr": "turkish", "uk": "ukrainian", "ur": "urdu", "uz": "uzbek", "vi": "vietnamese"},
    **{"yo": "yoruba", "zh": "chinese_simplified", "zh-Hant": "chinese_traditional"},
}
_TYDIQA = {
    **{"ar": "arabic", "bn": "bengali", "en": "english", "fi": "finnish", "id": "indonesian", "ko": "korean"},
    **{"ru": "russian", "sw": "swahili", "te": "telugu"},
}

HUB_SETS: dict[str, HubSets] = {
    "xnli": HubSets(
        (
            DataSet(
                "facebook/xnli", "{language}", _ALL, _codes("ar bg de el en es fr hi ru sw th tr ur vi zh")
            ),
        )
    ),
    "xcopa": HubSets(
        (
            DataSet(
                "cambridgeltl/xcopa",
                "{language}",
                {"validation": "validation", "test": "test"},
                _codes("et ht id it qu sw ta th tr vi zh"),
                id="idx",
            ),
            # the labels of COPA's own test split are kept back
            DataSet(
                "aps/super_glue",
                "copa",
                {"train": "train", "validation": "validation"},
                _codes("en"),
                id="idx",
            ),
        )
    ),
    "mgsm": HubSets(
        (
            # its train split is 8 worked exemplars, for prompts
            DataSet(
                "juletxara/mgsm", "{language}", {"test": "test"}, _codes("bn de en es fr ja ru sw te th zh")
            ),
            DataSet("openai/gsm8k", "main", {"train": "train"}, _codes("en"), change=_worked),
        ),
        Aside(of="test", rows=50),
    ),
    "xquad": HubSets(
        (
            DataSet(
                "google/xquad",
                "xquad.{language}",
                {"test": "validation"},
                _codes("ar de el en es hi ro ru th tr vi zh"),
            ),
            # SQuAD's validation split holds the rows that XQuAD translates
            DataSet("rajpurkar/squad", "plain_text", {"train": "train"}, _codes("en")),
        ),
        Aside(of="test", rows=190, group_by="context"),
    ),
    "tydiqa-goldp": HubSets(
        (
            DataSet(
                "google-research-datasets/tydiqa",
                "secondary_task",
                {"train": "train", "test": "validation"},
                _TYDIQA,
                beginning="{language}-",
            ),
        ),
        Aside(of="train", rows=200, group_by="context"),
    ),
    "xlsum": HubSets((DataSet("csebuetnlp/xlsum", "{language}", _ALL, _XLSUM),)),
    "nusax": HubSets(
        (
            DataSet(
                "indonlp/NusaX-senti",
                "{iso639_3}",
                _ALL,
                _codes("ace ban bbc bjn bug en id jv mad min nij su"),
            ),
        )
    ),
    "nusatranslation": HubSets(
        missing="is on the hub (indonlp/nusatranslation_senti) as a script alone, and scripts are never run",
    ),
    WIKIPEDIA: HubSets((DataSet("wikimedia/wikipedia", "20231101.{bcp47}", {"train": "train"}),)),
}
"""Task -> its data sets; `docs/tasks.md` shows this table."""
