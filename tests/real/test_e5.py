"""Every command that suits an encoder on multilingual-e5-small, which has no head for words and no pooling layer."""

import json

import peft
import pytest
import torch
import transformers
import yaml
from rows import experiment


@pytest.fixture(scope="module")
def finished(cli, e5, rows, tmp_path_factory):
    """An experiment with every way of transfer, run from the command line."""
    folder = tmp_path_factory.mktemp("e5")
    methods = [
        "source-ft",
        {"method": "arithmetic", "space": "delta", "weight": 0.5},
        {"method": "adamergex", "space": "delta", "weight": 0.5},
        "translate-train",
        "flare",
        "x-mixup",
    ]
    raw = experiment(e5, rows, methods, 2)
    (folder / "e.yaml").write_text(yaml.safe_dump(raw))
    planned = cli("plan", folder / "e.yaml", "--output", folder / "run")
    assert planned.code == 0, planned.err
    assert "head for words" in planned.out
    done = cli("run", folder / "e.yaml", "--output", folder / "run")
    assert done.code == 0, done.err
    return folder


def test_every_method_has_a_score_and_the_head_is_told(finished):
    rows = json.loads((finished / "run" / "results.json").read_text())["rows"]
    methods = {row["method"] for row in rows if row["language"] == "jav"}
    assert methods == {"source-ft", "arithmetic", "adamergex", "translate-train", "flare", "x-mixup"}
    log = (finished / "run" / "log.jsonl").read_text()
    assert "no head for words" in log
    assert "pool" in log


def test_merged_adapters_hold_the_task_head_and_no_head_for_words(finished):
    folders = [path for path in (finished / "run" / "adapters").iterdir() if "adamergex" in path.name]
    assert folders
    from safetensors.torch import load_file

    keys = set(load_file(folders[0] / "adapter_model.safetensors"))
    assert any("classifier" in key for key in keys)
    assert not any("predictions" in key for key in keys)


def test_a_merged_adapter_is_the_same_in_peft(finished, e5):
    from lingualift.attachment import attach, detach
    from lingualift.backbone.architectures import Head
    from lingualift.backbone.loading import load_backbone
    from lingualift.backbone.reference import find_backbone
    from lingualift.config import Backbone

    folder = next(path for path in (finished / "run" / "adapters").iterdir() if "adamergex" in path.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(e5)
    given = tokenizer("Panganane enak tenan.", return_tensors="pt")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(e5, num_labels=3)
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    ref = find_backbone(Backbone(name=str(e5))).answering(Head("classes", 3))
    load_backbone(ref)
    wrapped = attach(ref, folder)
    try:
        with torch.inference_mode():
            difference = (wrapped(**given).logits - model(**given).logits).abs().max()
    finally:
        detach(wrapped)
    assert difference < 1e-4


def test_check_says_that_there_is_no_perplexity(cli, finished):
    done = cli("check", finished / "e.yaml", "--rows", 4)
    assert "Traceback" not in done.err
    assert "head for words" in done.out + done.err


def test_lift_predict_and_evaluate(cli, finished, e5, rows, tmp_path):
    adapter = next(path for path in (finished / "run" / "adapters").iterdir() if "source-ft" in path.name)
    done = cli(
        "lift", "--backbone", e5, "--adapter", adapter, "--to", "jv", "--text", rows / "jav" / "train.jsonl",
        "--source-text", rows / "eng" / "train.jsonl", "--steps", 2, "--batch-size", 2, "--max-length", 48,
        "--workers", 1, "--output", tmp_path / "lifted",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = cli(
        "evaluate", "--backbone", e5, "--adapter", tmp_path / "lifted", "--task", "nusax", "--language", "jav",
        "--data", f"{rows}/{{language}}/{{split}}.jsonl", "--output", tmp_path / "scores.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = cli(
        "predict", "--backbone", e5, "--adapter", tmp_path / "lifted", "--task", "nusax", "--language", "jav",
        "--input", rows / "jav" / "test.jsonl", "--output", tmp_path / "found.jsonl",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 12


def test_the_head_is_trained_from_the_shell_and_shared(cli, e5, rows, tmp_path):
    data = f"{rows}/{{language}}/{{split}}.jsonl"
    done = cli(
        "train-head", "--backbone", e5, "--language", "eng", "--language", "jav", "--data", data, "--steps", 2,
        "--batch-size", 2, "--max-length", 48, "--output", tmp_path / "head",
    )  # fmt: skip
    assert done.code == 0, done.err
    for kind in ("lora", "ia3"):
        done = cli(
            "train", "--backbone", e5, "--task", "masked-lm", "--language", "jav", "--data", data, "--steps", 2,
            "--batch-size", 2, "--max-length", 48, "--adapter", kind, "--words-head", tmp_path / "head",
            "--output", tmp_path / kind,
        )  # fmt: skip
        assert done.code == 0, done.err
