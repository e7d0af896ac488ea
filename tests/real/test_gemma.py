"""Every command on Gemma 3 270M, and what peft makes of the adapters that come out."""

import json

import peft
import pytest
import torch
import transformers
import yaml
from rows import experiment
from safetensors.torch import load_file

from lingualift.attachment import attach, detach
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone
from lingualift.tasks import TASKS

TEXT = "Makanan di restoran ini enak sekali, tetapi pelayanannya lambat.\nSentiment:"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("gemma")


@pytest.fixture(scope="module")
def train(cli, gemma, rows, work):
    """Trains an adapter from the command line, once."""

    def run(name, task, language, *more):
        output = work / name
        if not output.exists():
            data = f"{rows}/{{language}}/{{split}}.jsonl"
            done = cli(
                "train", "--backbone", gemma, "--dtype", "bfloat16", "--task", task, "--language", language,
                "--data", data, "--steps", 2, "--batch-size", 4, "--max-length", 64, "--output", output, *more,
            )  # fmt: skip
            assert done.code == 0, done.err
        return output

    return run


@pytest.fixture(scope="module")
def references(train):
    task = train("task", "nusax", "eng")
    return task, *(train(code, "causal-lm", code, "--start", task) for code in ("jav", "eng"))


def logits_in_peft(gemma, adapter):
    """Of a text's last token, by transformers and peft alone, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gemma)
    with torch.inference_mode():
        return model(**tokenizer(TEXT, return_tensors="pt")).logits[0, -1]


def logits_here(gemma, adapter):
    ref = find_backbone(Backbone(name=str(gemma)))
    _, tokenizer = load_backbone(ref)
    wrapped = attach(ref, adapter)
    try:
        with torch.inference_mode():
            return wrapped(**tokenizer(TEXT, return_tensors="pt")).logits[0, -1]
    finally:
        detach(wrapped)


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_a_merged_adapter_is_the_same_in_peft(cli, gemma, references, work, space):
    task, target, source = references
    output = work / f"merged-{space}"
    done = cli(
        "merge", "--task", task, "--target-reference", target, "--source-reference", source, "--weight", 0.5,
        "--space", space, "--output", output,
    )  # fmt: skip
    assert done.code == 0, done.err
    here = logits_here(gemma, output)
    assert not torch.allclose(here, logits_here(gemma, task), atol=1e-4)
    assert (logits_in_peft(gemma, output) - here).abs().max() < 1e-3


def test_merging_in_factors_is_the_formula(references, work, cli):
    task, target, source = (load_file(folder / "adapter_model.safetensors") for folder in references)
    output = work / "formula"
    arguments = [str(folder) for folder in references]
    done = cli(
        "merge", "--task", arguments[0], "--target-reference", arguments[1], "--source-reference", arguments[2],
        "--weight", 0.7, "--output", output,
    )  # fmt: skip
    assert done.code == 0, done.err
    for key, value in load_file(output / "adapter_model.safetensors").items():
        expected = task[key].double() + 0.7 * (target[key].double() - source[key].double())
        assert torch.allclose(value.double(), expected, atol=1e-7), key


def test_ia3_is_trained_and_merged(train, cli, gemma, work):
    task = train("ia3", "nusax", "eng", "--adapter", "ia3", "--learning-rate", 5e-3)
    jav = train("ia3-jav", "causal-lm", "jav", "--adapter", "ia3", "--start", task)
    eng = train("ia3-eng", "causal-lm", "eng", "--adapter", "ia3", "--start", task)
    done = cli(
        "merge", "--task", task, "--target-reference", jav, "--source-reference", eng,
        "--output", work / "ia3-merged",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (
        logits_in_peft(gemma, work / "ia3-merged") - logits_here(gemma, work / "ia3-merged")
    ).abs().max() < 1e-3


def test_a_lifted_adapter_is_the_same_in_peft(cli, gemma, references, rows, work):
    output = work / "lifted"
    done = cli(
        "lift", "--backbone", gemma, "--dtype", "bfloat16", "--adapter", references[0], "--to", "jv", "--text",
        rows / "jav" / "train.jsonl", "--source-text", rows / "eng" / "train.jsonl", "--steps", 1,
        "--batch-size", 2, "--max-length", 48, "--workers", 1, "--output", output,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "perplexity" in done.out
    assert (logits_in_peft(gemma, output) - logits_here(gemma, output)).abs().max() < 1e-3


def test_rows_are_evaluated_and_predicted_alike(cli, gemma, references, rows, work):
    given = ["--backbone", gemma, "--dtype", "bfloat16", "--adapter", references[0], "--task", "nusax"]
    data = f"{rows}/{{language}}/{{split}}.jsonl"
    done = cli("evaluate", *given, "--language", "jav", "--data", data, "--output", work / "scores.json")
    assert done.code == 0, done.err
    unlabelled = work / "rows.jsonl"
    texts = [json.loads(line) for line in (rows / "jav" / "test.jsonl").read_text().splitlines()]
    unlabelled.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in texts))
    done = cli(
        "predict", *given, "--language", "jav", "--input", unlabelled, "--output", work / "found.jsonl"
    )
    assert done.code == 0, done.err
    found = [json.loads(line)["prediction"] for line in (work / "found.jsonl").read_text().splitlines()]
    scores = json.loads((work / "scores.json").read_text())
    labels = TASKS["nusax"].labels
    right = sum(one == labels[row["label"]] for one, row in zip(found, texts, strict=True))
    assert scores["n"] == len(texts)
    assert scores["scores"]["accuracy"]["score"] == pytest.approx(100 * right / len(texts))


def test_answers_are_generated(cli, gemma, rows, work):
    done = cli(
        "evaluate", "--backbone", gemma, "--dtype", "bfloat16", "--task", "nusax", "--answers", "generated",
        "--language", "jav", "--data", f"{rows}/{{language}}/{{split}}.jsonl", "--output", work / "words.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads((work / "words.json").read_text())["n"] == 12


def test_an_experiment_is_checked_planned_run_and_reported(cli, gemma, rows, tmp_path):
    adamergex = {"method": "adamergex", "space": "delta", "weight": 0.5}
    methods = ["vanilla", "source-ft", adamergex, "translate-train", "flare", "x-mixup"]
    raw = experiment(gemma, rows, methods, 1, scoring={"max_length": 128})
    raw["backbone"]["dtype"] = "bfloat16"
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(raw))
    checked = cli("check", tmp_path / "e.yaml", "--rows", 4)
    assert checked.code in (0, 2), checked.err  # rows that repeat are found
    assert "Traceback" not in checked.err
    planned = cli("plan", tmp_path / "e.yaml", "--output", tmp_path / "run")
    assert planned.code == 0, planned.err
    assert "measuring: train nusax" in planned.err
    elsewhere = cli("plan", tmp_path / "e.yaml", "--for", "h100", "--output", tmp_path / "run")
    assert elsewhere.code == 0, elsewhere.err
    done = cli("run", tmp_path / "e.yaml", "--output", tmp_path / "run")
    assert done.code == 0, done.err
    assert ": started" in done.err
    rows_found = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows_found} == {
        "vanilla", "source-ft", "adamergex", "translate-train", "flare", "x-mixup",
    }  # fmt: skip
    assert cli("report", tmp_path / "run").code == 0
