"""A small XLM-R-class encoder, trained from scratch on real text: for measurements where no hub can be reached.

    python backbones/encoder.py --data DATA --output encoder --minutes 40 --bfloat16

DATA holds gzipped JSON Lines: `bible/<lang>`, `ntrex/<lang>`, `nusaparagraph/<lang>`, and `<set>/<lang>/train` of
`nusax`, `nusatranslation`, `xnli` and `tydiqa_goldp`; a set that is absent is left out, and labels are never read.
Languages are drawn with probability proportional to their token count to the power of 0.3, as XLM-R's were
(Conneau et al., 2020, section 3.1). Rows are packed without padding, `<s> text </s></s> text ... </s>`, so no row needs
a mask over padding; a quarter of the rows holds texts beside their translations (translation language modelling,
Lample and Conneau, 2019), without which so small a model aligns no languages. 15% of the tokens are to be predicted
(80% `<mask>`, 10% another token, 10% unchanged), anew each time; the output layer is computed for these alone. The
weights in OUTPUT are float32 and replaced whole every five minutes. At the end, and not before, the validation texts
of NusaX and XNLI are opened to measure the masked-token perplexity; OUTPUT/README.md tells it, beside the perplexity of
the language's token frequencies, which is what a model without context would reach.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM

BOS, PAD, EOS, UNK = range(4)  # XLM-R's ids; <mask> is the last of the vocabulary, as there
PIECES = 8192
TOKENIZER_CHARACTERS = 16_000_000
TEMPERATURE = 0.3
TRANSLATED = 0.25
ROWS = {64: 0.2, 128: 0.6, 384: 0.2}  # tokens per row: share of the batches
BATCH = 2048  # tokens
RATE, WARMUP, DECAY, CLIP = 1e-3, 0.05, 0.01, 1.0
CHECKPOINT, REPORT = 300, 30  # seconds
MEASURED, DRAWS = 200, 4  # held-out texts of a language and set, and maskings of each
SAME = {"eng": "en", "ind": "id"}  # two codes of one language


@dataclass(frozen=True)
class Source:
    """Where a set's training texts are; `key` aligns rows across languages, `document` joins rows to one text."""

    files: str
    columns: tuple[str, ...]
    key: str | None = None
    document: str | None = None


TRAINING = (
    Source("bible/*.jsonl.gz", ("text",), key="verse_id", document="chapter"),
    Source("ntrex/*.jsonl.gz", ("text",), key="row", document="doc"),
    Source("nusaparagraph/*.jsonl.gz", ("text",)),
    Source("nusax/*/train.jsonl.gz", ("text",), key="row"),
    Source("nusatranslation/*/train.jsonl.gz", ("text",), key="row"),
    Source("xnli/*/train.jsonl.gz", ("premise", "hypothesis"), key="id"),
    Source("tydiqa_goldp/*/train.jsonl.gz", ("context",)),
)
HELD_OUT = (
    Source("nusax/*/valid.jsonl.gz", ("text",)),
    Source("xnli/*/dev.jsonl.gz", ("premise", "hypothesis")),
)


@dataclass(frozen=True)
class Text:
    """One row: its parts (a sentence, or premise and hypothesis), its language, and what it belongs to."""

    language: str
    parts: tuple[str, ...]
    key: tuple[object, ...] | None
    document: tuple[object, ...]


def texts(data: Path, source: Source) -> Iterator[Text]:
    for path in sorted(data.glob(source.files)):
        name = path.name.removesuffix(".jsonl.gz")
        name = name if "*." in source.files else path.parent.name
        seen = set()
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                row = json.loads(line)
                parts = tuple(row[column] for column in source.columns)
                if source.key is None and parts in seen:  # TyDi QA repeats a context for each question
                    continue
                seen.add(parts)
                row |= {"row": number, "chapter": str(row.get("verse_id")).rpartition(".")[0]}
                key = (source.files, row[source.key]) if source.key else None
                document = (path, row[source.document] if source.document else number)
                yield Text(SAME.get(name, name), parts, key, document)


def shares(sizes: dict[str, int]) -> dict[str, float]:
    weights = {name: size**TEMPERATURE for name, size in sizes.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def train_tokenizer(rows: list[Text], rng: np.random.Generator) -> PreTrainedTokenizerFast:
    """Byte-level BPE on a sample in which languages have the shares of the training."""
    sizes: dict[str, int] = defaultdict(int)
    for row in rows:
        sizes[row.language] += sum(map(len, row.parts))
    left = {name: TOKENIZER_CHARACTERS * share for name, share in shares(sizes).items()}
    sample = []
    for index in rng.permutation(len(rows)):
        row = rows[index]
        if left[row.language] > 0:
            sample += row.parts
            left[row.language] -= sum(map(len, row.parts))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES - 1, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sample, trainer)
    template = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


@dataclass
class Corpus:
    """Token ids, without special tokens but the `</s></s>` between the two parts of a pair."""

    documents: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    translations: dict[tuple[object, ...], dict[str, np.ndarray]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def sizes(self) -> dict[str, int]:
        """Tokens of each language."""
        return {name: sum(map(len, found)) for name, found in sorted(self.documents.items())}


def encode(rows: list[Text], tokenizer: PreTrainedTokenizerFast) -> Corpus:
    flat = [part for row in rows for part in row.parts]
    found = tokenizer.backend_tokenizer.encode_batch_fast(flat, add_special_tokens=False)
    pieces = iter([np.array(one.ids, dtype=np.int32) for one in found])
    corpus, joined = Corpus(), defaultdict(list)
    for row in rows:
        parts = [next(pieces) for _ in row.parts]
        joined[row.language, row.document].append(pair(*parts))
        if row.key:
            for number, part in enumerate(parts):
                corpus.translations[*row.key, number][row.language] = part
    for (language, _), run in joined.items():
        corpus.documents[language].append(np.concatenate(run))
    return corpus


def pair(first: np.ndarray, *second: np.ndarray) -> np.ndarray:
    between = np.array([EOS, EOS], dtype=np.int32)
    return np.concatenate([first, *(one for part in second for one in (between, part))])


class Stream:
    """Texts one after the other with `</s></s>` between them, cut to rows of any length."""

    def __init__(self, source: Iterator[np.ndarray]) -> None:
        self.source = source
        self.left = np.zeros(0, dtype=np.int32)

    def row(self, length: int) -> np.ndarray:
        """The next `length` ids, `<s>` and `</s>` around them."""
        while len(self.left) < length:  # more than is needed, as what leads it may go
            text = next(self.source)
            self.left = pair(self.left, text)
            self.left = self.left[np.argmax(self.left != EOS) :]  # no row begins with a separator
        taken, self.left = self.left[: length - 2], self.left[length - 2 :]
        self.left = self.left[np.argmax(self.left != EOS) :]
        return np.concatenate([[BOS], taken, [EOS]])


def shuffled(documents: list[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        for index in rng.permutation(len(documents)):
            yield documents[index]


def translated(
    language: str, groups: list[dict[str, np.ndarray]], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    while True:
        group = groups[rng.integers(len(groups))]
        others = [name for name in group if name != language]
        sides = [group[language], group[others[rng.integers(len(others))]]]
        yield pair(*(reversed(sides) if rng.random() < 0.5 else sides))


@dataclass
class Batches:
    """Endless batches of packed rows; counts the tokens drawn for each language."""

    corpus: Corpus
    rng: np.random.Generator
    seen: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    beside: int = 0  # tokens in rows of translations

    def __iter__(self) -> Iterator[np.ndarray]:
        probability = shares(self.corpus.sizes())
        languages = list(probability)
        plain = {name: Stream(shuffled(self.corpus.documents[name], self.rng)) for name in languages}
        groups = defaultdict(list)
        for group in self.corpus.translations.values():
            for name in group if len(group) > 1 else ():
                groups[name].append(group)
        beside = {name: Stream(translated(name, groups[name], self.rng)) for name in groups}
        while True:
            length = self.rng.choice(list(ROWS), p=list(ROWS.values()))
            rows = []
            for name in self.rng.choice(languages, size=BATCH // length, p=list(probability.values())):
                together = name in beside and self.rng.random() < TRANSLATED
                rows.append((beside if together else plain)[name].row(length))
                self.seen[str(name)] += int(length)
                self.beside += int(length) * together
            yield np.stack(rows)


def mask(ids: np.ndarray, pieces: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What the model reads of `ids`, and where it is asked: never at a special token, nor does it read a wrong one.

    Both have the shape of `ids`; the vocabulary has `pieces` pieces, of which `<mask>` is the last.
    """
    chosen = (rng.random(ids.shape) < 0.15) & (ids > UNK) & (ids < pieces - 1)
    kind = rng.random(ids.shape)
    other = rng.integers(UNK + 1, pieces - 1, ids.shape)
    read = np.where(chosen & (kind < 0.8), pieces - 1, ids)
    return np.where(chosen & (kind >= 0.9), other, read), chosen


def losses(model: XLMRobertaForMaskedLM, ids: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """The cross entropy (nats) at each masked position of `ids` (rows, tokens)."""
    read, chosen = mask(ids, model.config.vocab_size, rng)
    padded = torch.from_numpy(ids != PAD) if (ids == PAD).any() else None
    states = model.roberta(torch.from_numpy(read).long(), attention_mask=padded).last_hidden_state
    logits = model.lm_head(states[torch.from_numpy(chosen)])
    return cross_entropy(logits.float(), torch.from_numpy(ids[chosen]).long(), reduction="none")


def build(pieces: int) -> XLMRobertaForMaskedLM:
    config = XLMRobertaConfig(
        vocab_size=pieces,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=768,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.05,  # a model this narrow does not learn with the usual 0.02
        hidden_dropout_prob=0.0,  # no text is seen often enough to be learnt by heart
        attention_probs_dropout_prob=0.0,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return XLMRobertaForMaskedLM(config)


def replace(output: Path, *saved: PreTrainedTokenizerFast | XLMRobertaForMaskedLM, readme: str) -> None:
    """Save into `output`, each file whole at every moment."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as folder:
        for one in saved:
            one.save_pretrained(folder)
        (Path(folder) / "README.md").write_text(readme, encoding="utf-8")
        for path in sorted(Path(folder).iterdir()):
            shutil.move(path, output / path.name)


def rate(progress: float) -> float:
    """Share of the learning rate at `progress` (0 to 1): linear warm-up, then a cosine to nothing."""
    if progress < WARMUP:
        return (progress + 1e-3) / (WARMUP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARMUP) / (1 - WARMUP))))


def train(model, tokenizer, batches: Batches, options: argparse.Namespace, rng: np.random.Generator) -> str:
    """Train until the steps or the minutes are over; returns what was done, in words."""
    plain = [value for value in model.parameters() if value.ndim < 2]
    matrices = [value for value in model.parameters() if value.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6, fused=True)
    began = saved = told = time.monotonic()
    tokens, recent, done = 0, [], ""
    model.train()
    for step, ids in enumerate(batches, 1):
        now = time.monotonic()
        progress = max((step - 1) / options.steps, (now - began) / (60 * options.minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(progress)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            loss = losses(model, ids, rng).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        tokens += ids.size
        recent.append(loss.item())
        done = f"{step} steps, {tokens:,} tokens, {(now - began) / 60:.1f} minutes"
        if now - told > REPORT or step == 1:
            speed = tokens / (now - began + 1e-9) if step > 1 else 0
            print(f"{done}, loss {np.mean(recent):.3f}, {speed:.0f} tokens/s", flush=True)
            told, recent = now, []
        if now - saved > CHECKPOINT:
            readme = describe(options, model, batches, f"{done} (training goes on)", "Not measured yet.")
            replace(options.output, model, tokenizer, readme=readme)
            saved = now
    return done


@torch.inference_mode()
def measure(model: XLMRobertaForMaskedLM, corpus: Corpus, known: Corpus) -> Iterator[str]:
    """Rows of a table: the masked-token perplexity of each language, beside that of its token frequencies."""
    model.eval()
    pieces = model.config.vocab_size
    for language, documents in sorted(corpus.documents.items()):
        rng = np.random.default_rng(0)
        documents = sorted(documents[:MEASURED], key=len)
        nats = []
        targets = []
        for start in range(0, len(documents), 32):
            some = [np.concatenate([[BOS], one[:510], [EOS]]) for one in documents[start : start + 32]]
            ids = np.full((len(some), max(map(len, some))), PAD)
            for line, one in zip(ids, some, strict=True):
                line[: len(one)] = one
            for _ in range(DRAWS):
                nats.append(losses(model, ids, rng).numpy())
            targets.append(np.concatenate([one[one > UNK] for one in some]))
        nats = np.concatenate(nats)
        counts = np.bincount(
            np.concatenate(known.documents.get(language, [[]])).astype(int), minlength=pieces
        )
        frequency = (counts + 1) / (counts.sum() + pieces)
        context_free = np.exp(-np.log(frequency[np.concatenate(targets)]).mean())
        yield f"| {language} | {np.exp(nats.mean()):.0f} | {context_free:.0f} | {len(nats):,} |"


def describe(options, model, batches: Batches, done: str, figures: str) -> str:
    sizes = batches.corpus.sizes()
    table = [f"| {name} | {size:,} | {batches.seen[name]:,} |" for name, size in sizes.items()]
    sets = "\n".join(f"- `{source.files}`: {', '.join(source.columns)}" for source in TRAINING)
    parameters = sum(value.numel() for value in model.parameters())
    return f"""# A small encoder

XLM-R's architecture, {model.config.num_hidden_layers} layers, hidden {model.config.hidden_size}, \
{parameters:,} parameters, tied embeddings, byte-level BPE of {model.config.vocab_size:,} pieces; masked language \
modelling from scratch by `backbones/encoder.py`, seed {options.seed}, {options.threads} thread(s), \
{"bfloat16 autocast" if options.bfloat16 else "float32"}; weights in float32.

Done: {done}; {batches.beside:,} of the tokens in rows of texts beside their translations. \
Rows had {", ".join(map(str, ROWS))} tokens: later positions are untrained.

## Texts
Labels, questions and answers were not read, and no validation, dev or test text was trained on. A training text that \
also stands in another split of its set, as some do, has been seen.
{sets}

Tokens there are, and tokens seen in rows drawn for the language (of a row of translations, about half are in another):

| language | tokens | seen |
|---|---|---|
{chr(10).join(table)}

## Held-out texts
{figures}
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the layout above")
    parser.add_argument(
        "--output", type=Path, required=True, help="new folder for the model and its tokenizer"
    )
    parser.add_argument("--steps", type=int, default=20_000, help="end after so many batches of 2048 tokens")
    parser.add_argument("--minutes", type=float, default=40, help="end training after so many minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--bfloat16", action="store_true", help="autocast; faster on CPUs with AVX512-BF16 or AMX"
    )
    options = parser.parse_args()
    if options.steps < 1 or options.minutes <= 0 or options.threads < 1:
        parser.error("--steps, --minutes and --threads must be above 0")
    if options.output.exists():
        parser.error(f"{options.output} exists already; name a new folder")
    if not any(next(options.data.glob(source.files), None) for source in TRAINING):
        wanted = ", ".join(source.files for source in TRAINING)
        parser.error(f"no training texts in {options.data}; expected some of {wanted}")
    return options


def main() -> None:
    options = arguments()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)

    rows = [text for source in TRAINING for text in texts(options.data, source)]
    tokenizer = train_tokenizer(rows, rng)
    corpus = encode(rows, tokenizer)
    print(
        f"{len(rows):,} texts, {sum(corpus.sizes().values()):,} tokens, {len(tokenizer)} pieces", flush=True
    )
    del rows

    model = build(len(tokenizer))
    batches = Batches(corpus, rng)
    done = train(model, tokenizer, batches, options, rng)
    replace(
        options.output, model, tokenizer, readme=describe(options, model, batches, done, "Not measured yet.")
    )

    header = "| language | masked-token perplexity | of token frequencies | predictions |\n|---|---|---|---|"
    figures = [
        f"The first {MEASURED} texts of a file, each masked {DRAWS} times as in training (15%, 80/10/10)."
    ]
    for source in HELD_OUT:
        held_out = encode(list(texts(options.data, source)), tokenizer)
        figures.append(f"`{source.files}`\n\n" + "\n".join([header, *measure(model, held_out, corpus)]))
    readme = describe(options, model, batches, done, "\n\n".join(figures))
    (options.output / "README.md").write_text(readme, encoding="utf-8")
    print(readme)


if __name__ == "__main__":
    main()
