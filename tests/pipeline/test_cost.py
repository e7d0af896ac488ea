"""What a plan says that it will cost: sizes against real models and files, times as identities, refusals."""

import dataclasses
import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import load_file

from builders.refusals import refused
from builders.worlds import experiment, write_experiment
from lingualift.backbone import loading as backbone
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone, load_tokenizer
from lingualift.config import Adapter, Backbone, Training
from lingualift.pipeline import cost as costing
from lingualift.pipeline import plan_of, run
from lingualift.pipeline.cost import (
    Cost,
    _wall_time,
    check_fits,
    estimate,
    misfits,
)
from lingualift.pipeline.machines import MACHINES
from lingualift.tasks import TASKS
from lingualift.terminal import duration, readable
from lingualift.training.measuring import _kept_bytes, measure_step, seconds_of_batch
from lingualift.training.trainer import count_parameters, initialise


@pytest.mark.parametrize("adapter", [{}, {"rank": 3, "modules": ("q_proj", "down_proj")}, {"type": "ia3"}])
def test_sizes_told_from_the_config_are_those_of_the_model_and_its_adapter(bpe, mini, tmp_path, adapter):
    for ref, folder in ((bpe, tmp_path / "a"), (mini, tmp_path / "b")):
        model, _ = load_backbone(ref)
        folder.mkdir()
        initialise(ref, Adapter(**adapter), 0, folder)
        written = sum(tensor.numel() for tensor in load_file(folder / "adapter_model.safetensors").values())
        whole = sum(parameter.numel() for parameter in model.parameters())
        assert count_parameters(ref, Adapter(**adapter)) == (whole, written)


def test_what_autograd_keeps_is_counted_once_and_without_parameters():
    layer = torch.nn.Linear(3, 5, bias=False)
    x = torch.ones(4, 3)

    def forward():
        hidden = torch.relu(layer(x))  # keeps x, a view of the weight, and its own result, of 4 x 5
        return (hidden * hidden).sum()  # keeps that result again, twice

    assert _kept_bytes(layer, forward) == 4 * (4 * 3 + 4 * 5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_of_a_row_grows_with_its_length_and_not_with_the_batch(mini, tmp_path, checkpointing):
    initialise(mini, Adapter(rank=2), 0, tmp_path)
    found = {}
    for words, batch in ((10, 2), (10, 4), (40, 2)):
        settings = Training(steps=5, batch_size=batch, gradient_checkpointing=checkpointing)
        texts = ["the red book is on the table " * words] * 20
        found[words, batch] = measure_step(
            mini,
            TASKS["causal-lm"],
            texts,
            settings,
            start=tmp_path,
            language="en",
            segment_tokens=8 * words,
        )[1]
    assert found[10, 2] == found[10, 4]
    assert 3 < found[40, 2] / found[10, 2] < 17
    model, _ = load_backbone(mini)
    assert not hasattr(model, "peft_config")
    assert not model.training


def planned(tmp_path, data, **changes):
    raw = experiment(data, methods=["source-ft", {"method": "adamergex"}], **changes)
    raw["weights"] = {"tune_on": "fr", "grid": [0.0, 1.0]}
    return plan_of(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")


def test_every_step_that_is_left_is_costed_and_nothing_is_kept(tmp_path, data):
    plan, store = planned(tmp_path, data, seeds=[0, 1])
    found = estimate(plan, store, calibrate=True)
    assert list(found.costs) == list(plan.steps)
    assert all(cost.seconds > 0 and cost.memory > 0 for cost in found.costs.values())
    whole = sum(cost.seconds for cost in found.costs.values()) + found.loading
    assert found.seconds <= whole * (1 + 1e-9)  # in another order
    assert not store.root.exists()
    lower = estimate(plan, store, calibrate=False)
    assert lower.seconds is None
    assert lower.memory < found.memory
    assert misfits(found) == []


@pytest.mark.slow  # runs an experiment with every adapter
def test_disk_is_that_of_the_adapters_that_a_run_writes(tmp_path, data):
    plan, store = planned(tmp_path, data)
    costs = estimate(plan, store, calibrate=True).costs
    run(tmp_path / "e.yaml", output=tmp_path / "run")
    for step, cost in costs.items():
        weights = store.folder(step) / "adapter_model.safetensors"
        if weights.is_file():
            assert cost.disk <= weights.stat().st_size <= cost.disk + 20_000, step.label()  # its header
    assert estimate(plan, store, calibrate=True).costs == {}


@pytest.mark.slow  # runs half an experiment
def test_finished_steps_tell_the_time_of_their_kind(tmp_path, data):
    plan, store = planned(tmp_path, data)
    run(tmp_path / "e.yaml", output=tmp_path / "run")
    training = [step for step in plan.steps if step.label() == "train causal-lm in sw, seed 0"]
    shutil.rmtree(store.folder(training[0]))
    (cost,) = estimate(plan, store, calibrate=True).costs.values()
    took = [
        store.recipe(step)["seconds"]
        for step in plan.steps
        if step.what() == "train causal-lm" and step not in training
    ]
    assert min(took) * 0.999 <= cost.seconds <= max(took) * 1.001


@pytest.fixture
def found(tmp_path, data):
    return estimate(*planned(tmp_path, data), calibrate=False)


def test_what_does_not_fit_is_refused_with_a_mend(found):
    one = max(cost.memory for cost in found.costs.values())
    tight = dataclasses.replace(found, memory=3 * one, workers=3, memory_free=2 * one)
    with refused("memory", "3 steps at once") as told:
        check_fits(tight)
    assert told.value.mend == "set `workers: 2`"
    with refused("memory", "1 step at once", mend="`batch_size`"):
        check_fits(dataclasses.replace(found, memory_free=one - 1))
    with refused("disk", "the steps that are left need") as told:
        check_fits(dataclasses.replace(found, disk_free=found.disk - 1))
    assert "store prune" in told.value.mend
    check_fits(dataclasses.replace(found, disk_free=found.disk, memory_free=found.memory))


def test_a_backbone_that_cannot_fit_is_refused_before_it_is_loaded(cli, data, inside, bpe_folder):
    shutil.copytree(bpe_folder, inside / "huge")
    config = json.loads((inside / "huge" / "config.json").read_text())
    config |= {"hidden_size": 2**17, "intermediate_size": 2**19, "num_hidden_layers": 4}
    (inside / "huge" / "config.json").write_text(json.dumps(config))
    save_file({}, inside / "huge" / "model.safetensors")
    raw = experiment(data, methods=["source-ft"], backbone={"name": "huge"})
    write_experiment(inside / "e.yaml", raw)
    for command in ("plan", "run"):
        message = cli(command, "e.yaml", "--output", "run").message
        assert "backbone 'huge': needs" in message
        assert "TB of memory for its weights alone (float32)" in message
        assert "that are free" in message
        assert not (inside / "run").exists()
    assert find_backbone(Backbone(name=str(inside / "huge")))


class Fake:
    """A step as the clock sees it."""

    def __init__(self, key, inputs):
        self.key, self.inputs = key, {step.key: step for step in inputs}


@st.composite
def chains(draw):
    steps, costs = [], {}
    for index in range(draw(st.integers(1, 12))):
        inputs = [step for step in steps if draw(st.booleans())]
        steps.append(Fake(str(index), inputs))
        costs[steps[-1]] = Cost(draw(st.integers(0, 100)), 0, 0)
    return costs


@given(chains(), st.integers(1, 5))
def test_time_lies_between_the_longest_chain_and_one_after_the_other(costs, workers):
    total = sum(cost.seconds for cost in costs.values())
    longest = {}
    for step, cost in costs.items():
        before = max((longest[source] for source in step.inputs), default=0)
        longest[step.key] = before + cost.seconds
    found = _wall_time(costs, workers)
    assert max(max(longest.values()), total / workers) <= found <= total
    assert _wall_time(costs, 1) == total
    assert _wall_time(costs, len(costs)) == max(longest.values())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (12.4, "12.4 s"), (150, "2 min 30 s"), (3600 * 2 + 300, "2 h 05 min")],
)
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 B"), (1500, "1.5 kB"), (2e9, "2.0 GB"), (2.5e14, "250.0 TB")]
)
def test_sizes_for_people(size, text):
    assert readable(size) == text


def test_a_batch_is_told_from_few_rows():
    """What a row takes is linear here, so a few rows tell a batch exactly, however little time there is."""
    asked = []

    def seconds(rows):
        asked.append(len(rows))
        return 2.0 + 0.5 * len(rows)

    rows = list(range(100))
    for budget in (0.0, 10.0, 40.0, 1000.0):
        asked.clear()
        assert seconds_of_batch(seconds, rows, 16, budget) == pytest.approx(2.0 + 0.5 * 16)
        assert max(asked) <= 16
    asked.clear()
    assert seconds_of_batch(seconds, rows[:4], 16, 1000.0) == pytest.approx(4 * (2.0 + 0.5 * 4))
    assert max(asked) <= 4


def test_what_a_gpu_loads_at_first_is_not_what_a_batch_takes(monkeypatch):
    """An H200 took 30 s for the first steps of Gemma, and `plan` made an hour of a training of half a minute."""
    monkeypatch.setattr("lingualift.training.measuring.device", lambda: "cuda")
    for budget in (0.0, 10.0, 1000.0):
        seen = set()

        def seconds(rows, seen=seen):
            size = (len(rows), rows[0] // 20)
            first = size not in seen
            seen.add(size)
            return 0.1 + 0.01 * len(rows) + (20.0 if first else 0.0)

        assert seconds_of_batch(seconds, list(range(100)), 16, budget) == pytest.approx(0.1 + 0.01 * 16)


def test_another_machine_is_counted_from_configuration_and_data(tmp_path, data, monkeypatch):
    plan, store = planned(tmp_path, data)
    monkeypatch.setattr(costing, "free_memory", lambda: pytest.fail("this machine's memory is asked"))
    monkeypatch.setattr(backbone, "load_model", lambda ref: pytest.fail("the backbone is loaded"))
    found = estimate(plan, store, calibrate=True, machine=MACHINES["h100"])
    assert found.memory_free == 80e9
    assert found.seconds > 0
    train = {step.label(): costs for step, costs in found.costs.items() if step.kind == "adapter"}
    task = train["train mini-sentiment in en, seed 0"]
    assert task.steps == 3  # by the file, of 8 rows each
    tokenizer = load_tokenizer(plan.backbone)
    rows = [f"{row.prompt} {row.answer}" for row in plan.steps[1].dataset.rows("en", "train")]
    mean = sum(len(ids) for ids in tokenizer(rows)["input_ids"]) / len(rows)
    assert task.tokens == round(3 * 8 * mean)
    slower = estimate(plan, store, calibrate=True, machine=MACHINES["l4"])
    assert slower.seconds >= found.seconds
    with refused("machine 'h10'", "not known", mend="h100"):
        MACHINES["h10"]


def test_operations_are_those_of_the_formula(tmp_path, data, monkeypatch):
    """Each token passes each weight twice, forward and back to the inputs, by a multiplication and an addition."""
    from lingualift.pipeline import machines

    monkeypatch.setattr(machines, "LAUNCH", 0.0)
    plan, _ = planned(tmp_path, data)
    (step,) = (step for step in plan.steps if step.label() == "train mini-sentiment in en, seed 0")
    counted = machines.Estimator(plan.backbone, MACHINES["a100"], 0)
    found = counted.work(step)
    model, tokenizer = load_backbone(plan.backbone)
    table = model.get_input_embeddings().weight
    inside = sum(
        p.numel() for p in model.parameters() if p is not table
    )  # the head is tied to the embeddings
    rows = [f"{row.prompt} {row.answer}" for row in step.dataset.rows("en", "train")]
    longest = max(map(len, tokenizer(rows)["input_ids"]))
    seen = (
        model.config.num_hidden_layers * model.config.hidden_size * longest
    )  # queries, keys, values: half of each
    operations = 2 * 2 * found.tokens * (inside + seen)
    assert found.seconds == pytest.approx(operations / (0.35 * 19.5e12))  # float32 on an A100
