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
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from experiments import BACKBONES, NOISE
from rich.console import Console

from lingualift.config import Method
from lingualift.evaluation.comparisons import item_draws
from lingualift.evaluation.metrics import METRICS
from lingualift.pipeline.methods import variant

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
TASKS = {"world": ("mini-sentiment", "mini-qa")}
"""Tasks by setting; the others are named as their setting."""


class Row(NamedTuple):
    """A row of a table of results: of which run, which task, which method."""

    part: str
    task: str
    method: str
    variant: str = ""


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
class Question:
    """A comparison to be made.

    Attributes:
        question: As PROTOCOL.md numbers it.
        setting: World, NusaX, ...
        label: What a figure calls it.
        one: The row in question.
        base: The row that it is compared with.
        named: Whether it is among the comparisons that were named beforehand.
    """

    question: str
    setting: str
    label: str
    one: Row
    base: Row
    named: bool = False


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
    adjusted = holm([entry["p"] for entry in entries if entry["named"]])
    for entry, p in zip([entry for entry in entries if entry["named"]], adjusted, strict=True):
        entry |= {"p_holm": p, "clear": max(p, entry["p_parts"]) <= LEVEL}
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


class Runs:
    """The finished runs of the study, read when they are asked for."""

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
        golds = [tuple(answer["gold"]) for answer in answers]
        given = [answer["prediction"] for answer in answers]
        metric = METRICS[row["metric"]]
        blocks = self._draws(tuple(answer["id"] for answer in answers))
        draws = [metric.resampled(given, golds, row["answer_language"], counts) for counts in blocks]
        return Scored(row["score"], np.concatenate(draws), len(answers))

    def effect(self, question: Question) -> Effect:
        """The difference of two rows on the average of the reported languages."""
        one = self.cells(question.setting, question.one)
        base = self.cells(question.setting, question.base)
        there = {cell.language for cell in one} & {cell.language for cell in base}
        languages = [code for code in REPORTED[question.setting] if code in there]
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


TUNED = ("adamergex", "factors")
SUBTRACTED, PLAIN = ("adamergex", "delta-weight=1"), ("arithmetic", "delta-sum-weight=1")
SOURCE = ("source-ft", "")


def questions() -> Iterator[Question]:
    """Every comparison of PROTOCOL.md."""
    for setting in ("world", "nusax", "nusatranslation"):
        for task in TASKS.get(setting, (setting,)):
            yield from _merging(setting, task)
    for setting in ("world", "nusaxweak"):
        for task in TASKS.get(setting, ("nusax",)):
            yield from _references(setting, task)
    yield from _untrained()
    for setting, task in (("world", "mini-sentiment"), ("nusax", "nusax")):
        yield from _fusing(setting, task)


def _untrained() -> Iterator[Question]:
    """What training brought at all: rows against the backbone as it is."""
    for setting in ("world", "nusax", "nusatranslation"):
        for task in TASKS.get(setting, (setting,)):
            found = [("main", *SOURCE), ("main", *TUNED), ("main", "reference-only", "")]
            if setting == "world":
                found.append(("main", "target-ft", ""))
            if task in ("mini-sentiment", "nusax"):
                found.append(("noise0", "translate-train", ""))
            for part, method, how in found:
                label = f"{task.removeprefix('mini-')}: {method}"
                base = Row("main", task, "vanilla")
                yield Question("V", setting, label, Row(part, task, method, how), base)


def _merging(setting: str, task: str) -> Iterator[Question]:
    def row(part: str, method: str, variant: str = "") -> Row:
        return Row(part, task, method, variant)

    source = row("main", *SOURCE)
    name = task.removeprefix("mini-")
    for rival in (SOURCE, ("arithmetic", "delta-sum"), ("reference-only", "")):
        label = f"{name}: against {rival[0]}"
        yield Question("M1", setting, label, row("main", *TUNED), row("main", *rival), named=True)
    for method, how in (TUNED, ("adamergex", "delta"), ("arithmetic", "delta-sum")):
        rules = [
            ("λ = 0.5", row("main", method, f"{how}-weight=0.5")),
            ("λ = 1", row("main", method, f"{how}-weight=1")),
            ("tuned on another language", row("main", method, how)),
        ]
        if task != "mini-qa":  # which has no classes
            rules.append(("least entropy", row("entropy", method, how)))
        for rule, one in rules:
            yield Question("M5", setting, f"{name}: {method} {how}, {rule}", one, source)
        half = rules[0][1]
        for rule, one in rules[1:]:
            yield Question("M5-rules", setting, f"{name}: {method} {how}, {rule}", one, half)
    if setting == "nusatranslation":
        return
    parts = {
        "all modules": "",
        "attention": "-modules=(q|k|v|o)_proj",
        "queries, values": "-modules=(q|v)_proj",
        "feed-forward": "-modules=(gate|up|down)_proj",
    }
    for what, pattern in parts.items():
        one = row("modules", "adamergex", f"delta{pattern}-weight=1")
        yield Question("M4", setting, f"{name}: {what}", one, row("modules", *SOURCE))
        if pattern:
            every = row("modules", "adamergex", "delta-weight=1")
            yield Question("M4", setting, f"{name}: {what} against all modules", one, every)


def _references(setting: str, task: str) -> Iterator[Question]:
    name = task.removeprefix("mini-")

    def ask(question: str, label: str, one: Row, base: Row) -> Question:
        return Question(question, setting, f"{name}: {label}", one, base)

    if setting == "world":
        regimes = {
            "text as the task's": "main",
            "trained for 400 steps": "steps400",
            "format of its own": "format",
            "100 target texts, all source": "unequal",
            "dialogues": "dialogue",
            "dialogues, 200 steps at 2e-3": "dialoguelong",
            "another labelled task": "sentimentbyqa" if task == "mini-sentiment" else "qabysentiment",
        }
    else:
        regimes = {"text as the task's": "main", "trained for 25 steps": "steps25", "another domain": "news"}
    for regime, part in regimes.items():
        subtracted, plain = Row(part, task, *SUBTRACTED), Row(part, task, *PLAIN)
        source = Row(part, task, *SOURCE)
        yield ask("M2", regime, subtracted, plain)
        yield ask("M2-source", f"{regime}, subtracted", subtracted, source)
        yield ask("M2-source", f"{regime}, not subtracted", plain, source)
    if setting != "world":
        return
    long = [Row("dialoguelong", task, *row) for row in (("reference-only", ""), SUBTRACTED, PLAIN, SOURCE)]
    yield ask("M2-source", "dialogues, 200 steps at 2e-3, reference alone", long[0], long[3])
    for what, half in (
        ("subtracted", ("adamergex", "delta")),
        ("not subtracted", ("arithmetic", "delta-sum")),
    ):
        row = Row("dialoguelong", task, half[0], f"{half[1]}-weight=0.5")
        yield ask("M2-source", f"dialogues, 200 steps at 2e-3, λ = 0.5, {what}", row, long[3])
    bound = Row("main", task, "target-ft")
    yield ask("M2-only", "reference alone against target-ft", long[0], bound)
    yield ask("M2-only", "subtracted against reference alone", long[1], long[0])
    yield ask("M2-only", "not subtracted against reference alone", long[2], long[0])
    for method, start in (("adamergex", "shared"), ("adamergex-own-start", "own")):
        for space in ("factors", "delta"):
            for weight in ("0.5", "1"):
                one = Row("starts", task, method, f"{space}-weight={weight}")
                label = f"{space}, {start} initialisation, λ = {weight}"
                yield ask("M3", label, one, Row("starts", task, *SOURCE))
                if start == "own":
                    shared = Row("starts", task, "adamergex", f"{space}-weight={weight}")
                    yield ask("M3", f"{space}, λ = {weight}: own against shared", one, shared)
    for weight in ("0.5", "1"):
        one, base = (
            Row("starts", task, "adamergex", f"{space}-weight={weight}") for space in ("delta", "factors")
        )
        yield ask("M3", f"λ = {weight}: delta against factors", one, base)
    of_ia3 = Row("ia3", task, *SOURCE)
    yield ask("M6", "source-ft: (IA)³ against LoRA", of_ia3, Row("main", task, *SOURCE))
    yield ask("M6", "LoRA, λ = 1", Row("main", task, *SUBTRACTED), Row("main", task, *SOURCE))
    tuned = Row("main", task, "adamergex", "delta")
    yield ask("M6", "LoRA, λ tuned", tuned, Row("main", task, *SOURCE))
    yield ask("M6", "(IA)³, λ = 1", Row("ia3", task, "adamergex", "weight=1"), of_ia3)
    yield ask("M6", "(IA)³, λ tuned", Row("ia3", task, "adamergex"), of_ia3)
    for size, part in (("100", "text100"), ("500", "text500"), ("2000", "main")):
        one = Row(part, task, *SUBTRACTED)
        yield ask("M7", f"{size} texts", one, Row(part, task, *SOURCE))
        if size != "2000":
            yield ask("M7", f"{size} texts against 2000", one, Row("main", task, *SUBTRACTED))
    if task == "mini-sentiment":  # whose form the dialogues do not hold
        return
    for size, part in (("100", "dialogue100"), ("500", "dialogue500"), ("2000", "dialoguelong")):
        for what, row in (("reference alone", ("reference-only", "")), ("not subtracted", PLAIN)):
            label = f"{size} dialogues, 200 steps at 2e-3, {what}"
            yield ask("M7", label, Row(part, task, *row), Row(part, task, *SOURCE))


def _fusing(setting: str, task: str) -> Iterator[Question]:
    def flare(name: str, **settings: str) -> tuple[str, str]:
        """A row of FLARE; at the block's output as in the protocol, where the default is another since."""
        method = Method(method="flare", fusion=name, **{"source_state": "block-output", **settings})
        return "flare", variant(method, "lora")

    fused, entering = flare("add_relu"), flare("add_relu", source_state="block-input")
    rivals = ("translate-test", "translate-train", "input-fusion", "x-mixup")
    kinds = [
        ("cross_attention", flare("cross_attention"), fused),
        ("block input", entering, fused),
        ("projection input", flare("add_relu", source_state="projection-input"), fused),
    ]
    if setting == "world":
        others = ("add", "mul", "matmul", "matmul_relu")
        kinds = [*((name, flare(name), fused) for name in others), *kinds]
        kinds.append(("padded on the right", flare("add_relu", padding="right"), fused))
        mt = ("flare-mt", "add_relu")
        crossed = flare("cross_attention", source_state="block-input")
        right = flare("add_relu", source_state="block-input", padding="right")
        kinds.append(("block input: cross_attention against add_relu", crossed, entering))
        kinds.append(("block input: padded right against left", right, entering))
        kinds.append(("flare-mt against flare, block input", mt, entering))
        kinds.append(("flare-mt against translate-train", mt, ("translate-train", "")))

    def ask(
        question: str, label: str, one: tuple[str, str], base: tuple[str, str], part: str, **more: Any
    ) -> Question:
        return Question(question, setting, label, Row(part, task, *one), Row(part, task, *base), **more)

    for share in NOISE:
        part, wrong = f"noise{share:g}", f"{share:.0%} wrong"
        named = share in (0.0, 0.2)
        for rival in rivals:
            yield ask("F1", f"{wrong}: flare against {rival}", fused, (rival, ""), part, named=named)
            yield ask("F1-input", f"{wrong}: flare against {rival}", entering, (rival, ""), part)
        yield ask("F1-source", f"{wrong}: flare, block output", fused, SOURCE, part)
        yield ask("F1-source", f"{wrong}: flare, block input", entering, SOURCE, part)
        for rival in rivals:
            yield ask("F1-source", f"{wrong}: {rival}", (rival, ""), SOURCE, part)
        for label, one, base in kinds:
            yield ask("F1-kinds", f"{wrong}: {label}", one, base, part)
    for rival in ("translate-train", "x-mixup"):
        yield ask("F1-train", rival, (rival, ""), SOURCE, "worsetrain")
    yield ask("F1-train", "flare, block input", entering, SOURCE, "worsetrain")
    for rival in ("translate-train", "x-mixup"):
        label = f"flare, block input, against {rival}"
        yield ask("F1-train", label, entering, (rival, ""), "worsetrain")
    mixed = ("x-mixup", "")
    yield ask("F1-train", "x-mixup against translate-train", mixed, ("translate-train", ""), "worsetrain")
    reading = {name: (name, "") for name in ("translate-test", "input-fusion", "x-mixup")}
    reading |= {"flare, block output": fused, "flare, block input": entering}
    reading["flare cross_attention"] = flare("cross_attention")
    for label, one in reading.items():
        for rival in (SOURCE, ("translate-train", "")):
            yield ask("F2", f"{label} against {rival[0]}", one, rival, "blank")
    merged = ("adamergex", "delta-weight=0.5")
    places = {
        "block output": (fused, "add_relu-source_state=block-output-space=delta-weight=0.5"),
        "block input": (entering, "add_relu-space=delta-weight=0.5"),
    }
    for part, wrong in (("both", "0%"), ("bothnoise", "20%")):
        for place, (alone, onto) in places.items():
            both = ("flare-on-merged", onto)
            yield ask("B1", f"{wrong} wrong, {place}: both against flare", both, alone, part)
            yield ask("B1", f"{wrong} wrong, {place}: both against merging", both, merged, part)
    yield ask("B1", "merging against source-ft", merged, SOURCE, "both")


def of_question(effects: Iterable[Mapping[str, Any]], question: str) -> list[Mapping[str, Any]]:
    """The effects that answer a question."""
    return [one for one in effects if one["question"] == question]


if __name__ == "__main__":
    main()
