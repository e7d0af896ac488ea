"""Our own training and evaluation with an X-Mixup adapter, on rows with their source side."""

import json
import re
from dataclasses import replace

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import lingualift as ll
from builders import paired, tiny
from builders.refusals import refused
from lingualift.attachment import attach, detach
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone, Scoring, Training
from lingualift.data.datasets import Examples
from lingualift.encoding.heads import encode_choices, encode_parts, encode_windows
from lingualift.encoding.text import encode_pair, encode_prompt
from lingualift.evaluation.runner import evaluate
from lingualift.tasks import get_task
from lingualift.training.measuring import measure_step
from lingualift.training.trainer import initialise_fused, train

SETTINGS = {"steps": 4, "batch_size": 4, "learning_rate": 5e-3, "warmup": 0.0, "checkpoint_steps": 2}
HEADS = {"classes": hf.AutoModelForSequenceClassification, "choices": hf.AutoModelForSequenceClassification}
HEADS |= {"span": hf.AutoModelForQuestionAnswering}


@pytest.fixture(scope="module")
def refs(tmp_path_factory):
    """Name of a kind -> its backbone, without dropout."""
    found = {}
    for name in ("llama", "t5", "xlmr"):
        folder = tiny.build(name, tmp_path_factory.mktemp(name) / "backbone")
        settings = json.loads((folder / "config.json").read_text())
        still = {key: 0.0 for key in settings if re.search("dropout", key) and settings[key]}
        (folder / "config.json").write_text(json.dumps({**settings, **still}))
        found[name] = find_backbone(Backbone(name=str(folder)))
    return found


class Case:
    """A backbone, paired rows, a first stage and the X-Mixup adapter's start."""

    def __init__(self, refs, folder, name, task="nusax", language="id", labelled=False, **settings):
        self.at, self.language = folder, language
        source = paired.world(folder, task, language)
        beside = replace(source.beside, labelled=labelled)
        self.source = Examples(task, source.data, folder, beside=beside)
        self.task, self.examples = self.source.labelled(language, "train")
        self.plain = refs[name]
        self.ref = paired.headed(self.plain, self.source, self.examples)
        self.first = paired.first_stage(self.ref, name, folder / "first")
        self.start = folder / "start"
        self.start.mkdir()
        config = ll.MixupConfig(
            **{"r": 4, "lora_alpha": 6, "target_modules": paired.MODULES[name], **settings}
        )
        initialise_fused(self.ref, config, self.first, 0, self.start)
        _, self.tokenizer = load_backbone(self.ref)

    def trained(self, folder, rows=None, start=None, **settings):
        output = self.at / folder
        output.mkdir()
        train(
            self.plain,
            self.task,
            rows or self.examples,
            Training(**{**SETTINGS, **settings}),
            start=start or self.start,
            seed=0,
            output=output,
            work=self.at / "work" / folder,
            language=self.language,
        )
        return load_file(output / paired.WEIGHTS)

    def evaluated(self, folder, examples=None, **scoring):
        found = evaluate(self.ref, folder, self.task, examples or self.examples, Scoring(**scoring))
        return found.predictions

    def alone(self, folder):
        """The adapter on a backbone of its own."""
        kind = HEADS.get(self.ref.head.kind, hf.AutoModelForCausalLM)
        if self.ref.family == "encoder-decoder":
            kind = hf.AutoModelForSeq2SeqLM
        options = {"num_labels": self.ref.head.outputs} if self.ref.head.kind != "words" else {}
        return ll.load_mixup(kind.from_pretrained(self.ref.source, **options).eval(), folder)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tensor(ids):
    return torch.tensor([ids])


def word_scores(case, model, example):
    """Log-likelihood of each choice's words, by one full pass for each."""
    tokenizer, found = case.tokenizer, {}
    for label, words in example.choices.items():
        if case.ref.family == "decoder":
            pair = encode_pair(tokenizer, example.prompt, words, 512)
            source = tensor(encode_prompt(tokenizer, example.source.prompt))
            logits = model(input_ids=tensor(pair.prompt + pair.answer), source_input_ids=source).logits[0]
            logits, ids, special = logits[len(pair.prompt) - 1 :], pair.answer, []
        else:
            ids, special = tokenizer(text_target=words)["input_ids"], tokenizer.all_special_ids
            logits = model(
                input_ids=tensor(tokenizer(example.prompt)["input_ids"]),
                source_input_ids=tensor(tokenizer(example.source.prompt)["input_ids"]),
                decoder_input_ids=tensor([model.config.decoder_start_token_id, *ids[:-1]]),
            ).logits[0]
        found[label] = sum(
            float(logits[place].log_softmax(-1)[token])
            for place, token in enumerate(ids)
            if token not in special
        )
    return list(found.values())


def head_scores(case, model, example):
    """Log-probability of each class or choice."""
    if example.options:
        texts = [encode_choices(case.tokenizer, each, 512) for each in (example, example.source)]
    else:
        texts = [[encode_parts(case.tokenizer, each.parts, 512)] for each in (example, example.source)]
    logits = [
        model(
            **{key: tensor(ids) for key, ids in text.inputs.items()},
            **{f"source_{key}": tensor(ids) for key, ids in source.inputs.items()},
        ).logits[0]
        for text, source in zip(*texts, strict=True)
    ]
    return torch.cat(logits).log_softmax(-1).tolist()


@pytest.mark.parametrize(
    ("name", "task"), [("llama", "nusax"), ("t5", "nusax"), ("xlmr", "nusax"), ("xlmr", "xcopa")]
)
def test_it_trains_and_is_scored_as_explicit_calls_score(refs, tmp_path, name, task):
    case = Case(refs, tmp_path, name, task)
    start = load_file(case.start / paired.WEIGHTS)
    before = {key: value.clone() for key, value in load_backbone(case.ref)[0].state_dict().items()}
    trained = case.trained("trained", steps=20)
    assert trained.keys() == start.keys()
    assert all(not torch.equal(trained[key], start[key]) for key in trained)
    assert any("mixer." in key for key in trained)
    log = [json.loads(line) for line in (tmp_path / "trained/training_log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]
    for key, value in load_file(tmp_path / "trained/first-stage" / paired.WEIGHTS).items():
        assert torch.equal(value, load_file(case.first / paired.WEIGHTS)[key])
    card = (tmp_path / "trained/README.md").read_text()
    assert "lingualift.load_mixup(" in card
    assert "https://arxiv.org/abs/2205.04182" in card
    after = load_backbone(case.ref)[0].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())

    paired.drawn(tmp_path / "trained", 7)  # so that what is mixed in counts
    found, model = case.evaluated(tmp_path / "trained", batch_size=3), case.alone(tmp_path / "trained")
    scores = head_scores if case.ref.head.kind != "words" else word_scores
    with torch.no_grad():
        for example, prediction in zip(case.examples, found, strict=True):
            expected = scores(case, model, example)
            assert list(prediction.scores.values()) == pytest.approx(expected, abs=2e-4)
    moved = case.evaluated(tmp_path / "trained", paired.other_sources(case.examples))
    assert all(
        one.scores != pytest.approx(other.scores, abs=1e-3) for one, other in zip(found, moved, strict=True)
    )


def test_spans_need_the_sources_own_labels(refs, tmp_path):
    case = Case(refs, tmp_path, "xlmr", "xquad", "de", labelled=True)
    assert all(row.source.starts for row in case.examples)
    assert any(row.source.gold != row.gold for row in case.examples)
    start = load_file(case.start / paired.WEIGHTS)
    trained = case.trained("trained", max_length=24, steps=8)
    assert all(not torch.equal(trained[key], start[key]) for key in trained)
    alone = [replace(row, source=replace(row.source, gold=(), starts=())) for row in case.examples]
    with refused("source of example 'r0'", "no answer", mend="labelled=True"):
        case.trained("alone", alone)
    paired.drawn(tmp_path / "trained", 7)
    found = case.evaluated(tmp_path / "trained", alone, max_length=24, batch_size=3)
    model = case.alone(tmp_path / "trained")
    with torch.no_grad():
        for example, prediction in zip(case.examples, found, strict=True):
            ours, theirs = (encode_windows(case.tokenizer, each, 24) for each in (example, example.source))
            best = (float("-inf"), "")
            for number, window in enumerate(ours):
                output = model(
                    input_ids=tensor(window.inputs["input_ids"]),
                    source_input_ids=tensor(theirs[min(number, len(theirs) - 1)].inputs["input_ids"]),
                )
                inside = [index for index, place in enumerate(window.places) if place]
                score, first, last = max(
                    (float(output.start_logits[0, first] + output.end_logits[0, last]), first, last)
                    for first in inside
                    for last in inside
                    if first <= last < first + case.task.max_new_tokens
                )
                if score > best[0] + 1e-5:
                    span = window.places[first][0], window.places[last][1]
                    best = (score, example.parts[1][slice(*span)].strip())
            assert prediction.prediction == best[1]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_generated_answers_are_learnt_with_the_sources_own(refs, tmp_path, name):
    case = Case(refs, tmp_path, name, "xquad", "de", labelled=True)
    one = case.trained("one", max_length=400)
    assert not equal(one, load_file(case.start / paired.WEIGHTS))
    other = [replace(row, source=replace(row.source, gold=("no",))) for row in case.examples]
    assert not equal(one, case.trained("other", other, max_length=400))
    assert len(case.evaluated(tmp_path / "one", max_new_tokens=3)) == len(case.examples)


@pytest.mark.parametrize("name", tiny.quick(["llama", "t5", "xlmr"], "llama"))
def test_what_an_adapter_depends_on(refs, tmp_path, name):
    """Rows that choose from the same labels need no label of the source's."""
    case = Case(refs, tmp_path, name)
    one = case.trained("one")
    torch.rand(7)
    assert equal(one, case.trained("again"))
    assert not equal(one, case.trained("sources", paired.other_sources(case.examples)))


@pytest.mark.parametrize("name", ["llama", "t5", "xlmr"])
def test_gradient_checkpointing_gives_the_same_gradients(refs, tmp_path, name):
    paired.check_checkpointing(Case(refs, tmp_path, name))


def test_accumulated_batches_are_one_batch(refs, tmp_path):
    case = Case(refs, tmp_path, "xlmr")
    one = case.trained("one", learning_rate=1e-3)
    halves = case.trained("halves", learning_rate=1e-3, batch_size=2, accumulation=2)
    start = load_file(case.start / paired.WEIGHTS)
    for key, tensor in one.items():
        assert (halves[key] - tensor).norm() <= 0.02 * (tensor - start[key]).norm(), key


@pytest.mark.parametrize("name", ["llama", "t5", "xlmr"])
def test_untrained_it_is_its_first_stage(refs, tmp_path, name):
    case = Case(refs, tmp_path, name)
    found, expected = (case.evaluated(folder) for folder in (case.start, case.first))
    for one, other in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


def test_a_step_is_measured(refs, tmp_path):
    case = Case(refs, tmp_path, "llama")
    how = {"start": case.start, "language": "id"}
    seconds, kept, rows = measure_step(case.plain, case.task, case.examples, Training(**SETTINGS), **how)
    assert seconds > 0
    assert kept > 0
    assert rows == len(case.examples)


def test_what_is_refused(refs, tmp_path):
    case = Case(refs, tmp_path, "llama")
    alone = [case.examples[0], *(replace(row, source=None) for row in case.examples[1:4])]
    with refused("example 'r1' and 2 more rows", "no source side"):
        case.trained("alone", alone)
    with refused("example 'r1'", "no source side"):
        case.evaluated(case.start, alone)
    long = [replace(row, source=replace(row.source, prompt="word " * 99)) for row in case.examples]
    with refused("source of example 'r", "more tokens", "at most 100"):
        case.trained("long", long, max_length=100)
    case.task = get_task("causal-lm")
    with refused("a fused adapter", "unlabelled text"):
        case.trained("texts", ["some text"])
    model = attach(case.ref, case.start)
    assert not any(value.requires_grad for value in model.parameters())
    detach(model)
    assert not any("lora" in key or "mixer" in key for key in load_backbone(case.ref)[0].state_dict())
