"""Our own training with a FLARE adapter: from where it begins, what it learns, and that it goes on after a kill."""

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from builders import paired, tiny
from builders.refusals import refused
from builders.trainings import equal, facts
from lingualift.attachment import attach, detach
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.commands.push import published
from lingualift.config import Backbone, Scoring, Training
from lingualift.evaluation.runner import evaluate
from lingualift.fusion import FlareModel
from lingualift.tasks import get_task
from lingualift.training.measuring import measure_step
from lingualift.training.trainer import initialise_fused, train

HERE = Path(__file__).parent
SETTINGS = {"steps": 4, "batch_size": 4, "learning_rate": 5e-3, "warmup": 0.0, "checkpoint_steps": 2}
NAMES = ["llama", "t5", "xlmr"]
FEW = tiny.quick(NAMES, "llama")


@pytest.fixture(scope="module")
def refs(tmp_path_factory):
    """Name of a kind -> its backbone, without dropout: its masks differ between batches of other sizes."""
    found = {}
    for name in (*NAMES, "bert"):
        folder = tiny.build(name, tmp_path_factory.mktemp(name) / "backbone")
        settings = json.loads((folder / "config.json").read_text())
        still = {key: 0.0 for key in settings if re.search("dropout", key) and settings[key]}
        (folder / "config.json").write_text(json.dumps({**settings, **still}))
        found[name] = find_backbone(Backbone(name=str(folder)))
    return found


class Case:
    """A backbone, paired rows, a first stage and the FLARE adapter's start."""

    def __init__(self, refs, folder, name, task="nusax", language="id", **settings):
        self.name, self.at, self.language = name, folder, language
        self.source = paired.world(folder, task, language)
        self.task, self.examples = self.source.labelled(language, "train")
        self.plain = refs[name]
        self.ref = paired.headed(self.plain, self.source, self.examples)
        self.first = paired.first_stage(self.ref, name, folder / "first")
        self.start = paired.flare_start(self.ref, name, folder / "start", self.first, **settings)

    def trained(
        self, folder, rows=None, start=None, seed=0, task=None, progress=None, cached=False, **settings
    ):
        output = self.at / folder
        output.mkdir()
        more = {"progress": progress} if progress else {}
        more |= {"cache_sources": True} if cached else {}
        train(
            self.plain,
            task or self.task,
            rows or self.examples,
            Training(**{**SETTINGS, **settings}),
            start=start or self.start,
            seed=seed,
            output=output,
            work=self.at / "work" / folder,
            language=self.language,
            segment_tokens=24,
            **more,
        )
        return load_file(output / paired.WEIGHTS)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_answers(refs, tmp_path, name):
    case = Case(refs, tmp_path, name, fusion="cross_attention")
    start, before = load_file(case.start / paired.WEIGHTS), load_backbone(case.ref)[0].state_dict()
    before = {key: value.clone() for key, value in before.items()}
    one = case.trained("one", steps=20)
    assert one.keys() == start.keys()
    assert all(not torch.equal(one[key], start[key]) for key in one)
    log = [json.loads(line) for line in (tmp_path / "one/training_log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]
    for stage in ("start", "one"):
        tensors = load_file(tmp_path / stage / "first-stage" / paired.WEIGHTS)
        theirs = load_file(case.first / paired.WEIGHTS)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in tensors.items())
    card = (tmp_path / "one" / "README.md").read_text()
    assert "lingualift.load_flare(" in card
    assert "PeftModel" not in card
    assert "library_name: lingualift" in card
    found = facts(tmp_path / "one")
    assert found["initialisation"] == facts(case.start)["weights_sha256"]
    assert (found["rows"], found["steps"]) == (len(case.examples), 20)
    after = load_backbone(case.ref)[0].state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    scores = evaluate(case.ref, tmp_path / "one", case.task, case.examples, Scoring()).scores
    plain = evaluate(case.ref, case.start, case.task, case.examples, Scoring()).scores
    assert scores["accuracy"]["score"] >= plain["accuracy"]["score"]


@pytest.mark.parametrize("name", FEW)
def test_what_an_adapter_depends_on(refs, tmp_path, name):
    case = Case(refs, tmp_path, name)
    one = case.trained("one")
    torch.rand(7)
    assert equal(one, case.trained("again"))
    assert equal(one, case.trained("gold", paired.with_gold(case.examples)))
    assert not equal(one, case.trained("sources", paired.other_sources(case.examples)))
    assert not equal(one, case.trained("seed", seed=1))


def test_one_seed_draws_one_start(refs, tmp_path):
    case = Case(refs, tmp_path, "llama", fusion="cross_attention")
    same = paired.flare_start(case.ref, "llama", tmp_path / "same", case.first, fusion="cross_attention")
    other = paired.flare_start(case.ref, "llama", tmp_path / "other", case.first, 1, fusion="cross_attention")
    tensors = [load_file(folder / paired.WEIGHTS) for folder in (case.start, same, other)]
    assert equal(tensors[0], tensors[1])
    assert not equal(tensors[0], tensors[2])
    assert sum("lora_fusion" in key for key in tensors[0]) == 3 * 4
    assert (case.start / "README.md").read_text() == (same / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_untrained_it_is_its_first_stage(refs, tmp_path, name):
    """B is 0: what the FLARE adapter adds is nothing yet, and the head is the first stage's."""
    case = Case(refs, tmp_path, name)
    found, expected = (
        evaluate(case.ref, folder, case.task, case.examples, Scoring()).predictions
        for folder in (case.start, case.first)
    )
    for one, other in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "task", "language"),
    [("xlmr", "nusax", "id"), ("bert", "xnli", "de"), ("xlmr", "xquad", "de"), ("xlmr", "xcopa", "id")],
)
def test_the_head_begins_from_the_first_stages_and_is_trained(refs, tmp_path, name, task, language):
    case = Case(refs, tmp_path, name, task, language)
    first, start = (load_file(folder / paired.WEIGHTS) for folder in (case.first, case.start))
    heads = [key for key in start if "lora_" not in key]
    assert heads
    assert heads == [key for key in first if "lora_" not in key]
    still = case.trained("still", learning_rate=1e-12)
    trained = case.trained("trained")
    for key in heads:
        assert torch.equal(start[key], first[key])
        assert torch.allclose(still[key], first[key], atol=1e-6)
    assert any(not torch.allclose(trained[key], first[key], atol=1e-4) for key in heads)
    beside = load_file(case.start / "first-stage" / paired.WEIGHTS)
    assert beside.keys() == {key for key in first if "lora_" in key}
    assert peft.PeftConfig.from_pretrained(str(case.start / "first-stage")).modules_to_save is None
    scored = evaluate(case.ref, tmp_path / "trained", case.task, case.examples, Scoring())
    assert len(scored.predictions) == len(case.examples)


def test_first_stages_that_do_not_fit_are_refused(refs, tmp_path):
    case = Case(refs, tmp_path, "xlmr")
    headless = paired.first_stage(case.plain, "xlmr", tmp_path / "headless")
    xquad = paired.world(tmp_path / "other", "xquad", "de")
    spans = paired.headed(case.plain, xquad, xquad.rows("de", "train"))
    two = replace(case.ref, head=replace(case.ref.head, labels=2))
    for ref, first, found in (
        (case.ref, headless, "no head"),
        (case.plain, case.first, "classifier.dense.bias beside LoRA's factors"),
        (spans, case.first, "classifier.dense.bias beside LoRA's factors"),
        (two, case.first, "classifier.out_proj.bias is (3,); (2,)"),
    ):
        with refused(f"/{first.name}", found):
            initialise_fused(ref, paired.ll.FlareConfig(target_modules=["query"]), first, 0, tmp_path / "out")
    keys = set(load_backbone(case.ref)[0].state_dict())
    assert not any("lora" in key or "first_stage" in key or "modules_to_save" in key for key in keys)
    with refused("/start", "a head"):
        attach(case.plain, case.start)


def test_the_first_stage_goes_wherever_the_adapter_goes(refs, tmp_path):
    """Without it, or with another, the adapter would answer, and wrongly."""
    case = Case(refs, tmp_path, "llama")
    files = published(case.start, "mine/fused")
    again = tmp_path / "again"
    for name, content in files.items():
        (again / name).parent.mkdir(parents=True, exist_ok=True)
        (again / name).write_bytes(Path(content).read_bytes() if isinstance(content, str) else content)
    found = [
        evaluate(case.ref, folder, case.task, case.examples, Scoring()).predictions
        for folder in (case.start, again)
    ]
    assert found[0] == found[1]
    paired.drawn(again / "first-stage", 77)
    with refused("/first-stage", "saved with", "sha256"):
        attach(case.ref, again)
    shutil.rmtree(again / "first-stage")
    with refused("/first-stage", "is not there", "sha256"):
        attach(case.ref, again)
    shutil.copytree(case.start / "first-stage", again / "first-stage")
    detach(attach(case.ref, again))


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import test_paired_training as this
from builders import paired
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone

case = this.Case.__new__(this.Case)
case.name, case.at, case.language = sys.argv[5], Path(sys.argv[3]), "id"
case.plain = find_backbone(Backbone(name=sys.argv[4]))
case.source = paired.world(case.at, "nusax", "id")
case.task, case.examples = case.source.labelled("id", "train")
case.start = case.at / "start"

def kill(done, total):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

case.trained("cut", steps=7, progress=kill)
"""


@pytest.mark.parametrize("name", tiny.quick(["llama", "xlmr"], "llama"))
def test_a_killed_training_goes_on_to_the_same_bits(cli, refs, tmp_path, name):
    case = Case(refs, tmp_path, name, fusion="cross_attention", lora_dropout=0.2)
    whole = case.trained("whole", steps=7)
    places = [str(HERE.parent), str(HERE), str(tmp_path), refs[name].source, name]
    (tmp_path / "killed.py").write_text(KILLED)
    done = cli.script(tmp_path / "killed.py", *places)
    assert done.code == -signal.SIGKILL, done.err[-2000:]
    assert {path.name for path in (tmp_path / "work/cut").glob("checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-4",
    }
    (tmp_path / "cut").rmdir()
    steps = []
    again = case.trained("cut", steps=7, progress=lambda now, total: steps.append(now))
    assert steps == [5, 6, 7]
    assert equal(whole, again)


def test_an_interrupted_training_leaves_the_backbone_alone(refs, tmp_path):
    """As in a notebook, where the process goes on."""
    case = Case(refs, tmp_path, "llama")

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.trained("cut", progress=interrupt)
    (tmp_path / "cut").rmdir()
    assert equal(case.trained("whole"), case.trained("cut"))


@pytest.mark.parametrize("name", FEW)
def test_where_memory_runs_out_it_goes_on_with_fewer_rows(refs, tmp_path, name, caplog):
    case = Case(refs, tmp_path, name)
    whole = case.trained("whole", learning_rate=1e-3)
    model, _ = load_backbone(case.ref)

    def refuse(module, arguments, given):
        if len(given["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")

    hook = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        cut = case.trained("cut", learning_rate=1e-3)
    finally:
        hook.remove()
    assert "out of memory" in caplog.text
    assert facts(tmp_path / "cut")["rows_at_once"] == 2
    start = load_file(case.start / paired.WEIGHTS)
    for key, tensor in whole.items():
        assert (cut[key] - tensor).norm() <= 0.02 * (tensor - start[key]).norm(), key


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_gives_the_same_gradients(refs, tmp_path, name):
    paired.check_checkpointing(Case(refs, tmp_path, name))


def test_a_step_is_measured_with_its_source(refs, tmp_path):
    case = Case(refs, tmp_path, "llama")
    how = {"start": case.start, "language": "id"}
    seconds, kept, rows = measure_step(case.plain, case.task, case.examples, Training(**SETTINGS), **how)
    assert seconds > 0
    assert kept > 0
    assert rows == len(case.examples)


def test_rows_without_a_source_are_refused(refs, tmp_path):
    case = Case(refs, tmp_path, "llama")
    alone = [case.examples[0], *(replace(row, source=None) for row in case.examples[1:4])]
    with refused("example 'r1' and 2 more rows", "no source side"):
        case.trained("alone", alone)
    with refused("a fused adapter", "unlabelled text"):
        case.trained("texts", ["some text"], task=get_task("causal-lm"))
    short = [replace(row, prompt="a") for row in case.examples]
    with refused("source of example 'r", "tokens", "at most 12"):
        case.trained("long", short, max_length=12)


@pytest.mark.parametrize("name", FEW)
def test_other_adapters_learn_as_if_there_were_no_source(refs, tmp_path, name):
    case = Case(refs, tmp_path, name)
    alone = [replace(row, source=None) for row in case.examples]
    found = [
        case.trained(str(len(rows[0].id) + (rows is alone)), rows, case.first)
        for rows in (case.examples, alone)
    ]
    assert equal(*found)


def test_what_is_attached_for_training_is_trained_and_the_first_stage_is_not(refs, tmp_path):
    case = Case(refs, tmp_path, "xlmr")
    model = attach(case.ref, case.start, trainable=True)
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    detach(model)
    assert trained
    assert all(".lora_" in key or ".modules_to_save.default." in key for key in trained)
    assert isinstance(load_backbone(case.ref)[0], hf.XLMRobertaForSequenceClassification)
    model = attach(case.ref, case.start)
    assert not any(value.requires_grad for value in model.parameters())
    detach(model)


@pytest.mark.parametrize("name", NAMES)
def test_kept_states_teach_what_fresh_ones_do_and_each_source_is_read_once(refs, tmp_path, name, monkeypatch):
    case = Case(refs, tmp_path, name)
    read, plain = [], FlareModel.source_states

    def counted(self, ids, mask, **more):
        read.append(len(ids))
        return plain(self, ids, mask, **more)

    monkeypatch.setattr(FlareModel, "source_states", counted)
    fresh = case.trained("fresh", steps=6)
    assert sum(read) >= 6 * 4  # a batch per step
    read.clear()
    kept = case.trained("kept", steps=6, cached=True)
    distinct = len({row.source.prompt for row in case.examples})
    assert sum(read) == distinct + 1  # one row more, to see how wide the states are
    start = load_file(case.start / paired.WEIGHTS)
    moved = sum(float((fresh[key] - start[key]).abs().sum()) for key in fresh)
    apart = sum(float((fresh[key] - kept[key]).abs().sum()) for key in fresh)
    assert 0 < apart < 0.05 * moved  # bfloat16 on the disk
    assert not list((tmp_path / "work").rglob("*.bin"))


def test_token_types_are_not_kept(refs, tmp_path):
    with refused("flare.cache_sources", "token types"):
        Case(refs, tmp_path, "bert", "xnli", "es").trained("one", cached=True)
