"""Model cards: what an adapter is, how to load it, what it was made from, whom to cite. Needs PyYAML only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lingualift.adapters.config import BOTTLENECK
from lingualift.languages import language

CARD_FILE = "README.md"
HERE = 'adapter = "."  # the folder of this file'
"""The line of a card that says where the adapter is; on the hub it names the repository."""

_PIPELINES = {"CAUSAL_LM": "text-generation", "SEQ_2_SEQ_LM": "text2text-generation"}
_CODE_OR_HTML = re.compile(r"(?P<code>(?<!`)(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`))|[<&]")
_FUSED = {"FLARE": "lingualift.load_flare", "X-MIXUP": "lingualift.load_mixup"}
_HUB_ID = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")
_LIMITS = (
    "Made for the backbone named above and for no other.",
    "What it scores is said above where it was measured; where nothing is said, nothing was measured.",
    "Errors and prejudices of the backbone and of the texts it was trained on stay. Test it on rows of your own, in "
    "every language you use it in, before anything depends on its answers.",
)
_ADAMERGEX = "https://arxiv.org/abs/2402.18913"
_LACKS = "the backbone's checkpoint has none"
_PAPERS = {
    "flare": ("FLARE", "https://arxiv.org/abs/2501.06892"),
    "x-mixup": ("X-Mixup", "https://arxiv.org/abs/2205.04182"),
}


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        title: Heading.
        summary: What the adapter is, in a paragraph.
        config: Content of `adapter_config.json`.
        backbone: `name` and `revision` of the backbone, as far as they are known.
        languages: Codes; those the registry knows are written as BCP-47.
        tags: Further tags for the hub.
        datasets: Ids on the hub of what it was trained on.
        sections: Markdown between the summary and the code that loads it.
        sources: URLs of the methods used, to be cited as far as `CITATIONS` has them.
    """

    title: str
    summary: str
    config: Mapping[str, Any]
    backbone: Mapping[str, Any]
    languages: Sequence[str] = ()
    tags: Sequence[str] = ()
    datasets: Sequence[str] = ()
    sections: Sequence[str] = ()
    sources: Sequence[str] = ()

    def text(self) -> str:
        """The card: front matter for the hub, then text for people. It holds no path of this machine."""
        front = yaml.safe_dump(self.front_matter(), sort_keys=False, allow_unicode=True)
        parts = [
            f"---\n{front}---",
            f"# {self.title}",
            self.summary,
            *self.sections,
            f"## Use\n\n```python\n{self._code()}\n```",
            "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _LIMITS),
        ]
        cited = "\n\n".join(
            CITATIONS[source] for source in dict.fromkeys(self.sources) if source in CITATIONS
        )
        parts += [f"## Citation\n\n```bibtex\n{cited}\n```"] if cited else []
        return "\n\n".join(parts) + "\n"

    def front_matter(self) -> dict[str, Any]:
        """The hub's metadata (https://huggingface.co/docs/hub/model-cards); what is not known is left out."""
        name = self.backbone.get("name")
        kind = str(self.config.get("peft_type", "")).lower()
        known: dict[str, Any] = {
            "base_model": name if is_hub_id(name) else None,
            "base_model_relation": "adapter" if is_hub_id(name) else None,
            "library_name": "lingualift" if self._fused or kind == BOTTLENECK.lower() else "peft",
            "language": list(dict.fromkeys(_bcp47(code) for code in self.languages)),
            "pipeline_tag": _PIPELINES.get(str(self.config.get("task_type"))),
            "datasets": list(dict.fromkeys(self.datasets)),
            "tags": list(dict.fromkeys(filter(None, ("lingualift", kind, *self.tags)))),
        }
        return {key: value for key, value in known.items() if value}

    @property
    def _fused(self) -> str | None:
        """What loads an adapter that reads a source side, which plain peft refuses; None of another."""
        return _FUSED.get(str(self.config.get("peft_type")))

    def _code(self) -> str:
        name, revision = self.backbone.get("name"), self.backbone.get("revision")
        comment = "" if is_hub_id(name) else "  # the folder of the backbone"
        pinned = f", revision={_literal(revision)}" if is_hub_id(name) and revision else ""
        load = self._fused or "PeftModel.from_pretrained"
        first = "import lingualift" if self._fused else "from peft import PeftModel"
        if self.config.get("peft_type") == BOTTLENECK:
            first = f"import lingualift.bottlenecks  # peft knows the kind then\n{first}"
        encoder, argument, reads = self.config.get("source_encoder"), "", ""
        classes = "AutoModelForCausalLM"
        if encoder:
            argument, classes = ", source_encoder=reader", f"{classes}, AutoModelForSeq2SeqLM"
            where = "" if is_hub_id(encoder) else "  # the folder of the translation model"
            reads = f"reader = AutoModelForSeq2SeqLM.from_pretrained({_literal(shown(encoder))}){where}\n"
        return (
            f"{first}\n"
            f"from transformers import {classes}, AutoTokenizer\n\n"
            f"backbone = {_literal(shown(name))}{comment}\n"
            f"{HERE}\n"
            f"tokenizer = AutoTokenizer.from_pretrained(backbone{pinned})\n"
            f"{reads}"
            f"model = {load}(AutoModelForCausalLM.from_pretrained(backbone{pinned}), adapter{argument})"
        )


def is_hub_id(name: object) -> bool:
    """Whether a backbone's name can be one on the hub: no path, and no folder here."""
    return isinstance(name, str) and bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def shown(name: object) -> str:
    """A backbone's name for others to read: a hub id as it is, of a path only its end."""
    return str(name) if is_hub_id(name) else Path(str(name or "BACKBONE")).name


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; a cell is one line, and holds no HTML."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(as_line(cell, bars=True) for cell in cells) + " |" for cells in lines)


def as_line(text: object, *, bars: bool = False) -> str:
    """Markdown of ours with words of others in it, in one line and without HTML.

    Args:
        text: The text; what stands between backticks stays as it is.
        bars: Whether it is a cell of a table.
    """
    bare = _one_line(str(text)).replace("|", "\\|") if bars else _one_line(str(text))
    return _CODE_OR_HTML.sub(lambda found: found[0] if found["code"] else f"&#{ord(found[0])};", bare)


def as_word(text: object) -> str:
    """Somebody's word in Markdown: nothing in it means anything but itself."""
    return re.sub(r"([\\`*\[\]<>&!#~])", r"\\\1", _one_line(str(text)))


def as_code(text: object) -> str:
    """Somebody's word as code in Markdown."""
    return f"`{_one_line(str(text)).replace('`', chr(39))}`"


def _one_line(text: str) -> str:
    """The text without line ends and what does not print."""
    spaced = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in spaced)


def _literal(text: object) -> str:
    """A Python literal of a text, in one line."""
    plain = str(text)
    return json.dumps(plain, ensure_ascii=not plain.isprintable())


def _bcp47(code: str) -> str:
    from lingualift.errors import UserError

    try:
        return language(code).code
    except UserError:  # of an adapter that was not made here
        return code


CITATIONS = {
    "https://arxiv.org/abs/2402.18913": """@misc{zhao2024adamergex,
  title = {AdaMergeX: Cross-Lingual Transfer with Large Language Models via Adaptive Adapter Merging},
  author = {Yiran Zhao and Wenxuan Zhang and Huiming Wang and Kenji Kawaguchi and Lidong Bing},
  year = {2024},
  eprint = {2402.18913},
  archivePrefix = {arXiv}
}""",
    "https://arxiv.org/abs/2306.14870": """@misc{zhang2023composing,
  title = {Composing Parameter-Efficient Modules with Arithmetic Operations},
  author = {Jinghan Zhang and Shiqi Chen and Junteng Liu and Junxian He},
  year = {2023},
  eprint = {2306.14870},
  archivePrefix = {arXiv}
}""",
    "https://arxiv.org/abs/2306.01708": """@misc{yadav2023ties,
  title = {TIES-Merging: Resolving Interference When Merging Models},
  author = {Prateek Yadav and Derek Tam and Leshem Choshen and Colin Raffel and Mohit Bansal},
  year = {2023},
  eprint = {2306.01708},
  archivePrefix = {arXiv}
}""",
    "https://arxiv.org/abs/2410.01335": """@misc{bandarkar2024layer,
  title = {Layer Swapping for Zero-Shot Cross-Lingual Transfer in Large Language Models},
  author = {Lucas Bandarkar and Benjamin Muller and Pritish Yuvraj and Rui Hou and Nayan Singhal and Hongjiang Lv
    and Bing Liu},
  year = {2024},
  eprint = {2410.01335},
  archivePrefix = {arXiv}
}""",
    "https://arxiv.org/abs/2509.17786": """@misc{panariello2025core,
  title = {Accurate and Efficient Low-Rank Model Merging in Core Space},
  author = {Aniello Panariello and Daniel Marczak and Simone Magistri and Angelo Porrello and Bart{\\l}omiej Twardowski
    and Andrew D. Bagdanov and Simone Calderara and Joost van de Weijer},
  year = {2025},
  eprint = {2509.17786},
  archivePrefix = {arXiv}
}""",
    "https://arxiv.org/abs/2311.03099": """@misc{yu2023dare,
  title = {Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch},
  author = {Le Yu and Bowen Yu and Haiyang Yu and Fei Huang and Yongbin Li},
  year = {2023},
  eprint = {2311.03099},
  archivePrefix = {arXiv}
}""",
}
"""How the methods ask to be cited, by the URL that the rest of the package knows them by."""


def trained_card(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The card of an adapter from its configuration and its provenance."""
    backbone = {"name": config.get("base_model_name_or_path"), "revision": config.get("revision")}
    kind = str(config["peft_type"]).lower()
    if facts["kind"] == "initialisation":
        title = f"{kind} adapter before training"
        summary = "A recorded start for adapters that are to be merged."
        if kind in _PAPERS:
            summary = (
                "A recorded start; the first stage, trained on the source language, is in `first-stage/`."
            )
        return Card(title, summary, config, backbone).text()
    task, spoken = Path(str(facts.get("task", "a task"))).stem, facts.get("language")
    where = f" in {language(spoken).name}" if spoken else ""
    settings = facts["settings"]
    recipe = [
        ("backbone", as_code(shown(facts["backbone"]["name"]))),
        ("task", task),
        *([("language", f"{language(spoken).name} ({spoken})")] if spoken else []),
        *([("source side", _told(beside))] if (beside := facts.get("beside_language")) else []),
        ("training rows", facts["rows"]),
        ("optimiser steps", facts["steps"]),
        ("rows per step and device", settings["batch_size"] * settings["accumulation"]),
        ("peak learning rate", f"{settings['learning_rate']:g}, {settings['scheduler']}"),
        ("seed", facts["seed"]),
        *_made_here(facts),
    ]
    source = _ADAMERGEX
    use = f"to be used as it is or merged into another language ([AdaMergeX]({source}))"
    if kind in _PAPERS:
        name, source = _PAPERS[kind]
        use = f"beside the same rows in the source language, which it needs in use too ([{name}]({source}))"
    if encoder := config.get("source_encoder"):
        use = f"beside what the encoder of {as_code(shown(encoder))} makes of the same text ([FLARE-MT]({source}))"
    dataset = (facts.get("data") or {}).get("hub")
    return Card(
        title=f"{as_word(task)}{where}: {kind} adapter",
        summary=f"Trained with lingualift on the frozen backbone, {use}. "
        "What it was made from is in `provenance.json`.",
        config=config,
        backbone=backbone,
        languages=(spoken,) if spoken else (),
        datasets=(dataset,) if dataset else (),
        sections=(table(("made with", ""), recipe),),
        sources=(source,),
    ).text()


def _made_here(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of the recipe about parts that the backbone's checkpoint lacks."""
    lines = []
    if head := facts.get("words_head"):
        lines.append(
            (
                "head for words",
                f"trained by lingualift on {', '.join(head['languages'])}, then frozen: {_LACKS}",
            )
        )
    if "pooler" in facts.get("drawn", ()):
        lines.append(("pooling layer", f"drawn from the seed and trained with the head: {_LACKS}"))
    return lines


def words_card(facts: Mapping[str, Any]) -> str:
    """The card of a trained head for words, from its provenance."""
    settings, names = facts["settings"], [language(code).name for code in facts["languages"]]
    recipe = [
        ("backbone", as_code(shown(facts["backbone"]["name"]))),
        ("languages", ", ".join(names)),
        ("texts", facts["rows"]),
        ("optimiser steps", facts["steps"]),
        ("segments per step and device", settings["batch_size"] * settings["accumulation"]),
        ("peak learning rate", f"{settings['learning_rate']:g}, {settings['scheduler']}"),
        ("seed", facts["seed"]),
    ]
    about = (
        "For training reference adapters by masked words on a backbone whose checkpoint has no head for that. It is a "
        "small transform before the backbone's own embeddings, trained on the frozen backbone, and frozen itself while "
        "references are trained. It is no adapter, and no part of one: neither a merge nor a task reads it."
    )
    return "\n\n".join(["# Head for words", about, table(("made with", ""), recipe)]) + "\n"


def _told(beside: str) -> str:
    """What a fused adapter reads, and how it is given it."""
    name = language(beside).name
    return f"{name} ({beside}): the same rows in it, `lingualift predict --beside` or `ll.predict(beside=…)`"
