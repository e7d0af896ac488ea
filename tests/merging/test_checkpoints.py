"""Whole checkpoints whose blocks are swapped, against models swapped by hand."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from builders.refusals import check_refusal, refused
from lingualift.merging import merge

SIZES = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 60, "num_hidden_layers": 6}


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes}, num_attention_heads=2, num_key_value_heads=1))


def t5():
    return T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=4, num_decoder_layers=3, num_heads=2, vocab_size=60)
    )


def saved(folder, make, seed, dtype=torch.float32, **how):
    torch.manual_seed(seed)
    model = make().to(dtype)
    model.save_pretrained(folder, **how)
    return folder, model.state_dict()


def parts(depth, bottom, between, top):
    """The target's part by block, written out."""
    task = depth - bottom - top - between * ((bottom > 0) + (top > 0))
    lower, upper = ([0.5] * between if zone else [] for zone in (bottom, top))
    return [1.0] * bottom + lower + [0.0] * task + upper + [1.0] * top


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", ["1GB", "12KB"])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_blocks_are_the_ones_asked_for(tmp_path, dtype, shards, weight):
    task, one = saved(tmp_path / "task", llama, 0, dtype, max_shard_size=shards)
    target, two = saved(tmp_path / "target", llama, 1, dtype, max_shard_size=shards)
    (task / "tokenizer.json").write_text("{}")
    report = merge(
        method="layer-swap",
        task=task,
        target_reference=target,
        weight=weight,
        bottom=2,
        transition=1,
        top=1,
        output=tmp_path / "out",
    )
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shards == "12KB")
    assert (tmp_path / "out/tokenizer.json").is_file()
    zones = {"0-1": weight, "2": weight / 2, "4": weight / 2, "5": weight}
    assert report.parts == {place: (part,) for place, part in zones.items()}
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype).state_dict()
    assert found.keys() == one.keys()
    for name, value in found.items():
        part = weight * parts(6, 2, 1, 1)[int(name.split(".")[2])] if ".layers." in name else 0.0
        if part in (0.0, 1.0):
            assert torch.equal(value, (two if part else one)[name])
        else:
            expected = (1 - part) * one[name].double() + part * two[name].double()
            assert torch.allclose(
                value.double(), expected, rtol=1e-6 if dtype == torch.float32 else 5e-3, atol=1e-7
            )
    recorded = json.loads((tmp_path / "out/provenance.json").read_text())
    assert recorded["parts_of_the_target"] == {place: [part] for place, part in zones.items()}


def test_every_stack_has_its_own_depth(tmp_path):
    task, one = saved(tmp_path / "task", t5, 0)
    target, two = saved(tmp_path / "target", t5, 1)
    report = merge(
        method="layer-swap", task=task, target_reference=target, bottom=1, top=1, output=tmp_path / "out"
    )
    stacks = {"encoder.block 0", "encoder.block 3", "decoder.block 0", "decoder.block 2"}
    assert report.parts == dict.fromkeys(stacks, (1.0,))
    found = T5ForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    for name, value in found.items():
        stack, _, rest = name.partition(".block.")
        last = {"encoder": 3, "decoder": 2}.get(stack)
        swapped = bool(rest) and int(rest.split(".")[0]) in (0, last)
        assert torch.equal(value, (two if swapped else one)[name]), name


def test_all_blocks_leave_only_what_lies_outside(tmp_path):
    task, one = saved(tmp_path / "task", llama, 0)
    target, two = saved(tmp_path / "target", llama, 1)
    report = merge(
        method="layer-swap", task=task, target_reference=target, bottom=6, top=0, output=tmp_path / "out"
    )
    found = LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(x, (two if ".layers." in name else one)[name]) for name, x in found.items())
    assert set(report.kept.values()) == {"outside of blocks"}


@pytest.fixture
def models(tmp_path):
    task, target = (saved(tmp_path / name, llama, seed)[0] for seed, name in enumerate(("task", "target")))
    return {"method": "layer-swap", "task": task, "target_reference": target, "output": tmp_path / "out"}


def test_what_cannot_be_swapped_is_refused(models, tmp_path):
    wide, _ = saved(tmp_path / "wide", lambda: llama(intermediate_size=32), 2)
    with refused("wide/config.json", "intermediate_size is 32", "24", mend="from the same one"):
        merge(**{**models, "target_reference": wide})
    with refused("space", "whole checkpoints", mend="leave it out"):
        merge(**models, space="delta")
    with refused("export", "whole checkpoints", mend="leave it out"):
        merge(**models, export="serving")
    with refused("layer-swap", "nothing would be swapped", mend="bottom"):
        merge(**models, bottom=0, top=0)
    with refused("layer-swap", "7 blocks at the bottom", "the 6", mend="bottom"):
        merge(**models, bottom=7)
    with refused("target_reference", "missing", mend="target_reference"):
        merge(**{**models, "target_reference": None})
    shutil.copytree(models["target_reference"], tmp_path / "torn")
    (tmp_path / "torn/model.safetensors").unlink()
    with refused("torn/model.safetensors", "not there", mend="safetensors"):
        merge(**{**models, "target_reference": tmp_path / "torn"})
    index = tmp_path / "torn/model.safetensors.index.json"
    for content, found in (
        ("{}", "weight_map"),
        ('{"weight_map": {"x": "../task/model.safetensors"}}', "names weights"),
    ):
        index.write_text(content)
        with refused("torn/model.safetensors.index.json", found):
            merge(**{**models, "target_reference": tmp_path / "torn"})
    empty = tmp_path / "empty"
    empty.mkdir()
    with refused("empty", "no whole model", "config.json", mend="two models, or two adapters"):
        merge(**{**models, "target_reference": empty})
    assert not models["output"].exists()
    merge(**models)
    with refused("out", "exists"):
        merge(**models)


def test_the_command_swaps_blocks_of_models(models, cli):
    given = [
        f"--{name.replace('_', '-')}={models[name]}"
        for name in ("method", "task", "target_reference", "output")
    ]
    done = cli("merge", *given, "--bottom", "1")
    assert done.code == 0, done.err
    assert "tensors" in done.out
    assert "blocks 0-1" not in done.out
    assert "blocks 0: 1 of the target reference" in done.out
    check_refusal(cli("merge", *given), "out", "exists")
