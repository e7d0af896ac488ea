"""Bottleneck adapters: the logits of `adapters` 1.3, what stays as it was, merges, and an experiment."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from builders.adapter_folders import ties_by_hand
from builders.refusals import refused
from builders.worlds import experiment, write_experiment
from lingualift.bottlenecks import BottleneckConfig
from lingualift.merging import merge
from lingualift.pipeline import plan_of, run

THEIRS = Path(__file__).parent / "adapters13"  # written by backbones/adapters13.py
ARCHITECTURES = ("bert", "xlmr", "t5", "mt5", "llama", "gpt2", "gemma2", "gemma3")
PLACEMENTS = {"seq_bn": "pfeiffer", "double_seq_bn": "houlsby", "par_bn": "parallel"}


def written(model):
    return model.logits if "logits" in model else model.last_hidden_state


def place(path):
    """A path without what stands before the blocks, which differs with the class that an adapter was saved from."""
    return re.sub(r"^(?:.*?\.)?(?=(?:encoder\.(?:layer|block)|decoder\.block|layers|h)\.\d)", "", path)


@pytest.mark.parametrize("case", PLACEMENTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_logits_are_those_of_adapters(name, case):
    folder = THEIRS / name / case
    about, given = json.loads((folder / "case.json").read_text()), load_file(folder / "io.safetensors")
    made = getattr(transformers, about["model_class"])
    model = made.from_pretrained(THEIRS / name / "backbone", attn_implementation="eager").eval()
    (adapter,) = about["stack"]
    theirs = json.loads((folder / adapter / "adapter_config.json").read_text())["config"]
    tensors = torch.load(folder / adapter / "pytorch_adapter.bin", weights_only=True)
    size = next(len(x) for key, x in tensors.items() if key.endswith("adapter_down.0.weight"))
    config = BottleneckConfig(
        placement=PLACEMENTS[case],
        size=size,
        activation=theirs["non_linearity"],
        scaling=theirs["scaling"],
        last_norm=name.startswith("gemma"),
    )
    places = {place(site.theirs): site.output for site in config.places(model)}
    wrapped = peft.get_peft_model(model, config)
    inputs = {key: value for key, value in given.items() if key.endswith("input_ids")}
    with torch.no_grad():
        assert torch.allclose(
            written(wrapped(**inputs)), given["output_without"], atol=1e-5
        )  # at the identity
        left = {key for key, _ in wrapped.named_parameters() if "bottleneck_" in key}
        for key, value in tensors.items():
            path, way, kind = re.fullmatch(
                r"(.*)\.adapters\.\w+\.adapter_(down|up)(?:\.0)?\.(\w+)", key
            ).groups()
            ours = f"{places[place(path)]}.bottleneck_{way}.default.{kind}"
            wrapped.get_base_model().get_parameter(ours).copy_(value)
            left.remove(f"base_model.model.{ours}")
        assert not left
        assert torch.allclose(written(wrapped(**inputs)), given["output"], atol=1e-5)
        with wrapped.disable_adapter():
            assert torch.allclose(written(wrapped(**inputs)), given["output_without"], atol=1e-5)


def test_a_left_out_block_gets_none_and_an_unknown_backbone_is_refused():
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "vocab_size": 20}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3))
    places = BottleneckConfig(placement="houlsby", leave_out=[1]).places(model)
    assert {(site.block, site.place) for site in places} == {
        (block, name) for block in (0, 2) for name in ("attention", "feed-forward")
    }
    other = OPTForCausalLM(
        OPTConfig(hidden_size=8, ffn_dim=12, num_attention_heads=2, vocab_size=20, num_hidden_layers=1)
    )
    with refused("backbone OPTForCausalLM", "no sub-layers", "Llama", mend="LoRA"):
        BottleneckConfig().places(other)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Runs of each placement: (adapter folders by step, rows)."""
    found = {}
    for name in PLACEMENTS.values():
        folder = tmp_path_factory.mktemp(name)
        raw = experiment(data, methods=["source-ft", "arithmetic", "adamergex"], seeds=[0])
        raw["adapter"] = {"type": "bottleneck", "placement": name, "reduction": 4}
        raw["weights"] = {"tune_on": "fr", "grid": [0.5, 1.0]}
        path = write_experiment(folder / "e.yaml", raw)
        done = run(path, output=folder / "run")
        trained = {}
        for step in (folder / "store/adapter").glob("*/step.json"):
            trained[json.loads(step.read_text())["label"]] = step.parent
        found[name] = done, trained
    return found


@pytest.mark.parametrize("placement", PLACEMENTS.values())
def test_an_experiment_trains_merges_and_scores_them(finished, placement):
    done, trained = finished[placement]
    assert {row["method"] for row in done.rows} == {"source-ft", "arithmetic", "adamergex"}
    for folder in trained.values():
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["peft_type"], config["placement"]) == ("BOTTLENECK", placement)
        up = [
            x for key, x in load_file(folder / "adapter_model.safetensors").items() if "bottleneck_up" in key
        ]
        assert up
        assert all(x.abs().sum() > 0 for x in up)


def three(finished, placement="houlsby"):
    _, trained = finished[placement]
    names = (
        "train mini-sentiment in en, seed 0",
        "train causal-lm in fr, seed 0",
        "train causal-lm in en, seed 0",
    )
    return [trained[name] for name in names]


def read(folder):
    return load_file(Path(folder) / "adapter_model.safetensors")


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_each_tensor_is_merged_as_equation_7_says(finished, tmp_path, weight):
    task, target, source = three(finished)
    report = merge(
        method="adamergex",
        task=task,
        target_reference=target,
        source_reference=source,
        weight=weight,
        output=tmp_path / "out",
    )
    assert report.formula == "X = X_task + λ·(X_target − X_source), X each weight and bias, down and up"
    one, two, three_, found = map(read, (task, target, source, report.output))
    assert found.keys() == one.keys()
    for name, value in found.items():
        if weight:
            assert torch.allclose(value, one[name] + weight * (two[name] - three_[name]), atol=1e-6)
        else:
            assert torch.equal(value, one[name])


def test_ties_on_each_tensor(finished, tmp_path):
    paths = three(finished)
    report = merge(
        method="ties", adapters=[(path, 1.0) for path in paths], density=0.5, output=tmp_path / "out"
    )
    inputs = [{name: x.double().numpy() for name, x in read(path).items()} for path in paths]
    for name, value in read(report.output).items():
        expected = ties_by_hand([x[name] for x in inputs], [1.0] * 3, 0.5)
        assert np.allclose(value.numpy(), expected, atol=1e-6)


def test_bottlenecks_that_differ_in_what_they_compute_are_not_merged(finished, tmp_path):
    one, other = three(finished, "pfeiffer")[0], three(finished, "parallel")[1]
    given = {"method": "arithmetic", "adapters": [(one, 1.0), (other, 0.5)], "output": tmp_path / "out"}
    with refused(str(other), "placement is 'parallel'", "'pfeiffer'", mend="one kind"):
        merge(**given)
    with refused("space delta", "a function stands between", mend="factors"):
        merge(**{**given, "adapters": [(one, 1.0), (three(finished, "pfeiffer")[1], 1.0)]}, space="delta")


def test_plain_peft_refuses_the_folder(finished):
    folder = three(finished)[0]
    code = f"import peft; peft.PeftConfig.from_pretrained({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "BOTTLENECK" in done.stderr


def test_the_settings_are_in_the_plan(data, tmp_path):
    raw = experiment(data, methods=["source-ft"], adapter={"type": "bottleneck", "reduction": 0.5})
    with refused("e.yaml", "reduction", mend="keys"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_inspect_compares_them(finished, cli):
    done = cli("inspect", *map(str, three(finished)))
    assert done.code == 0, done.err
    assert "bottleneck" in done.out
