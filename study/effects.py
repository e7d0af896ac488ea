"""From finished runs to `study/numbers.json`: every effect with interval and p-value, as PROTOCOL.md defines them.

python study/effects.py --work runs/study
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy.stats
from experiments import BACKBONES
from questions import Question, Row, questions
from rich.console import Console

from lingualift.metrics.comparisons import item_draws
from lingualift.metrics.scores import METRICS

NUMBERS = Path(__file__).parent / "numbers.json"
DRAWS = 2000
LEVEL = 0.05
REPORTED = {
    "world": ("sw", "id", "ht"),
    "nusax": ("ace", "ban", "bjn", "jav", "min", "sun"),
    "nusaxweak": ("jav", "min", "sun"),
    "nusatranslation": ("mad", "min", "sun"),
}
"""The languages of averages; fusing on NusaX trains for those of `nusaxweak`."""


class Cell(NamedTuple):
    """A score of a row."""

    backbone: int
    seed: int | None
    language: str


@dataclass(frozen=True)
class Scored:
    """A score, and the scores on resamples of its items (draws,)."""

    score: float
    draws: np.ndarray
    n: int


@dataclass(frozen=True)
class Effect:
    """The answer to one comparison.

    Attributes:
        gain: Mean difference in points.
        low: Lower end of its 95% interval.
        high: Upper end.
        p: Two-sided.
        score: Mean score of the row in question, in percent.
        base_score: Of the row that it is compared with.
        languages: Mean difference by language.
        parts: Mean difference on each backbone; where there is one backbone, with each seed.
        p_parts: Two-sided p of a t-test on these few numbers, which the bootstrap takes for all there are.
        n: Test items of a language.
        backbones: Backbones.
        seeds: Seeds of adapters on each.
    """

    gain: float
    low: float
    high: float
    p: float
    score: float
    base_score: float
    languages: Mapping[str, float]
    parts: tuple[float, ...]
    p_parts: float
    n: int
    backbones: int
    seeds: int


def main() -> None:
    """Compare, correct, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="as of study/run.py")
    parser.add_argument("--output", type=Path, default=NUMBERS)
    options = parser.parse_args()
    runs = Runs(options.work / "runs")
    asked = list(questions())
    found = [(one, runs.effect(one)) for one in asked]
    entries = [asdict(one) | asdict(effect) for one, effect in found]
    correct([entry for entry in entries if entry["named"]])
    log = [json.loads(line) for line in (options.work / "log.jsonl").read_text().splitlines()]
    latest = {entry["experiment"]: entry for entry in log}
    numbers = {
        "experiments": len(latest),
        "configurations": sum(entry["configurations"] for entry in latest.values()),
        "scores": sum(entry["scores"] for entry in latest.values()),
        "hours": round(sum(entry["seconds"] for entry in log) / 3600, 1),
        "effects": entries,
        "curves": list(runs.curves()),
        "weights": list(runs.weights()),
    }
    options.output.write_text(json.dumps(rounded(numbers), indent=1) + "\n", encoding="utf-8")
    Console().print(f"{len(entries)} effects in {options.output}; next: python study/figures.py")


def rounded(value: Any) -> Any:
    """The same with numbers cut to four digits behind the point."""
    if isinstance(value, float):
        return round(value, 4) + 0.0
    if isinstance(value, Mapping):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def t_test(values: Sequence[float]) -> float:
    """Two-sided p of the mean being zero; 1 where all values are, 0 where all are one other number."""
    if len(set(values)) == 1:
        return float(values[0] == 0)
    return float(scipy.stats.ttest_1samp(values, 0).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979, https://www.jstor.org/stable/4615733)."""
    order = np.argsort(values)
    steps = [min(1.0, (len(values) - place) * values[index]) for place, index in enumerate(order)]
    corrected = np.maximum.accumulate(steps) if steps else []
    return [float(corrected[int(place)]) for place in np.argsort(order)]


def correct(named: Sequence[dict[str, Any]], missing: int = 0) -> None:
    """Add to named comparisons their corrected p, and whether they are clear; those whose rows are missing count."""
    adjusted = holm([entry["p"] for entry in named] + missing * [1.0])
    for entry, p in zip(named, adjusted, strict=False):
        entry |= {"p_holm": p, "clear": max(p, entry["p_parts"]) <= LEVEL}


class Runs:
    """The finished runs of the study, read when they are asked for."""

    reported: ClassVar[Mapping[str, tuple[str, ...]]] = REPORTED

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._draws = functools.cache(lambda ids: list(item_draws(ids)))

    def names(self, setting: str, part: str) -> dict[int, Path]:
        """Run folders by backbone."""
        if setting == "world":
            return {seed: self.folder / f"world{seed}-{part}" for seed in BACKBONES}
        return {0: self.folder / f"{setting}-{part}"}

    @functools.cache  # noqa: B019 - lives as long as the program
    def cells(self, setting: str, row: Row) -> dict[Cell, Scored]:
        """The scores of a row by the task's first metric."""
        found = {}
        for backbone, folder in self.names(setting, row.part).items():
            every = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
            mine = [one for one in every if (one["task"], one["method"], one["variant"]) == row[1:]]
            if not mine:
                known = sorted({(one["task"], one["method"], one["variant"]) for one in every})
                raise ValueError(f"{folder.name} has no {row[1:]}; it has {known}")
            for one in mine:
                if one["metric"] == mine[0]["metric"]:
                    cell = Cell(backbone, one["seed"], one["language"])
                    found[cell] = self.scored(folder / one["predictions"], one)
        return found

    def scored(self, path: Path, row: Mapping[str, Any]) -> Scored:
        """A score on its items and on resamples of them."""
        answers = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        ids, golds = [answer["id"] for answer in answers], [answer["gold"] for answer in answers]
        return self.resampled(row, ids, golds, [answer["prediction"] for answer in answers])

    def resampled(
        self, row: Mapping[str, Any], ids: Sequence[str], golds: Sequence[Sequence[str]], given: Sequence[Any]
    ) -> Scored:
        """A score on its items and on resamples of them, from the answers."""
        metric, true = METRICS[row["metric"]], [tuple(gold) for gold in golds]
        blocks = self._draws(tuple(ids))
        draws = [metric.resampled(given, true, row["answer_language"], counts) for counts in blocks]
        return Scored(row["score"], np.concatenate(draws), len(ids))

    def effect(self, question: Question) -> Effect:
        """The difference of two rows on the average of the reported languages."""
        one = self.cells(question.setting, question.one)
        base = self.cells(question.setting, question.base)
        there = {cell.language for cell in one} & {cell.language for cell in base}
        languages = [code for code in self.reported[question.setting] if code in there]
        pairs = sorted({(cell.backbone, cell.seed or 0) for cell in (*one, *base) if cell.seed is not None})
        table = {
            pair: [(at(one, *pair, code), at(base, *pair, code)) for code in languages] for pair in pairs
        }
        differences = np.array(
            [np.mean([a.draws - b.draws for a, b in table[pair]], axis=0) for pair in pairs]
        )
        drawn = np.einsum("sd,ds->d", differences, shares(pairs))
        gains = {pair: statistics.fmean(a.score - b.score for a, b in row) for pair, row in table.items()}
        backbones = sorted({backbone for backbone, _ in pairs})
        parts = tuple(
            statistics.fmean(gain for pair, gain in gains.items() if pair[0] == backbone)
            for backbone in backbones
        )
        parts = parts if len(parts) > 1 else tuple(gains.values())
        low, high = np.percentile(drawn, [2.5, 97.5])
        sides = min(int((drawn <= 1e-9).sum()), int((drawn >= -1e-9).sum()))
        cells = [pair for row in table.values() for pair in row]
        by_language = {
            code: statistics.fmean(row[index][0].score - row[index][1].score for row in table.values())
            for index, code in enumerate(languages)
        }
        return Effect(
            gain=statistics.fmean(a.score - b.score for a, b in cells),
            low=float(low),
            high=float(high),
            p=min(1.0, 2 * (sides + 1) / (DRAWS + 1)),
            score=statistics.fmean(a.score for a, _ in cells),
            base_score=statistics.fmean(b.score for _, b in cells),
            languages=by_language,
            parts=parts,
            p_parts=t_test(parts),
            n=max(b.n for _, b in table[pairs[0]]),
            backbones=len(backbones),
            seeds=len({seed for _, seed in pairs}),
        )

    def curves(self) -> Iterator[dict[str, Any]]:
        """Validation scores over λ, by setting, task, merge, backbone, seed and language."""
        for setting in ("world", "nusax"):
            for sweep in self._sweeps(setting, "curve"):
                yield {"setting": setting, **sweep}

    def weights(self) -> Iterator[dict[str, Any]]:
        """The weights that each rule chose."""
        for setting in ("world", "nusax", "nusatranslation"):
            for rule, part in (("tuned", "main"), ("entropy", "entropy")):
                for sweep in self._sweeps(setting, part):
                    if sweep["decides"]:
                        yield {"setting": setting, "rule": rule} | {
                            name: sweep[name]
                            for name in (
                                "task",
                                "method",
                                "variant",
                                "seed",
                                "backbone",
                                "language",
                                "chosen",
                            )
                        }

    def _sweeps(self, setting: str, part: str) -> Iterator[dict[str, Any]]:
        for backbone, folder in self.names(setting, part).items():
            steps = json.loads((folder / "steps.json").read_text(encoding="utf-8"))["steps"]
            for step in steps:
                if step["kind"] == "sweep":
                    facts = dict(step["facts"])
                    tried = [[entry["weight"], entry["score"]] for entry in facts.pop("tried")]
                    yield {**facts, "backbone": backbone, "tried": tried}


def at(cells: Mapping[Cell, Scored], backbone: int, seed: int, language: str) -> Scored:
    """A score; of a row without seeds, the one that stands beside every seed."""
    found = cells.get(Cell(backbone, seed, language)) or cells.get(Cell(backbone, None, language))
    if found is None:
        raise ValueError(f"no score for backbone {backbone}, seed {seed}, {language}")
    return found


def shares(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The weight of each pair of backbone and seed in each draw, of shape (draws, pairs); a draw's sum is 1."""
    backbones = sorted({backbone for backbone, _ in pairs})
    outer = drawn_shares(len(backbones), 0)
    columns = {}
    for place, backbone in enumerate(backbones):
        mine = [pair for pair in pairs if pair[0] == backbone]
        inner = drawn_shares(len(mine), 1 + place)
        columns |= {pair: outer[:, place] * inner[:, index] for index, pair in enumerate(mine)}
    return np.stack([columns[pair] for pair in pairs], axis=1)


def drawn_shares(count: int, key: int) -> np.ndarray:
    """Shares of `count - 1` things drawn with replacement, of shape (draws, count)."""
    if count == 1:
        return np.ones((DRAWS, 1))
    drawn = np.random.default_rng([count, key]).multinomial(count - 1, np.full(count, 1 / count), size=DRAWS)
    return np.asarray(drawn / (count - 1))


def of_question(effects: Iterable[Mapping[str, Any]], question: str) -> list[Mapping[str, Any]]:
    """The effects that answer a question."""
    return [one for one in effects if one["question"] == question]


if __name__ == "__main__":
    main()
