"""lm-evaluation-harness loads the adapters that lingualift writes, and scores the same rows the same.

Its model reads prompt and answer in one pass, all logits of it; lingualift reads a prompt once, works out its last
logits only, and goes on from the cache. Held here: the same ids go in; in float64 the same float32 numbers come out; in
float32 both are as far from these as rounding allows.
"""

import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rounding import UNIT, rounding_spread
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from builders.worlds import build_bpe_backbone, read_jsonl
from lingualift.attachment import attach, detach
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone, Data, Scoring
from lingualift.data.rows import load_examples
from lingualift.encoding.text import encode_pair, encode_prompt
from lingualift.evaluation import likelihood
from lingualift.evaluation.likelihood import score_choices
from lingualift.evaluation.runner import evaluate
from lingualift.miniworld import BACKBONE
from lingualift.tasks import Example, get_task

pytestmark = [
    pytest.mark.slow,  # likelihoods are tested against transformers in test_likelihood.py
    pytest.mark.skipif(
        not find_spec("lm_eval"), reason="lm-evaluation-harness is not here: pip install -e '.[interop]'"
    ),
]
ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/interop.md").read_text(encoding="utf-8")
SHARED = ROOT.parent / "shared"
SMALL = SHARED / "backbones" / "nusantara-4m"
SPREADS = 6  # exceeded with a probability below 2 exp(-18) = 3e-8


def harness(folder, adapter=None, **options):
    from lm_eval.models.huggingface import HFLM

    settings = {"device": "cpu", "dtype": "float32", "batch_size": 1, "add_bos_token": True, **options}
    return HFLM(pretrained=str(folder), peft=None if adapter is None else str(adapter), **settings)


def asked(examples):
    """What the harness is asked for the choices of some examples, one after the other."""
    return [(one.prompt, f" {words}") for one in examples for words in one.choices.values()]


def theirs(model, examples):
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, 0) for pair in asked(examples)]
    return [score for score, _ in model.loglikelihood(requests, disable_tqdm=True)]


def pairs_of(tokenizer, examples):
    return [
        encode_pair(tokenizer, one.prompt, words, 512) for one in examples for words in one.choices.values()
    ]


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
            rest = ("--steps", 12, "--rank", 2, "--learning-rate", 2e-3, "--output", name)
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
        rows = examples_of("nusax", "data/nusax/{language}/{split}.jsonl.gz", "jav", SHARED)[:8]
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
    ref = find_backbone(Backbone(name=str(folder)))
    model, tokenizer = load_backbone(ref)
    wrapped = model if adapter is None else attach(ref, adapter)
    yield wrapped, tokenizer
    if adapter is not None:
        detach(wrapped)
    model.float()


def test_the_same_ids_go_in(world, ours, monkeypatch):
    folder, _, examples = world
    model, seen = harness(folder), []
    monkeypatch.setattr(
        model,
        "_loglikelihood_tokens",
        lambda requests, **_: seen.extend(requests) or [(0.0, False)] * len(requests),
    )
    theirs(model, examples)
    pairs = pairs_of(ours[1], examples)
    assert [(prompt, answer) for _, prompt, answer in seen] == [(pair.prompt, pair.answer) for pair in pairs]
    assert not any(pair.truncated for pair in pairs)


def test_in_float64_the_same_numbers_come_out_whatever_the_batches(world, ours):
    """Equal bit for bit as float32, but for the order of sums over three and more tokens."""
    folder, adapter, examples = world
    model, tokenizer = ours
    model.double()
    lengths = [len(pair.answer) for pair in pairs_of(tokenizer, examples)]
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
    ref = find_backbone(Backbone(name=str(folder)))
    _, tokenizer = load_backbone(ref)
    expected = theirs(harness(folder, adapter), examples)
    wrapped = attach(ref, adapter)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(likelihood, "keeps_logits", lambda model: False)
            assert flat(score_choices(wrapped, tokenizer, examples, Scoring(batch_size=1))[0]) == expected
    finally:
        detach(wrapped)


def test_in_float32_both_are_roundings_of_the_same_number(world, ours):
    """That number is worked out apart from both, in float64, with how far rounding can move it."""
    folder, adapter, examples = world
    model, tokenizer = ours
    scores = [theirs(harness(folder, adapter, batch_size=size), examples) for size in (1, 5)]
    scores += [
        flat(score_choices(model, tokenizer, examples, Scoring(batch_size=size))[0]) for size in (1, 5)
    ]
    model.double()
    for pair, *found in zip(pairs_of(tokenizer, examples), *scores, strict=True):
        exact, spread = rounding_spread(model, pair.prompt, pair.answer)
        assert all(abs(score - exact) <= SPREADS * spread for score in found)


@pytest.mark.parametrize(
    "in_file", [False, True], ids=["not put there by the tokenizer's file", "put there by it"]
)
def test_a_beginning_of_text_token_goes_in_with_add_bos_token(worlds, tmp_path, in_file):
    folder = shutil.copytree(worlds["subwords"][0], tmp_path / "backbone")
    if in_file:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        tokenizer.save(str(folder / "tokenizer.json"))
    _, tokenizer = load_backbone(find_backbone(Backbone(name=str(folder))))
    ids = encode_prompt(tokenizer, "the red book")
    assert harness(folder).tok_encode("the red book") == ids
    assert ids[0] == 0
    assert harness(folder, add_bos_token=None).tok_encode("the red book") == (ids if in_file else ids[1:])


def test_without_such_a_token_the_option_is_left_out(worlds, tmp_path):
    folder = shutil.copytree(worlds["subwords"][0], tmp_path / "backbone")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    del settings["bos_token"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    _, tokenizer = load_backbone(find_backbone(Backbone(name=str(folder))))
    assert tokenizer.bos_token_id is None
    examples = worlds["subwords"][2]
    model = harness(folder, add_bos_token=None)
    for prompt, words in asked(examples):
        pair = encode_pair(tokenizer, prompt, words[1:], 512)
        assert model._encode_pair(prompt, words) == (pair.prompt, pair.answer)


def test_a_prompt_that_is_cut_loses_its_beginning_of_text_token_there_and_keeps_it_here(worlds):
    folder, _, (*_, example) = worlds["subwords"]
    model, tokenizer = load_backbone(find_backbone(Backbone(name=str(folder))))
    (found,), truncated = score_choices(model, tokenizer, [example], Scoring(max_length=32))
    assert truncated == 1
    expected, cuts = theirs(harness(folder, max_length=31), [example]), {}
    for (label, words), there in zip(example.choices.items(), expected, strict=True):
        whole, cut = (encode_pair(tokenizer, example.prompt, words, length) for length in (512, 32))
        assert len(cut.prompt) + len(cut.answer) == 32
        assert cut.prompt[0] == tokenizer.bos_token_id
        cuts[label] = cut
        without = [*whole.prompt, *whole.answer][-32:]
        n = len(whole.answer)
        assert there == one_pass(model, without[:-n], without[-n:])
        assert abs(found[label] - there) > 0.01
    try:
        model.double()
        for label, cut in cuts.items():
            exact, spread = rounding_spread(model, cut.prompt, cut.answer)
            assert abs(found[label] - exact) <= SPREADS * spread
    finally:
        model.float()


def one_pass(model, prompt, answer):
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *answer][:-1]])).logits[0, -len(answer) :]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).sum().item()


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_a_merged_adapter_scores_the_same_on_a_task_file(lifted, cli, monkeypatch, space):
    """The documents' task file and Python; accuracy, its standard error, and every answer."""
    monkeypatch.chdir(lifted)
    block = re.search(r"```python\n(.*?)```", DOCS, re.DOTALL)[1]
    assert '"lifted"' in block
    names = {}
    exec(compile(block.replace('"lifted"', f'"{space}"'), "interop.md", "exec"), names)
    there = names["found"]["results"]["reviews-sw"]
    command = re.search(r"^    lingualift (.*?\n.*?)$", DOCS, re.MULTILINE)[1].replace("\\\n", "")
    line = shlex.split(command.replace("lifted", space).replace("scores.json", f"{space}.json"))
    done = cli(*line)
    assert done.code == 0, done.err
    here = json.loads(Path(f"{space}.json").read_text(encoding="utf-8"))
    accuracy = here["scores"]["accuracy"]
    assert there["sample_len"] == here["n"] == 16
    assert 100 * there["acc,none"] == pytest.approx(accuracy["score"], rel=1e-12)
    assert 100 * there["acc_stderr,none"] == pytest.approx(accuracy["stderr"], rel=1e-12)
    answers = read_jsonl(Path(f"{space}.predictions.jsonl"))
    samples = sorted(names["found"]["samples"]["reviews-sw"], key=lambda one: one["doc_id"])
    for sample, answer in zip(samples, answers, strict=True):
        likely = [response[0] for response in sample["filtered_resps"]]
        assert ["positive", "negative"][likely.index(max(likely))] == answer["prediction"]
    assert len({answer["prediction"] for answer in answers}) == 2
    examples = examples_of("mini-sentiment", "data/sentiment/{language}/{split}.jsonl", "sw", lifted)
    scoring, backbone = Scoring(length_normalization="characters"), find_backbone(Backbone(name="miniworld"))
    normalized = evaluate(backbone, lifted / space, get_task("mini-sentiment"), examples, scoring)
    score = normalized.scores["accuracy"]["score"]
    assert 100 * there["acc_norm,none"] == pytest.approx(score, rel=1e-12)
    assert score != accuracy["score"]
