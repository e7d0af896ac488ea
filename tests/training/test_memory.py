"""Out of memory: a training goes on with fewer rows at once, and ends where it would have ended."""

import resource
import sys

import pytest
import torch

from builders.refusals import refused
from builders.trainings import begin, equal, facts, tensors, trained
from lingualift.backbone.loading import load_backbone
from lingualift.config import Data, Scoring
from lingualift.data.datasets import Examples
from lingualift.evaluation.runner import evaluate


@pytest.fixture
def small_memory(mini):
    """Yields a function that limits the rows a forward pass may hold, from its nth pass on."""
    model, _ = load_backbone(mini)
    hooks = []

    def limit(rows, after=0):
        passes = []

        def refuse(module, arguments, given):
            passes.append(len(given["input_ids"]))
            if len(passes) > after and passes[-1] > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")

        hooks.append(model.register_forward_pre_hook(refuse, with_kwargs=True))
        return passes

    yield limit
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("rows", ["examples", pytest.param("texts", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("settings", "limit", "after", "expected"),
    [
        ({}, 3, 0, 3),  # 6 rows: 3 at once
        pytest.param({}, 1, 0, 1, marks=pytest.mark.slow),
        ({"batch_size": 9}, 4, 0, 3),  # only a divisor keeps the rows of a step
        ({"accumulation": 2, "batch_size": 4}, 3, 5, 2),
        ({"checkpoint_steps": 2, "steps": 7}, 3, 5, 3),  # runs out in step 6, goes on from step 4
        ({"epochs": 1.3, "steps": None, "batch_size": 10, "checkpoint_steps": 2}, 5, 4, 5),
    ],
)
def test_the_adapter_is_that_of_the_whole_batch(
    request, mini, tmp_path, small_memory, caplog, rows, settings, limit, after, expected
):
    rows = request.getfixturevalue(rows)
    start = begin(mini, tmp_path / "start")
    settings = {"learning_rate": 1e-3, **settings}
    whole = trained(mini, rows, start, tmp_path / "whole", **settings)
    passes = small_memory(limit, after)
    cut = trained(mini, rows, start, tmp_path / "cut", **settings)
    assert passes
    assert "out of memory" in caplog.text
    assert facts(tmp_path / "cut")["rows_at_once"] == expected
    assert facts(tmp_path / "cut")["steps"] == facts(tmp_path / "whole")["steps"]
    begun = tensors(start)
    for name, tensor in whole.items():
        moved = (tensor - begun[name]).norm()
        assert (cut[name] - tensor).norm() <= 0.02 * moved, name  # AdamW's first steps go by the sign alone


def test_the_last_checkpoint_is_where_it_goes_on(mini, tmp_path, examples, small_memory):
    start = begin(mini, tmp_path / "start")
    passes = small_memory(3, after=5)
    trained(mini, examples, start, tmp_path / "cut", steps=7, checkpoint_steps=2)
    assert passes == [6] * 6 + [3] * 6  # five steps; the sixth fails; from step 4 on, two passes each


def test_a_single_row_that_does_not_fit_is_told(mini, tmp_path, examples, small_memory):
    start = begin(mini, tmp_path / "start")
    small_memory(0)
    (tmp_path / "out").mkdir()
    with refused("training", "1 rows", mend="gradient_checkpointing") as told:
        trained(mini, examples, start, tmp_path / "none")
    assert "gradient_checkpointing" in told.value.mend
    model, _ = load_backbone(mini)
    assert not hasattr(model, "peft_config")


REAL = """
import resource, sys
from pathlib import Path
import torch, transformers, peft
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Adapter, Backbone, Training
from lingualift.tasks import TASKS
from lingualift.training.trainer import initialise, train

torch.set_num_threads(1)
folder, ref = Path(sys.argv[1]), find_backbone(Backbone(name="miniworld"))
texts = ["the red book is on the table in the kitchen " * 6] * 640
(folder / "start").mkdir()
initialise(ref, Adapter(rank=2), 0, folder / "start")


def where(name):
    return {"start": folder / "start", "seed": 0, "output": folder / name, "work": folder / "work"}


def go(name, batch):
    (folder / name).mkdir()
    settings = Training(steps=2, batch_size=batch)
    train(ref, TASKS["causal-lm"], texts, settings, language="en", **where(name))


go("warm", 1)  # whatever is loaded by the first step
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20, resource.RLIM_INFINITY))
go("out", 64)
"""


@pytest.mark.slow  # where it is said to run out is tested above
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_memory_that_really_runs_out(cli, tmp_path):
    assert resource.getrlimit(resource.RLIMIT_AS)
    (tmp_path / "real.py").write_text(REAL)
    done = cli.script(tmp_path / "real.py", tmp_path)
    assert done.code == 0, done.err
    assert "out of memory with 64 rows at once: goes on with 32" in done.err
    assert facts(tmp_path / "out")["rows_at_once"] < 64
    assert not equal(tensors(tmp_path / "out"), tensors(tmp_path / "start"))


@pytest.mark.parametrize("name", ["mini-sentiment", "mini-qa"])
def test_scoring_goes_on_with_fewer_rows_and_finds_the_same(mini, data, small_memory, caplog, name):
    folder = {"mini-sentiment": "sentiment", "mini-qa": "qa"}[name]
    source = Examples(name, Data(files=f"{folder}/{{language}}/{{split}}.jsonl"), data)
    task, rows = source.labelled("sw", "test")
    whole = evaluate(mini, None, task, rows, Scoring(batch_size=16))
    passes, seen = small_memory(5), []
    cut = evaluate(mini, None, task, rows, Scoring(batch_size=16), lambda *at: seen.append(at))
    assert [answer.prediction for answer in cut.predictions] == [
        answer.prediction for answer in whole.predictions
    ]
    assert passes[:3] == [16, 8, 4]
    assert set(passes[3:]) <= {1, 2, 3, 4}
    assert seen[-1] == (16, 16)
    assert "out of memory with 16 rows at once: goes on with 8" in caplog.text


def test_scoring_a_single_row_that_does_not_fit_is_told(mini, data, small_memory):
    source = Examples("mini-qa", Data(files="qa/{language}/{split}.jsonl"), data)
    small_memory(0)
    with refused("scoring", "memory", "single row"):
        evaluate(mini, None, *source.labelled("sw", "test"), Scoring())
