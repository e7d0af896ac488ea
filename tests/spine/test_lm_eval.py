"""lm-evaluation-harness loads the adapters that lingualift writes, and scores the same rows the same.

Its model reads prompt and answer in one pass, all logits of it; lingualift reads a prompt once, works out its last
logits only, and goes on from the cache. Held here: the same ids go in; in float64 the same float32 numbers come out; in
float32 both are as far from these as rounding allows.
"""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from worlds import build_bpe_backbone, read_jsonl

from lingualift.backbone import attach, detach, find_backbone, load_backbone
from lingualift.config import Backbone, Data, Scoring
from lingualift.data import load_examples
from lingualift.evaluation import likelihood
from lingualift.evaluation.likelihood import score_choices
from lingualift.miniworld import BACKBONE
from lingualift.tasks import Example, get_task
from lingualift.training.encoding import encode_pair

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not here: pip install -e '.[interop]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/interop.md").read_text(encoding="utf-8")
SHARED = ROOT.parent / "shared"
SMALL = SHARED / "backbones" / "nusantara-4m"
UNIT = 2.0**-24  # a float32 rounding's largest relative error
SW = "sentiment/sw/test.jsonl"


def harness(folder, adapter=None, **options):
    settings = {"device": "cpu", "dtype": "float32", "batch_size": 1, "add_bos_token": True, **options}
    return HFLM(pretrained=str(folder), peft=None if adapter is None else str(adapter), **settings)


def asked(examples):
    """What the harness is asked for the choices of some examples, one after the other."""
    return [(one.prompt, f" {words}") for one in examples for words in one.choices.values()]


def theirs(model, examples):
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in asked(examples)]
    return [score for score, _ in model.loglikelihood(requests, disable_tqdm=True)]


def flat(scores):
    return [score for found in scores for score in found.values()]


@pytest.fixture(scope="module")
def lifted(cli, data, tmp_path_factory):
    """A folder with adapters trained and merged by the commands, and the task file of the documents."""
    folder = tmp_path_factory.mktemp("interop")
    shutil.copytree(data, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        files = "data/{}/{{language}}/{}.jsonl"
        for name, task, language, path in (
            ("task", "mini-sentiment", "en", files.format("sentiment", "{split}")),
            ("target", "causal-lm", "sw", files.format("reference", "train")),
            ("source", "causal-lm", "en", files.format("reference", "train")),
        ):
            arguments = ("--backbone", "miniworld", "--task", task, "--language", language, "--data", path)
            rest = ("--steps", 12, "--rank", 2, "--learning-rate", 2e-2, "--output", name)
            done = cli("train", *arguments, *rest)
            assert done.code == 0, done.err
        for space in ("factors", "delta"):
            roles = ("--task", "task", "--target-reference", "target", "--source-reference", "source")
            rest = ("--weight", 0.7, "--space", space, "--output", space)
            done = cli("merge", "--method", "adamergex", *roles, *rest)
            assert done.code == 0, done.err
    (folder / "tasks").mkdir()
    shown = re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)[1]
    (folder / "tasks" / "reviews-sw.yaml").write_text(shown, encoding="utf-8")
    return folder


def examples_of(task, files, language, base):
    return load_examples(get_task(task), Data(files=files), language, "test", base)


@pytest.fixture(scope="module")
def worlds(lifted, tmp_path_factory):
    """Name -> backbone, adapter, examples: single words and long answers, and real rows where they are."""
    reviews = examples_of("mini-sentiment", "data/sentiment/{language}/{split}.jsonl", "sw", lifted)
    words = {"yes": "good", "some": "not so bad", "long": "the review was good and the red book was bad"}
    texts = [one.prompt for one in reviews[:3]] + ["x", "the red book", "where is the kitchen? " * 4 + "A:"]
    found = {
        "one word": (BACKBONE, lifted / "factors", reviews),
        "many words": (
            BACKBONE,
            lifted / "delta",
            [Example(str(i), text, choices=words) for i, text in enumerate(texts)],
        ),
        "subwords": (
            build_bpe_backbone(tmp_path_factory.mktemp("interop-bpe") / "backbone"),
            None,
            [Example(str(i), text, choices=words) for i, text in enumerate(texts)],
        ),
    }
    if SMALL.is_dir():
        rows = examples_of("nusax", "data/nusax/{language}/{split}.jsonl.gz", "jav", SHARED)[:24]
        found["real"] = (SMALL, _random_adapter(SMALL, tmp_path_factory.mktemp("real")), rows)
    return found


def _random_adapter(backbone, folder):
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(backbone), config).save_pretrained(folder)
    return folder


WORLDS = ["one word", "many words", "subwords", "real"]


@pytest.fixture(params=WORLDS)
def world(request, worlds):
    if request.param not in worlds:
        pytest.skip("the small backbone and NusaX lie in ../shared, which is not here")
    return worlds[request.param]


@pytest.fixture
def ours(world):
    """The model with its adapter, and the tokenizer; float32 again afterwards."""
    folder, adapter, _ = world
    model, tokenizer = load_backbone(find_backbone(Backbone(name=str(folder))))
    wrapped = model if adapter is None else attach(model, adapter)
    yield wrapped, tokenizer
    detach(wrapped)
    model.float()


def test_the_same_ids_go_in(world, ours, monkeypatch):
    folder, _, examples = world
    model, seen = harness(folder), []
    monkeypatch.setattr(
        model, "_loglikelihood_tokens", lambda requests, **_: seen.extend(requests) or [(0.0, False)] * len(requests)
    )
    theirs(model, examples)
    pairs = [
        encode_pair(ours[1], one.prompt, words, 512) for one in examples for words in one.choices.values()
    ]
    assert [(prompt, answer) for _, prompt, answer in seen] == [(pair.prompt, pair.answer) for pair in pairs]
    assert not any(pair.truncated for pair in pairs)


def test_in_float64_the_same_numbers_come_out_whatever_the_batches(world, ours):
    """Equal bit for bit as float32, but for the order of sums over three and more tokens."""
    folder, adapter, examples = world
    model, tokenizer = ours
    model.double()
    lengths = [
        len(encode_pair(tokenizer, one.prompt, words, 512).answer)
        for one in examples
        for words in one.choices.values()
    ]
    for batch in (1, 5):
        other = harness(folder, adapter, dtype="float64", softmax_dtype="float32", batch_size=batch)
        other.model.double()  # the adapter too, which is loaded in float32
        expected = theirs(other, examples)
        for size in (1, 5):
            found = flat(score_choices(model, tokenizer, examples, Scoring(batch_size=size))[0])
            for score, other_score, length in zip(found, expected, lengths, strict=True):
                additions = length - 1 if length > 2 else 0  # a + b is b + a; more has an order
                assert abs(score - other_score) <= 2 * additions * UNIT * abs(other_score)


def test_in_float32_it_is_the_last_logits_alone_that_round_otherwise(worlds):
    """Choices of one token, one prompt at a time: with the logits of the whole prompt, bits are equal."""
    folder, adapter, examples = worlds["one word"]
    model, tokenizer = load_backbone(find_backbone(Backbone(name=str(folder))))
    expected = theirs(harness(folder, adapter), examples)
    wrapped = attach(model, adapter)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(likelihood, "keeps_logits", lambda model: False)
            assert flat(score_choices(wrapped, tokenizer, examples, Scoring(batch_size=1))[0]) == expected
    finally:
        detach(wrapped)
