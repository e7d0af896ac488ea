"""Small worlds to test in: backbones, files, experiments."""

import json
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lingualift.miniworld.data import qa_rows, reference_rows, sentiment_rows
from lingualift.pipeline.cost import estimate
from lingualift.tasks import TASKS
from lingualift.training.trainer import train

TEXTS = [
    "the review was good and the red book was bad",
    "Rating: positive negative neutral wonderful terrible",
    "kitabu chekundu kiko jikoni, è così naïve, Übung macht den Meister",
    "Q: where is the book? A: in the kitchen",
]
LANGUAGES = ("en", "fr", "sw")
TASK = """
from lingualift.tasks import TASKS, Example, Task


class Mine(Task):
    columns = ("id", "text")
    gold_column = "label"
    metrics = ("accuracy",)
    source = "a test"

    def example(self, row, language):
        words = {"positive": "good", "negative": "bad"}
        return Example(row["id"], row["text"], choices=words)


"""
"""A task file, but for the registration."""


def learn(ref, rows, settings, **where):
    """Train on examples of a task with classes, or on texts."""
    task = TASKS["causal-lm" if isinstance(rows[0], str) else "mini-sentiment"]
    train(ref, task, rows, settings, language="sw", **where)


def build_bpe_backbone(folder: Path, *, seed=0, layers=2, width=32, **generation) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.update(**generation)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def small_data(folder: Path) -> Path:
    """Three languages of the mini-world: 48 training, 12 validation, 16 test rows, 60 reference texts."""
    for language in LANGUAGES:
        for split, count in (("train", 48), ("validation", 12), ("test", 16)):
            write_jsonl(
                folder / "sentiment" / language / f"{split}.jsonl", sentiment_rows(language, split, count)
            )
            write_jsonl(folder / "qa" / language / f"{split}.jsonl", qa_rows(language, split, count))
        write_jsonl(folder / "reference" / language / "train.jsonl", reference_rows(language, 60))
    return folder


def experiment(data: Path, **changes):
    """A small experiment over `small_data`, as the mapping that a file holds."""
    return {
        "backbone": {"name": "miniworld"},
        "languages": {"source": "en", "targets": ["fr", "sw"]},
        "tasks": [
            {"task": "mini-sentiment", "data": {"files": f"{data}/sentiment/{{language}}/{{split}}.jsonl"}},
        ],
        "reference": {
            "data": {"files": f"{data}/reference/{{language}}/train.jsonl"},
            "segment_tokens": 32,
        },
        "adapter": {"rank": 2, "alpha": 4},
        "training": {
            "task": {"steps": 3, "batch_size": 8, "learning_rate": 5e-3},
            "reference": {"steps": 3, "batch_size": 8, "learning_rate": 5e-3},
        },
        "methods": ["vanilla", "source-ft"],
        "workers": 1,
        **changes,
    }


def write_experiment(path: Path, raw) -> Path:
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return path


def unmeasured(plan, store, *, calibrate):
    """In place of `estimate` in `check`: costs as the sizes tell them, no step measured."""
    assert calibrate
    return estimate(plan, store, calibrate=False)
