"""What a check of an experiment can find, how grave it is, and from which value on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lingualift.checking.records import LanguageRecord, OverlapRecord, TaskRecord
from lingualift.checking.spelling import LOST_NOTED, LOST_REFUSED
from lingualift.config import TrainingRoles

PIECES_NOTED = 0.10
"""Share of tokens that are less than a character: bytes are meant for rare characters; a language spelled in them is
one that the tokenizer, and most likely the backbone, has hardly seen."""
TOKENS_NOTED = 3.0
"""Tokens relative to the source language: text costs and fills the context that many times over. Languages written in
Latin letters stay below 3 in common tokenizers (https://arxiv.org/abs/2305.15425)."""
CUT_NOTED = 0.01
"""Share of rows that `max_length` cuts: a cut prompt has lost its beginning, which no score shows."""
OVERLAP_REFUSED = 0.10
"""Share of test items that are in text or rows that adapters learn from: any is told; a tenth can move a score by more
than methods differ."""
HEADROOM_NOTED = 5.0
"""Points between the plain backbone's score and 100: with fewer, no method can be told from another."""
MUTE_NOTED = 0.5
"""Share of the plain backbone's answers that cannot be read: the score then says little about what it knows."""

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        grade: "error": results would mean nothing; "warning": they would mean less; "note": good to know.
        where: Language, task and split.
        found: What was found.
        expected: What would have been right, "" where the mend says it.
        mend: What to do about it.
        examples: Up to three places that show it.
    """

    grade: Grade
    where: str
    found: str
    expected: str
    mend: str
    examples: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return asdict(self)


def in_gaps(empty: Iterable[tuple[str, str, str, str]]) -> Iterator[Finding]:
    """Cells of the table that stay empty: task, language, method, and which rows are not there."""
    for task, language, method, reason in empty:
        yield Finding(
            "warning",
            f"{task} {language}",
            f"{method} stays empty: {reason}",
            "rows, and translations, for every method in every language",
            "check the path, or the setting, or let it stay empty: no average of that method has the language",
        )


def in_backbone(name: str, lacks_words: bool, learns_text: bool) -> Iterator[Finding]:
    """What a checkpoint lacks.

    Args:
        name: The backbone's.
        lacks_words: Whether it is an encoder without a head for words.
        learns_text: Whether the experiment trains one, for its references.
    """
    if lacks_words:
        trained = "; the plan trains one, on the text of all languages, for the references alone"
        yield Finding(
            "note",
            f"backbone {name!r}",
            "its checkpoint has no head for words: how well it knows a language cannot be told"
            + (trained if learns_text else ""),
            "",
            "nothing to mend; a checkpoint with the head that it was pretrained with has a perplexity",
        )


def in_spelling(record: LanguageRecord) -> Iterator[Finding]:
    """What is wrong with how a language is spelled and known."""
    spelling, where = record.spelling, record.language
    if spelling.lost_share > LOST_NOTED or spelling.unknown_share > LOST_NOTED:
        refused = spelling.lost_share > LOST_REFUSED
        yield Finding(
            "error" if refused else "warning",
            where,
            f"the tokenizer loses {_percent(spelling.lost_share)} of the letters and writes "
            f"{_percent(spelling.unknown_share)} of its tokens as unknown",
            f"at most {_percent(LOST_REFUSED if refused else LOST_NOTED)}",
            "take a backbone whose tokenizer has this script, or leave the language out",
        )
    if spelling.piece_share > PIECES_NOTED:
        yield Finding(
            "warning",
            where,
            f"{_percent(spelling.piece_share)} of the tokens are less than a character",
            f"at most {_percent(PIECES_NOTED)}",
            "take a backbone whose tokenizer has this script; expect long training and weak text adapters",
        )
    if record.relative is not None and record.relative > TOKENS_NOTED:
        of = "the same sentences take" if record.parallel else "a word takes"
        yield Finding(
            "warning",
            where,
            f"{of} {record.relative:.1f} times the tokens of the source language",
            f"at most {TOKENS_NOTED:g}",
            "plan for that much more time and context (`max_length`), or take another tokenizer",
        )
    if record.nats is not None and not math.isfinite(record.nats):
        mend = "load the backbone in float32 or bfloat16 (`backbone.dtype`)"
        yield Finding("error", where, "the backbone's likelihood is no number", "a number", mend)


def in_labels(record: TaskRecord) -> Iterator[Finding]:
    """Labels that never occur in a split."""
    tested = {label for label, count in record.labels.get("test", {}).items() if count}
    for split, counts in record.labels.items():
        for label in (label for label, count in counts.items() if not count):
            asked = split == "train" and label in tested
            never = (
                f"no row is labelled {label!r}, and test rows are"
                if asked
                else f"no row is labelled {label!r}"
            )
            yield Finding(
                "error" if asked else "warning",
                f"{record.task} {record.language} {split}",
                never,
                f"rows of each of {', '.join(counts)}",
                "check how the labels are spelled, or add such rows",
            )


def in_lengths(
    records: Sequence[TaskRecord], training: TrainingRoles, context: int | None
) -> Iterator[Finding]:
    """Rows of one task that lose their beginning, or that the backbone has no places for.

    Args:
        records: The task in its languages.
        training: The settings of the experiment, one of which bounds the rows that are trained on.
        context: Places for tokens that the backbone has, None if it does not say.
    """
    places = dict.fromkeys((split, limit) for one in records for split, limit in one.limits.items())
    for split, limit in places:
        keys = ["scoring.max_length"]
        if split == "train":
            roles = {"task": training.task, "translated": training.second}
            keys = [f"training.{name}.max_length" for name, one in roles.items() if one.max_length == limit]
            keys = keys if training.translated else ["training.task.max_length"]
        mine = [one for one in records if one.limits.get(split) == limit]
        cut = [one for one in mine if one.cut[split] > CUT_NOTED]
        if cut:
            share, longest = max(one.cut[split] for one in cut), max(one.longest for one in cut)
            found = (
                f"up to {_percent(share)} of the {split} prompts are longer than {limit} tokens (the longest has "
                f"{longest}) and lose their beginning"
            )
            mend = f"raise {' or '.join(f'`{key}`' for key in keys)}"
            yield Finding("warning", _where(cut), found, f"at most {_percent(CUT_NOTED)}", mend)
    most = max((limit for _, limit in places), default=0)
    beyond = [one for one in records if context is not None and min(one.longest, most) > context]
    if beyond:
        used = min(max(one.longest for one in beyond), most)
        mend = f"set `max_length` to {context} or less, or take a backbone with a longer context"
        found = f"prompts have up to {used} tokens"
        yield Finding("warning", _where(beyond), found, f"at most {context}, the backbone's context", mend)


def in_scores(records: Sequence[TaskRecord], source: str) -> Iterator[Finding]:
    """What the plain backbone's scores on one task leave to be gained, or do not tell.

    Args:
        records: The task in its languages.
        source: The source language, in which there need be no room.
    """
    scored = [(one, one.vanilla) for one in records if one.vanilla]
    full = [one for one, found in scored if found.headroom < HEADROOM_NOTED and one.language != source]
    mute = [one for one, found in scored if found.malformed > MUTE_NOTED * found.n]
    told = {*map(id, full), *map(id, mute)}
    guessed = [
        one
        for one, found in scored
        if found.score - 2 * (found.stderr or 0) <= found.chance and id(one) not in told
    ]
    if full:
        yield Finding(
            "warning",
            _where(full),
            f"the plain backbone scores {_range(full)}",
            f"at least {HEADROOM_NOTED:g} points below 100",
            "take a harder task or leave these languages out: methods cannot be told apart here",
        )
    if mute:
        yield Finding(
            "note",
            _where(mute),
            f"most answers of the plain backbone cannot be read (its score: {_range(mute)})",
            "",
            "nothing, where training teaches the form of an answer: this score says little until then; "
            "`scoring: {reading: lenient}` reads more forms",
        )
    if guessed:
        yield Finding(
            "note",
            _where(guessed),
            f"the plain backbone scores {_range(guessed)}, no better than chance ({_chance(guessed)})",
            "",
            "nothing yet: if `source-ft` stays there too, the backbone does not know the language",
        )


def _where(records: Sequence[TaskRecord]) -> str:
    return f"{records[0].task} {', '.join(one.language for one in records)}"


def _chance(records: Sequence[TaskRecord]) -> str:
    return next(f"{one.vanilla.chance:.1f}" for one in records if one.vanilla)


def _range(records: Sequence[TaskRecord]) -> str:
    scores = sorted({f"{one.vanilla.score:.1f}" for one in records if one.vanilla}, key=float)
    return scores[0] if len(scores) == 1 else f"{scores[0]} to {scores[-1]}"


def in_overlap(record: OverlapRecord) -> Iterator[Finding]:
    """Test items that adapters would learn by heart."""
    if not record.matches:
        return
    share = len(record.matches) / record.items
    equal = sum(match.equal for match in record.matches)
    mend = f"take them out of the {record.against}"
    if record.aside:
        mend = "name the column that such rows share as `data.validation.group_by`"
    found = f"{len(record.matches)} of {record.items} test items stand in the {record.against} ({equal} as a whole row)"
    yield Finding(
        "error" if share >= OVERLAP_REFUSED else "warning",
        f"{record.task} {record.language}",
        found,
        "none",
        f"{mend}; scores would be memory in part",
        tuple(f"{match.item} in {match.other}: {match.text}" for match in record.matches[:3]),
    )


def by_grade(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes."""
    return tuple(sorted(findings, key=lambda finding: GRADES.index(finding.grade)))


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
