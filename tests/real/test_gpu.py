"""On a GPU: an experiment in bfloat16 and in NF4, merging and FLARE included, and where the tensors are."""

import importlib.util
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lingualift as ll
from builders.worlds import experiment, small_data, write_experiment
from lingualift.attachment import attach, detach
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Adapter, Backbone
from lingualift.processes import device
from lingualift.training.trainer import initialise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("gpu"),
    pytest.mark.filterwarnings("ignore:inner dimension"),  # bitsandbytes, of the mini-world's width of 96
]
METHODS = [
    "vanilla",
    "source-ft",
    {"method": "adamergex", "space": "delta", "weight": 0.5},
    "translate-train",
    "flare",
    "x-mixup",
]


class Operations(TorchDispatchMode):
    """Names of the operations that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=[None, "nf4"], ids=["bfloat16", "nf4"])
def quantization(request):
    if request.param and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    return request.param


def test_an_experiment_runs_on_it(quantization, tmp_path):
    data = small_data(tmp_path / "data")
    raw = experiment(data, methods=METHODS)
    raw["backbone"] = {"name": "miniworld", "dtype": "bfloat16", "quantization": quantization}
    files = raw["tasks"][0]["data"]["files"]
    raw["tasks"][0]["translated"] = {
        "into_targets": {"files": files},
        "into_source": {"files": files.replace("{language}", "en")},
    }
    run = ll.run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    assert {row["method"] for row in run.rows} >= {"source-ft", "adamergex", "flare", "x-mixup"}
    assert all(math.isfinite(row["score"]) for row in run.rows)


def test_backbone_and_adapter_lie_on_it(quantization, tmp_path):
    ref = find_backbone(Backbone(name="miniworld", dtype="bfloat16", quantization=quantization))
    initialise(ref, Adapter(rank=2), 0, tmp_path)
    assert device() == "cuda"
    wrapped = attach(ref, tmp_path, trainable=True)
    try:
        assert {parameter.device.type for parameter in wrapped.parameters()} == {"cuda"}
        model, tokenizer = load_backbone(ref)
        ids = tokenizer("the red book", return_tensors="pt").to("cuda")
        logits = wrapped(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits
        assert logits.device.type == "cuda"
        assert torch.isfinite(logits).all()
        assert model.dtype == torch.bfloat16
    finally:
        detach(wrapped)


def test_attention_makes_no_plan_for_each_size_of_batch(tmp_path):
    ref = find_backbone(Backbone(name="miniworld", dtype="bfloat16"))
    model, _ = load_backbone(ref)
    for length in (17, 31):
        with Operations() as operations:
            model(input_ids=torch.ones(2, length, dtype=torch.long, device=device()))
        attending = {name for name in operations.names if "scaled_dot_product" in name}
        assert attending
        assert not any("cudnn" in name for name in attending)
