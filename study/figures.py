"""From `study/numbers.json` to the figures in `study/figures/` and the tables in `study/README.md`.

python study/figures.py
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from effects import NUMBERS, of_question
from rich.console import Console

mpl.use("svg")

import matplotlib.pyplot as plt

PAGES = Path(__file__).parent
ABOVE, BELOW, LEVEL = "#0b7285", "#c2410c", "#868e96"
SETTINGS = {
    "world": "mini-world (sw, id, ht), 3 backbones × 3 seeds",
    "nusax": "NusaX (ace, ban, bjn, jav, min, sun), 3 seeds",
    "nusaxweak": "NusaX (jav, min, sun), 3 seeds",
    "nusatranslation": "NusaTranslation (mad, min, sun), 3 seeds",
}
FUSED = {**SETTINGS, "nusax": SETTINGS["nusaxweak"]}
"""Fusing on NusaX is trained for three languages."""
TITLES = {
    "V": "Trained minus untrained backbone",
    "M1": "AdaMergeX (factors, λ tuned) minus its rivals",
    "M2": "What subtracting the source reference adds: AdaMergeX minus plain sum (delta, λ = 1)",
    "M2-source": "AdaMergeX and plain sum minus source-ft (delta, λ = 1), by reference",
    "M2-only": "References on dialogues, 200 steps at 2e-3: alone, and merged (delta, λ = 1)",
    "M3": "AdaMergeX minus source-ft, by space and initialisation",
    "M4": "AdaMergeX minus source-ft, by merged modules (delta, λ = 1)",
    "M5": "Merging minus source-ft, by the rule that sets λ",
    "M5-rules": "Rules that set λ minus λ = 0.5",
    "M6": "AdaMergeX minus source-ft, by kind of adapter",
    "M7": "By texts per language, AdaMergeX (delta, λ = 1) where no other row is named; minus source-ft",
    "F1": "FLARE (add_relu, block output) minus its rivals, by share of wrong English words",
    "F1-input": "FLARE (add_relu, block input) minus its rivals, by share of wrong English words",
    "F1-source": "Scores over the share of wrong English words",
    "F1-kinds": "Ways to fuse; minus FLARE (add_relu, block output) where nothing else is said",
    "F1-train": "A fifth of the words wrong in training rows too; minus source-ft where nothing else is said",
    "F2": "With a blank English side",
    "B1": "Merging and fusing together",
}

Effect = Mapping[str, Any]


def main() -> None:
    """Draw the figures and fill the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=Path, default=PAGES, help="holds README.md")
    options = parser.parse_args()
    numbers = json.loads(NUMBERS.read_text(encoding="utf-8"))
    folder = options.pages / "figures"
    folder.mkdir(exist_ok=True)
    style = {"svg.fonttype": "none", "svg.hashsalt": "study", "font.family": "sans-serif", "font.size": 9}
    with plt.rc_context(style):
        for question, title in TITLES.items():
            draw = over_noise if question == "F1-source" else forest
            save(draw(of_question(numbers["effects"], question), title), folder / f"{question}.svg")
        save(curves(numbers["curves"]), folder / "M5-curves.svg")
        save(by_language(numbers["effects"]), folder / "languages.svg")
    page = options.pages / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), numbers), encoding="utf-8")
    Console().print(f"next: read {page}")


def save(figure: Any, path: Path) -> None:
    """Write a figure; the same numbers give the same file."""
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def forest(effects: Sequence[Effect], title: str) -> Any:
    """Effects with their intervals, a panel for each setting, a line for each comparison."""
    settings = list(dict.fromkeys(one["setting"] for one in effects))
    rows = [[one for one in effects if one["setting"] == setting] for setting in settings]
    heights = [len(mine) + 1.5 for mine in rows]
    figure, panels = plt.subplots(
        len(rows),
        1,
        figsize=(8, 0.24 * sum(heights) + 0.8),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
    )
    for axes, setting, mine in zip(panels[:, 0], settings, rows, strict=True):
        for place, one in enumerate(mine):
            colour = ABOVE if one["low"] > 0 else BELOW if one["high"] < 0 else LEVEL
            axes.plot(
                [one["low"], one["high"]], [place, place], color=colour, linewidth=2, solid_capstyle="round"
            )
            axes.plot(one["parts"], [place] * len(one["parts"]), "|", color=colour, markersize=7)
            axes.plot(one["gain"], place, "D" if one.get("clear") else "o", color=colour, markersize=5)
            axes.annotate(
                told(one), (1.01, place), xycoords=("axes fraction", "data"), va="center", color=colour
            )
        axes.axvline(0, color="#343a40", linewidth=0.8)
        axes.set_yticks(range(len(mine)), [one["label"] for one in mine])
        axes.set_ylim(len(mine) - 0.4, -0.6)
        names = FUSED if one["question"][0] in "FB" else SETTINGS
        axes.set_title(names[setting], loc="left", fontsize=9, fontweight="bold")
        axes.grid(axis="x", color="#e9ecef")
        axes.set_axisbelow(True)
        axes.tick_params(left=False)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    panels[-1, 0].set_xlabel("points, with 95% interval")
    return titled(figure, title)


def curves(sweeps: Iterable[Mapping[str, Any]]) -> Any:
    """Validation scores over λ, minus those at λ = 0, a line for each language."""
    kept = [one for one in sweeps if (one["method"], one["variant"]) in MERGES]
    columns = list(dict.fromkeys((one["setting"], one["task"]) for one in kept))
    figure, panels = plt.subplots(
        len(MERGES),
        len(columns),
        figsize=(3 * len(columns), 2.2 * len(MERGES)),
        sharex=True,
        sharey="col",
        squeeze=False,
    )
    for line, (merge, name) in zip(panels, MERGES.items(), strict=True):
        for axes, (setting, task) in zip(line, columns, strict=True):
            mine = [
                one
                for one in kept
                if (one["setting"], one["task"], one["method"], one["variant"]) == (setting, task, *merge)
            ]
            for language in dict.fromkeys(one["language"] for one in mine):
                tried = [one["tried"] for one in mine if one["language"] == language]
                weights = [weight for weight, _ in tried[0]]
                change = [
                    statistics.fmean(run[index][1] - run[0][1] for run in tried)
                    for index in range(len(weights))
                ]
                decides = any(one["decides"] for one in mine if one["language"] == language)
                label = f"{language} (λ is tuned here)" if decides else language
                axes.plot(weights, change, "--" if decides else "-", label=label, linewidth=1.4)
            axes.axhline(0, color="#343a40", linewidth=0.8)
            axes.set_title(f"{task}: {name}", loc="left", fontsize=8)
            lighten(axes)
    for axes in panels[-1]:
        axes.set_xlabel("λ")
        axes.legend(fontsize=6, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.3))
    for axes in panels[:, 0]:
        axes.set_ylabel("points above λ = 0")
    return titled(figure, "Validation scores over λ, mean over backbones and seeds")


LIFTS = {
    ("M5", "adamergex delta, λ = 0.5"): "merging (adamergex, delta, λ = 0.5)",
    ("F1-source", "20% wrong: flare, block input"): "fusing (flare, block input), 20% wrong",
    ("F1-source", "0% wrong: translate-train"): "translate-train",
}
"""The lifts over source-ft that are drawn by language: question and end of the label, and name."""
RARITY = {
    "world": {"sw": "4.5%", "id": "4.5%", "ht": "5.0%"},
    "nusax": {
        "ace": "0.07 MB",
        "ban": "0.07 MB",
        "bjn": "0.07 MB",
        "jav": "4–7 MB",
        "min": "4–7 MB",
        "sun": "4–7 MB",
    },
}
"""How much of the pretraining text is in a language, from rare to frequent."""


def by_language(effects: Sequence[Effect]) -> Any:
    """Points above source-ft by language, from rare to frequent, a panel for each setting."""
    figure, panels = plt.subplots(1, len(RARITY), figsize=(9, 3.6), width_ratios=[3, 6], squeeze=False)
    for axes, (setting, languages) in zip(panels[0], RARITY.items(), strict=True):
        for offset, ((question, label), name) in zip((-0.1, 0, 0.1), LIFTS.items(), strict=True):
            mine = [one for one in of_question(effects, question) if one["setting"] == setting]
            found = [
                one for one in mine if one["label"].endswith(label) and not one["label"].startswith("qa")
            ]
            gains = found[0]["languages"]
            places = [place + offset for place, code in enumerate(languages) if code in gains]
            drawn = [gains[code] for code in languages if code in gains]
            axes.plot(places, drawn, "o", label=name, markersize=6)
        axes.axhline(0, color="#343a40", linewidth=0.8)
        ticks = [f"{code}\n{share}" for code, share in languages.items()]
        axes.set_xticks(range(len(languages)), ticks, fontsize=8)
        axes.set_title(SETTINGS[setting].partition(" (")[0], loc="left", fontsize=9, fontweight="bold")
        axes.set_xlabel("language, and its pretraining text")
        lighten(axes)
    panels[0, 0].set_ylabel("points above source-ft")
    panels[0, -1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return titled(figure, "Lift by language, from rare to frequent")


def over_noise(effects: Sequence[Effect], title: str) -> Any:
    """Scores over the share of wrong words, a panel for each setting, a line for each method."""
    settings = list(dict.fromkeys(one["setting"] for one in effects))
    figure, panels = plt.subplots(1, len(settings), figsize=(4.4 * len(settings), 3.6), squeeze=False)
    for axes, setting in zip(panels[0], settings, strict=True):
        mine = [one for one in effects if one["setting"] == setting]
        for name in dict.fromkeys(method_of(one) for one in mine):
            line = [one for one in mine if method_of(one) == name]
            shares = [100 * float(one["one"][0].removeprefix("noise")) for one in line]
            scores = [one["score"] for one in line]
            axes.plot(
                shares,
                scores,
                marker="o",
                markersize=4,
                label=name,
                linewidth=1.8 if "flare" in name else 1.2,
            )
        axes.axhline(mine[0]["base_score"], color="#343a40", linestyle=":", label="source-ft")
        axes.set_title(FUSED[setting], loc="left", fontsize=9, fontweight="bold")
        axes.set_xlabel("wrong English words at test time, in percent")
        lighten(axes)
    panels[0, 0].set_ylabel("score, mean over languages")
    panels[0, -1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return titled(figure, title)


def method_of(effect: Effect) -> str:
    """The method in a label such as `20% wrong: flare`."""
    return str(effect["label"]).split(": ", 1)[1]


def lighten(axes: Any) -> None:
    """A pale grid, and no frame above and on the right."""
    axes.grid(color="#e9ecef")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def titled(figure: Any, title: str) -> Any:
    """The figure under its title."""
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
    figure.tight_layout()
    return figure


MERGES = {
    ("adamergex", "factors"): "AdaMergeX, factors",
    ("adamergex", "delta"): "AdaMergeX, delta",
    ("arithmetic", "delta-sum"): "plain sum, delta",
}
"""The merges whose curves are drawn."""


def told(effect: Effect) -> str:
    """An effect with its interval: `+1.2 [+0.3, +2.0]`."""
    return f"{effect['gain']:+.1f} [{effect['low']:+.1f}, {effect['high']:+.1f}]"


def table(effects: Sequence[Effect]) -> str:
    """A Markdown table of effects."""
    named = any(one["named"] for one in effects)
    each = "each backbone (mini-world) or seed"
    heads = ["setting", "", "points, 95% interval", each, "score", "against", "n"]
    heads += ["p (Holm)"] if named else []
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for one in effects:
        p = f"{one['p_holm']:.3f}" if one["named"] else "–"
        scores = [f"{one['score']:.1f}", f"{one['base_score']:.1f}"]
        parts = ", ".join(f"{part:+.1f}" for part in one["parts"])
        cells = [one["setting"], one["label"], told(one), parts, *scores, str(one["n"])]
        lines.append("| " + " | ".join(cells + ([p] if named else [])) + " |")
    return "\n".join(lines)


def filled(page: str, numbers: Mapping[str, Any]) -> str:
    """The page with every `<!-- table Q -->` ... `<!-- end -->` filled with the effects of question Q."""

    def fill(found: re.Match[str]) -> str:
        effects = of_question(numbers["effects"], found[1])
        return f"<!-- table {found[1]} -->\n\n{table(effects)}\n\n<!-- end -->"

    return re.sub(r"<!-- table (\S+) -->.*?<!-- end -->", fill, page, flags=re.DOTALL)


if __name__ == "__main__":
    main()
