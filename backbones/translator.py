"""A small NLLB-class translator, trained from scratch: for measurements of FLARE where no hub can be reached.

    python backbones/translator.py --world --output translators/world   # two to three minutes of one core
    python backbones/translator.py --texts ../shared/data --output translators/nusa   # about ten
    lingualift translate --model translators/nusa --source jav --target eng --task nusax ...

M2M100, as NLLB is, with NLLB's tags and BPE of its own. `--world`: between English and the other languages of the
mini-world, with their shares in the backbone's pretraining, on meanings of its split "pretraining" alone.
`--texts`: English, Indonesian and the local languages of NusaX, on gzipped JSON Lines in a folder: `nusax` and
`nusatranslation` (train, row-aligned), `bible` (English, Indonesian, by `verse_id`) and `ntrex` (English, Indonesian,
by line); a row that has a text of the validation or test splits of either set in any language is left out in all. One
example in seven is no translation but a text to be mended (`noise.py`). English has 500 rows beside the local
languages there, and the recipe's steps are few: what it writes loops and scores below the untranslated text, as its
table tells. It is an encoder that has seen these languages, no translator; more --steps may change that.

At the end, validation rows (of `mini-sentiment` and `mini-qa`, or of NusaX) are translated as `lingualift translate`
does it, greedily. OUTPUT/provenance.json holds recipe, texts and scores.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import os
import random
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import sacrebleu
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

import lingualift as ll
from lingualift.config import Data, Translation
from lingualift.encoding.text import language_tag
from lingualift.languages import language as find_language
from lingualift.miniworld import LANGUAGES, write_data
from lingualift.miniworld.languages import GRAMMARS
from lingualift.miniworld.lexicon import PLACES, QUESTIONS
from lingualift.miniworld.noise import noisy
from lingualift.miniworld.pretraining import LANGUAGE_SHARES
from lingualift.miniworld.world import (
    only,
    reviews,
    say_answer,
    say_question,
    say_review,
    say_state,
    say_story,
    stories,
)
from lingualift.provenance import PROVENANCE_FILE, atomic_folder, library_versions, write_json

SPECIAL: Final = ["<s>", "<pad>", "</s>", "<unk>"]  # NLLB's ids
POOL: Final = 40  # batches that are sorted by length together
NUSA: Final = ("eng", "ind", "ace", "ban", "bjn", "jav", "mad", "min", "nij", "sun")
SAME: Final = {"en": "eng", "id": "ind"}
KIND_SHARES: Final = {"review": 0.4, "story": 0.2, "tale": 0.1, "question": 0.25, "answer": 0.05}
SET_SHARES: Final = {"nusax": 0.45, "nusatranslation": 0.3, "bible": 0.15, "ntrex": 0.1}
MENDED, NOISE = 1 / 7, 0.3  # share of examples that are denoised, and of their words that are hit

Group = dict[str, str]  # language -> the text, in parallel


class Pair(NamedTuple):
    """A training example: languages and texts of its two sides."""

    source: str
    text: str
    target: str
    written: str


@dataclass(frozen=True)
class Recipe:
    """How a translator is made.

    Attributes:
        steps: Optimizer steps.
        batch: Pairs per step.
        longest: Tokens of either side; longer pairs are not trained on, and longer sentences measured in parts.
        pieces: Size of the vocabulary, tags aside.
        hidden, encoder_layers, decoder_layers: Shape of the model.
        rate, warmup: Peak of AdamW's learning rate, and the steps to it; it falls to nothing along a cosine.
    """

    steps: int
    batch: int
    longest: int
    pieces: int
    hidden: int
    encoder_layers: int
    decoder_layers: int
    rate: float
    warmup: int = 200


WORLD: Final = Recipe(1600, 48, 32, 3000, hidden=128, encoder_layers=2, decoder_layers=2, rate=2e-3)
TEXTS: Final = Recipe(2200, 16, 128, 8000, hidden=192, encoder_layers=3, decoder_layers=1, rate=3e-3)


def world_pairs(seed: int) -> Iterator[Pair]:
    """English and another language, or the other way round, without end, on meanings of pretraining alone."""
    rng = random.Random(f"translator {seed}")
    tales, opinions = stories("pretraining", rng), reviews("pretraining", rng)
    others = {code: share for code, share in LANGUAGE_SHARES.items() if code != "en"}
    while True:
        codes = ["en", *rng.choices(list(others), list(others.values()))]
        rng.shuffle(codes)
        voices = [only(GRAMMARS[code]) for code in codes]
        tale, opinion, place, asked = next(tales), next(opinions), rng.choice(PLACES), rng.choice(QUESTIONS)
        kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
        if kind == "review":
            said = [say_review(opinion, voice) for voice in voices]
        elif kind == "question":
            said = [say_question(tale, asked, voice) for voice in voices]
        elif kind == "answer":
            said = [say_answer(tale, asked, voice) for voice in voices]
        else:
            said = [say_story(tale, voice) for voice in voices]
        if kind == "tale":
            said = [
                f"{text} {say_state(tale, place, voice)}" for text, voice in zip(said, voices, strict=True)
            ]
        yield Pair(codes[0], said[0], codes[1], said[1])


def rows(path: Path) -> list[dict[str, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def plain(text: str) -> str:
    """A text as it is compared: letter case, white space and compatible characters tell no two apart."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_groups(folder: Path) -> tuple[dict[str, list[Group]], dict[str, int]]:
    """Parallel training texts by set, and how many groups of each were left out for a held-out text in them."""
    held = {
        plain(row["text"])
        for name, split in itertools.product(("nusax", "nusatranslation"), ("valid", "test"))
        for path in folder.glob(f"{name}/*/{split}.jsonl.gz")
        for row in rows(path)
    }
    found: dict[str, list[Group]] = {}
    for name in SET_SHARES:
        aligned: dict[object, Group] = {}
        nested = name.startswith("nusa")
        for path in sorted(folder.glob(f"{name}/*/train.jsonl.gz" if nested else f"{name}/*.jsonl.gz")):
            code = path.parent.name if nested else path.name.removesuffix(".jsonl.gz")
            code = SAME.get(code, code)
            for row in rows(path) if code in NUSA else ():
                key = row["verse_id"] if "verse_id" in row else row["id"]
                aligned.setdefault(key, {})[code] = row["text"].strip()
        found[name] = [group for group in aligned.values() if len(group) > 1 and all(group.values())]
    clean = {
        name: [group for group in groups if held.isdisjoint(map(plain, group.values()))]
        for name, groups in found.items()
    }
    return clean, {name: len(found[name]) - len(clean[name]) for name in found}


def text_pairs(sets: dict[str, list[Group]], seed: int) -> Iterator[Pair]:
    """Two languages of a group, one of them English more often than not where it is there; or a text and its ruins."""
    rng = random.Random(f"translator {seed}")
    words: dict[str, dict[str, None]] = {}
    for group in itertools.chain.from_iterable(sets.values()):
        for code, text in group.items():
            words.setdefault(code, {}).update(dict.fromkeys(text.split()))
    vocabularies = {code: list(found) for code, found in words.items()}
    names = [name for name in SET_SHARES if sets[name]]
    weights = [SET_SHARES[name] for name in names]
    for number in itertools.count():
        group = rng.choice(sets[rng.choices(names, weights)[0]])
        one, other = rng.sample(list(group), 2)
        if rng.random() < MENDED:
            text = noisy(group[one], NOISE, f"{seed} {number}", vocabularies[one])
            yield Pair(one, text, one, group[one])
            continue
        if "eng" in group and "eng" not in (one, other) and rng.random() < 0.5:
            one = "eng"
        sides = [(one, group[one]), (other, group[other])]
        rng.shuffle(sides)
        yield Pair(*sides[0], *sides[1])


def build_tokenizer(texts: Iterator[str], pieces: int, languages: tuple[str, ...]) -> NllbTokenizer:
    """NLLB's tokenizer, on BPE whose merges keep punctuation apart from words."""
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )
    trainer = trainers.BpeTrainer(vocab_size=pieces, special_tokens=SPECIAL, show_progress=False)
    learnt.train_from_iterator(texts, trainer)
    model = json.loads(learnt.to_str())["model"]
    tags = [tag(code) for code in languages]
    return NllbTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        src_lang=tags[0],
        tgt_lang=tags[0],
        extra_special_tokens=tags,
    )


def tag(code: str) -> str:
    known = find_language(code)
    return known.nllb or f"{known.iso639_3}_{known.script}"


def build_model(recipe: Recipe, tokenizer: NllbTokenizer) -> M2M100ForConditionalGeneration:
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=recipe.hidden,
        encoder_layers=recipe.encoder_layers,
        decoder_layers=recipe.decoder_layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * recipe.hidden,
        decoder_ffn_dim=4 * recipe.hidden,
        max_position_embeddings=256,
        dropout=0.0,  # no text is seen often enough to be learnt by heart
        attention_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        init_std=recipe.hidden**-0.5,  # models this narrow do not learn with the usual 0.02
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
    )
    return M2M100ForConditionalGeneration(config)


def sides(tokenizer: NllbTokenizer, pairs: list[Pair]) -> list[tuple[list[int], list[int]]]:
    """Ids of what is read and written, each `tag … </s>` as `tokenizer(text, text_target=…)` has them."""
    flat = [text for pair in pairs for text in (pair.text, pair.written)]
    ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    tags = {code: language_tag(tokenizer, code)[0] for pair in pairs for code in (pair.source, pair.target)}
    number = {code: tokenizer.convert_tokens_to_ids(token) for code, token in tags.items()}
    end = tokenizer.eos_token_id
    return [
        ([number[pair.source], *next(ids), end], [number[pair.target], *next(ids), end]) for pair in pairs
    ]


def batches(
    tokenizer: NllbTokenizer, pairs: Iterator[Pair], recipe: Recipe, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Pairs of like length together, without end."""
    rng, size = random.Random(seed), recipe.batch
    while True:
        found = sides(tokenizer, list(itertools.islice(pairs, size * POOL)))
        pool = sorted(
            (pair for pair in found if max(map(len, pair)) <= recipe.longest),
            key=lambda p: (len(p[1]), len(p[0])),
        )
        cut = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(cut)
        for batch in cut:
            read, written = (
                padded([pair[side] for pair in batch], fill) for side, fill in ((0, -1), (1, -100))
            )
            mask = read >= 0
            yield {
                "input_ids": read.where(mask, torch.tensor(tokenizer.pad_token_id)),
                "attention_mask": mask.long(),
                "labels": written,
            }


def padded(lines: list[list[int]], fill: int) -> torch.Tensor:
    """Ids of shape (pairs, longest)."""
    width = max(map(len, lines))
    return torch.tensor([line + [fill] * (width - len(line)) for line in lines])


def train(
    model: M2M100ForConditionalGeneration, feed: Iterator[dict[str, torch.Tensor]], recipe: Recipe
) -> float:
    """Train; returns the mean loss of the last hundred steps."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    columns = (
        TextColumn("training, loss {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    losses: list[float] = []
    model.train()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=recipe.steps)
        for step in range(recipe.steps):
            part = min(1.0, (step + 1) / recipe.warmup) * (
                0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
            )
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * part
            loss = model(**next(feed)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            last = sum(losses[-100:]) / len(losses[-100:])
            progress.update(bar, completed=step + 1, description=f"{last:.3f}")
    model.eval()
    return last


@dataclass(frozen=True)
class Measured:
    """Validation rows: their task, where they are, the columns that are translated, and the sides' most tokens."""

    task: str
    files: str
    validation: str
    columns: tuple[str, ...]
    longest: int


def score(model: Path, one: Measured, source: str, target: str, count: int, folder: Path) -> dict[str, float]:
    """Scores of `count` rows, translated as `lingualift translate` does it, beside those of doing nothing."""
    data = Data(files=one.files, splits={"validation": one.validation}, max_rows={"validation": count})
    done = ll.translate(
        model=str(model),
        source=source,
        target=target,
        task=one.task,
        data=data,
        output=folder / one.task / source,
        splits=["validation"],
        settings=Translation(beams=1, max_length=one.longest, batch_size=50),
        cache=folder / "cache.sqlite",
    )
    (written,) = done.folder.glob("validation.*")
    originals = [Path(one.files.format(language=code, split=one.validation)) for code in (source, target)]
    tables = [{row["id"]: row for row in rows(path)} for path in (written, *originals)]
    ours, read, wanted = (
        [table[number][column] for number in tables[0] for column in one.columns] for table in tables
    )
    return {
        "chrF": sacrebleu.corpus_chrf(ours, [wanted]).score,
        "BLEU": sacrebleu.corpus_bleu(ours, [wanted]).score,
        "untranslated": sacrebleu.corpus_chrf(read, [wanted]).score,
    }


def measure(
    model: Path, sets: list[Measured], languages: tuple[str, ...], count: int
) -> list[dict[str, Any]]:
    """The scores of each language, into English and from it."""
    english, *others = languages
    found = []
    with tempfile.TemporaryDirectory() as name:
        for one, code in itertools.product(sets, others):
            print(f"{one.task}: {code} and {english}", file=sys.stderr, flush=True)
            into = score(model, one, code, english, count, Path(name))
            back = score(model, one, english, code, count, Path(name))
            found.append({"task": one.task, "language": code, "into": into, "from": back})
    return found


def table(scores: list[dict[str, Any]]) -> str:
    heads = [
        f"{way} {english}: {name}"
        for way, english in (("into", "English"), ("from", "English"))
        for name in ("chrF", "BLEU", "untranslated chrF")
    ]
    lines = [f"| task | language | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for row in scores:
        cells = [f"{value:.1f}" for way in ("into", "from") for value in row[way].values()]
        lines.append(f"| {row['task']} | {row['language']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--world", action="store_true", help="the bundled mini-world")
    what.add_argument("--texts", type=Path, help="folder of the layout above")
    parser.add_argument("--output", type=Path, required=True, help="new folder for model and tokenizer")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the recipe's")
    parser.add_argument(
        "--rows", type=int, default=100, help="validation rows per language that are measured"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"{options.output} exists already; name a new folder")
    if options.rows < 1 or (options.steps is not None and options.steps < 1):
        parser.error("--steps and --rows must be above 0")
    if options.texts and not list(options.texts.glob("nusax/eng/*.jsonl.gz")):
        parser.error(f"no nusax/eng/*.jsonl.gz in {options.texts}")
    return options


def main() -> None:
    options = arguments()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    recipe = WORLD if options.world else TEXTS
    recipe = replace(recipe, steps=options.steps or recipe.steps)
    about: dict[str, Any] = {"recipe": asdict(recipe), "seed": options.seed}
    if options.world:
        languages, pairs = LANGUAGES, world_pairs(options.seed)
        known = (
            text
            for pair in itertools.islice(world_pairs(options.seed), 20_000)
            for text in (pair.text, pair.written)
        )
    else:
        languages = NUSA
        sets, left_out = text_groups(options.texts)
        pairs = text_pairs(sets, options.seed)
        known = (text for groups in sets.values() for group in groups for text in group.values())
        about |= {"groups": {name: len(groups) for name, groups in sets.items()}, "left out": left_out}
        print(f"groups of parallel texts: {about['groups']}; left out: {left_out}", flush=True)
    tokenizer = build_tokenizer(known, recipe.pieces, languages)
    model = build_model(recipe, tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens", flush=True)
    with atomic_folder(options.output) as scratch, tempfile.TemporaryDirectory() as name:
        began = time.process_time()
        loss = train(model, batches(tokenizer, pairs, recipe, options.seed), recipe)
        about["minutes of one core"] = (time.process_time() - began) / 60
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if options.world:
            write_data(Path(name) / "data")
            columns = {"sentiment": ("text",), "qa": ("context", "question")}
            measured = [
                Measured(
                    f"mini-{task}",
                    f"{name}/data/{task}/{{language}}/{{split}}.jsonl",
                    "validation",
                    texts,
                    recipe.longest,
                )
                for task, texts in columns.items()
            ]
        else:
            files = f"{options.texts}/nusax/{{language}}/{{split}}.jsonl.gz"
            measured = [Measured("nusax", files, "valid", ("text",), recipe.longest)]
        scores = measure(scratch, measured, languages, options.rows)
        about |= {"parameters": model.num_parameters(), "loss": loss, "rows": options.rows, "scores": scores}
        about["versions"] = library_versions("torch", "transformers", "tokenizers", "sacrebleu")
        write_json(scratch / PROVENANCE_FILE, about)
    print(f"loss {loss:.3f}, {about['minutes of one core']:.1f} minutes of one core\n\n{table(scores)}")


if __name__ == "__main__":
    main()
