"""What was seen, on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lingualift.checking import Check
from lingualift.checking.records import TaskRecord, Vanilla
from lingualift.errors import plain
from lingualift.terminal import Terminal

_SPLITS = {"train": "train", "valid.": "validation", "test": "test"}
_LABELS = 4  # more than so many are told by their range
_COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}


def show(record: Check, console: Terminal) -> None:
    """Print a table of the languages, one of each task, what was looked for in what, and the findings."""
    _say(console, "text: how the tokenizer spells it, how well the backbone knows it (on a sample)")
    console.print(_languages(record))
    if any(one.relative and not one.parallel for one in record.languages):
        _say(console, "* per word: these texts are no translations of each other", before=False)
    for task in dict.fromkeys(one.task for one in record.tasks):
        mine = [one for one in record.tasks if one.task == task]
        bare = mine[0].vanilla
        score = f", {bare.metric} of the plain backbone in percent (on a sample)" if bare else ""
        _say(console, f"{task}: rows{score}")
        labels = next((counts for one in mine for counts in one.labels.values()), {})
        if 0 < len(labels) <= _LABELS:
            _say(
                console,
                f"labels: {' / '.join(labels)} in percent, train → test where they differ",
                before=False,
            )
        console.print(_tasks(mine))
    items = sum({(one.task, one.language): one.items for one in record.overlaps}.values())
    matches = sum(len(one.matches) for one in record.overlaps)
    _say(console, f"overlap: {items} test items, {matches} of them found in what adapters learn from")
    for finding in record.findings:
        expected = f"; expected {finding.expected}" if finding.expected else ""
        told = plain(f"  {finding.where}: {finding.found}{expected}")
        console.print()
        console.print(Text.assemble((finding.grade, _COLOURS[finding.grade]), told))
        for line in (*(f"e.g. {example}" for example in finding.examples), f"mend: {finding.mend}"):
            console.print(Padding(line, (0, 0, 0, 2), expand=False))


def _say(console: Terminal, text: str, *, before: bool = True) -> None:
    if before:
        console.print()
    console.print(text)


def _drawn(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    return table


def _languages(record: Check) -> Table:
    ratio = f"× {record.source}"
    table = _drawn(
        "", "texts", "tokens", "per word", ratio, "unknown", "lost", "pieces", "perplexity", "bits/char"
    )
    for one in record.languages:
        table.add_row(
            one.language,
            str(one.texts),
            f"{one.tokens:,}",
            f"{one.spelling.per_word:.2f}" if one.spaced else f"{one.spelling.per_character:.2f}/char",
            "–" if one.relative is None else f"{one.relative:.2f}" + ("" if one.parallel else "*"),
            f"{100 * one.spelling.unknown_share:.1f}%",
            f"{100 * one.spelling.lost_share:.1f}%",
            f"{100 * one.spelling.piece_share:.1f}%",
            _number(one.perplexity, 1),
            _number(one.bits_per_character, 2),
        )
    return table


def _tasks(records: list[TaskRecord]) -> Table:
    ranked = any(counts for one in records for counts in one.labels.values())
    table = _drawn("", *_SPLITS, *(["labels"] if ranked else []), "cut", "score", "of", "chance", "room")
    for one in records:
        table.add_row(
            one.language,
            *(str(one.rows.get(split, "–")) for split in _SPLITS.values()),
            *([_balance(one)] if ranked else []),
            f"{100 * max(one.cut.values()):.0f}%",
            *(_plain(one.vanilla) if one.vanilla else "––––"),
        )
    return table


def _plain(found: Vanilla) -> tuple[str, str, str, str]:
    """The plain backbone's score, on what, chance and headroom."""
    error = "" if found.stderr is None else f" ± {found.stderr:.1f}"
    return (
        f"{found.score:.1f}{error}",
        f"{found.n} {found.split.removesuffix('ation')}",
        f"{found.chance:.1f}",
        f"{found.headroom:.1f}",
    )


def _balance(record: TaskRecord) -> str:
    """The labels' shares in training and test rows, once where they agree."""
    shown = (_shares(record.labels.get(split, {})) for split in ("train", "test"))
    return " → ".join(dict.fromkeys(shares for shares in shown if shares)) or "–"


def _shares(counts: Mapping[str, int]) -> str:
    """The labels' shares in percent, or their range."""
    total = sum(counts.values())
    if not total:
        return ""
    shares = [100 * count / total for count in counts.values()]
    if len(shares) > _LABELS:
        return f"{len(shares)} labels, {min(shares):.0f}–{max(shares):.0f}%"
    return "/".join(f"{share:.0f}" for share in shares)


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "–"
