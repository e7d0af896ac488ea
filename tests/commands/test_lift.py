"""Lifting an adapter that was trained elsewhere: the formula, what is kept, what is shared, what is refused."""

import json
import math
import re
import runpy
import statistics
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import lingualift as ll
from builders.adapter_folders import updates
from builders.refusals import refused
from lingualift.adapters import open_adapter
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.commands.lift import HELD_OUT, _read_texts
from lingualift.config import Backbone, Data, Scoring
from lingualift.data.rows import load_examples
from lingualift.evaluation.runner import evaluate
from lingualift.miniworld import BACKBONE
from lingualift.tasks import get_task

FAST = {"backbone": "miniworld", "steps": 2, "batch_size": 4, "max_length": 32, "workers": 1}
ANGLED = {
    "target_modules": r".*\.(q_proj|v_proj|down_proj)",
    "layers_to_transform": None,
    "use_rslora": True,
    "rank_pattern": {"v_proj": 4},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
    "lora_dropout": 0.1,
}


def lifted(world, adapter, output, to="sw", **options):
    return ll.lift(
        **{
            **FAST,
            "adapter": adapter,
            "to": to,
            "text": world / f"{to}.txt",
            "source_text": world / "en.txt",
            "output": output,
            **options,
        }
    )


def references(folder):
    """The two references of a lifted adapter, from its provenance: role -> folder."""
    inputs = json.loads((folder / "provenance.json").read_text())["inputs"]
    return {entry["role"]: Path(entry["path"]) for entry in inputs}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("lora", {}),
        ("angled", ANGLED),
        ("one-layer", {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}),
        ("gaussian", {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    ],
)
def test_lifting_lora_adds_the_difference_of_two_references_like_it(world, users, tmp_path, name, config):
    adapter = users(name, **config)
    found = lifted(world, adapter, tmp_path / "out", weight=0.7)
    sides = references(tmp_path / "out")
    own, target, source = (
        open_adapter(sides[role]) for role in ("task", "target_reference", "source_reference")
    )
    assert target.modules.keys() == source.modules.keys() == own.modules.keys()
    for module, mine in own.modules.items():
        theirs = target.modules[module]
        assert (theirs.rank, theirs.scaling, theirs.shapes) == (mine.rank, mine.scaling, mine.shapes)
    assert target.config["lora_dropout"] == own.config["lora_dropout"]
    deltas = [updates(path) for path in (*sides.values(), tmp_path / "out")]
    for module in own.modules:
        task, plus, minus, result = (delta[module] for delta in deltas)
        np.testing.assert_allclose(result, task + 0.7 * (plus - minus), rtol=1e-5, atol=1e-7)
        assert not np.array_equal(plus, minus)
    assert found.rank == 3 * max(module.rank for module in own.modules.values())


def test_the_references_share_a_draw_that_is_not_the_adapters(world, users, tmp_path):
    lifted(world, users(), tmp_path / "out")
    sides = references(tmp_path / "out")
    first = [
        json.loads((sides[f"{role}_reference"] / "provenance.json").read_text())
        for role in ("target", "source")
    ]
    assert first[0]["initialisation"] == first[1]["initialisation"]
    assert [facts["language"] for facts in first] == ["sw", "en"]
    assert first[0]["steps"] == first[1]["steps"] == 2


def test_lifting_ia3_multiplies(world, users, tmp_path):
    names = ["k_proj", "v_proj", "down_proj"]
    adapter = users("ia3", peft_type="IA3", target_modules=names, feedforward_modules=["down_proj"])
    check_lift(world, adapter, tmp_path, "rank", "is 4 for a ia3", rank=4)
    found = lifted(world, adapter, tmp_path / "out", learning_rate=0.05)
    assert (found.kind, found.rank) == ("ia3", 0)
    task, target, source, result = (
        load_file(path / "adapter_model.safetensors")
        for path in (*references(tmp_path / "out").values(), tmp_path / "out")
    )
    assert result.keys() == task.keys() == target.keys()
    for name, own in task.items():
        moved = own * (1 + 0.5 * (target[name] / source[name] - 1))
        torch.testing.assert_close(result[name], moved, rtol=1e-5, atol=1e-7)


def test_weight_zero_gives_the_adapter_back(world, users, tmp_path):
    found = lifted(world, users(), tmp_path / "out", weight=0.0)
    files = [load_file(path / "adapter_model.safetensors") for path in (users(), tmp_path / "out")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
    assert found.measures[0].before == found.measures[0].after


def test_whole_values_stay_the_adapters_and_no_reference_trains_them(world, users, tmp_path):
    adapter = users("whole", target_modules=["q_proj"], modules_to_save=["model.norm"])
    found = lifted(world, adapter, tmp_path / "out")
    whole = [name for name in load_file(adapter / "adapter_model.safetensors") if "norm" in name]
    assert whole
    own, result = (load_file(path / "adapter_model.safetensors") for path in (adapter, tmp_path / "out"))
    assert all(torch.equal(own[name], result[name]) for name in whole)
    for role in ("target_reference", "source_reference"):
        assert all(
            ".lora_" in name
            for name in load_file(references(tmp_path / "out")[role] / "adapter_model.safetensors")
        )
    assert any("saved modules come from task" in note for note in found.notes)


def test_a_second_language_trains_one_reference_and_a_second_adapter_none(world, users, tmp_path):
    assert lifted(world, users(), tmp_path / "sw").trained == 2
    assert lifted(world, users(), tmp_path / "id", to="id").trained == 1
    again = users("again", lora_dropout=0.0)
    assert again != users()
    assert lifted(world, again, tmp_path / "again").trained == 0
    assert lifted(world, users("angled", **ANGLED), tmp_path / "other").trained == 2
    lines = [line for line in (world / "sw.txt").read_text().splitlines() if line]
    (tmp_path / "sw.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    assert lifted(world, users(), tmp_path / "jsonl", text=tmp_path / "sw.jsonl").trained == 0


def test_one_lift_done_twice_gives_the_same_bytes(world, users, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lifted(world, users(), tmp_path / name / "out")
    for file in ("adapter_model.safetensors", "adapter_config.json", "README.md", "lift.json"):
        assert (tmp_path / "one/out" / file).read_bytes() == (tmp_path / "two/out" / file).read_bytes()


def test_the_numbers_are_those_of_the_evaluation(world, users, tmp_path):
    template = str(world / "data/qa/{language}/{split}.jsonl")
    found = lifted(
        world, users(), tmp_path / "out", task="mini-qa", data=template, score_on=("sw", "en"), split="test"
    )
    ref, task = find_backbone(Backbone(name="miniworld")), get_task("mini-qa")
    for measure, code in zip(found.measures[1:], ("sw", "en"), strict=True):
        examples = load_examples(task, Data(files=template), code, "test", Path())
        sides = [evaluate(ref, path, task, examples, Scoring()) for path in (users(), tmp_path / "out")]
        scores = [side.scores["exact_match"]["score"] for side in sides]
        assert (measure.what, measure.language, measure.n) == ("exact_match", code, 16)
        assert [measure.before, measure.after] == scores
        right = [[item.correct for item in side.predictions] for side in sides]
        error = 100 * statistics.stdev(b - a for a, b in zip(*right, strict=True)) / math.sqrt(16)
        assert measure.low <= measure.change <= measure.high
        assert measure.high - measure.low == pytest.approx(2 * 1.96 * error, rel=0.25, abs=1e-9)
    numbers = json.loads((tmp_path / "out/lift.json").read_text())
    assert [entry["after"] for entry in numbers["measures"]] == [measure.after for measure in found.measures]
    assert "exact_match, sw (n 16, chance 0.0)" in (tmp_path / "out/README.md").read_text()


def test_perplexity_is_that_of_the_held_out_texts_each_on_its_own(world, users, tmp_path):
    found = lifted(world, users(), tmp_path / "out").measures[0]
    model, tokenizer = load_backbone(find_backbone(Backbone(name="miniworld")))
    texts = _read_texts(("sw", "en"), (world / "sw.txt", world / "en.txt"))["sw"].held_out
    assert found.n == len(texts)
    total = count = 0
    for text in texts:
        ids = torch.tensor(
            [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]]
        )
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert found.backbone == pytest.approx(math.exp(total / count), rel=1e-4)


def test_held_out_texts_are_never_trained_on(tmp_path):
    lines = [f"line {number}" for number in range(1000)]
    (tmp_path / "a.txt").write_text("\n".join([*lines, *lines[:7]]))
    (tmp_path / "b.txt").write_text("\n".join(f"mstari {number}" for number in range(30)))
    texts = _read_texts(("en", "sw"), (tmp_path / "a.txt", tmp_path / "b.txt"))
    for code, total, held, repeated in (("en", 1000, 50, 7), ("sw", 30, 6, 0)):
        item = texts[code]
        assert (len(item.train), len(item.held_out), item.repeated) == (total - held, held, repeated)
        assert not set(item.train) & set(item.held_out)
    assert HELD_OUT[0] == 20


def test_truncation_is_asked_for_and_reported(world, users, tmp_path):
    found = lifted(world, users(), tmp_path / "out", rank=8)
    assert found.rank == 8
    assert 0.5 < found.energy_kept < 1
    assert "rank 8" in found.lines()[0]


def test_the_card_loads_what_it_describes(world, users, tmp_path, monkeypatch):
    lifted(world, users(), tmp_path / "out", to="sw")
    card = (tmp_path / "out/README.md").read_text()
    front = ModelCard(card).data
    assert front.language == ["sw", "en"]
    assert {"lingualift", "lora", "cross-lingual-transfer"} <= set(front.tags)
    assert "@misc{zhao2024adamergex" in card
    assert str(tmp_path) not in card
    assert str(BACKBONE) not in card
    (tmp_path / "out/backbone").symlink_to(BACKBONE)
    monkeypatch.chdir(tmp_path / "out")
    Path("use.py").write_text(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1])
    made = runpy.run_path("use.py")
    ids = made["tokenizer"]("kitabu kiko jikoni", return_tensors="pt")
    ids.pop("token_type_ids", None)
    with torch.no_grad():
        logits = made["model"](**ids).logits
        base = transformers.AutoModelForCausalLM.from_pretrained(BACKBONE)
        expected = peft.PeftModel.from_pretrained(base, tmp_path / "out")(**ids).logits
        without = transformers.AutoModelForCausalLM.from_pretrained(BACKBONE)(**ids).logits
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, without)


def check_lift(world, adapter, folder, where, found, **options):
    with refused(where, found):
        lifted(world, adapter, folder / "out", **options)
    assert not folder.exists() or not [path for path in folder.iterdir() if path.name != "given"]


@pytest.mark.parametrize(
    ("name", "config", "found"),
    [
        ("dora", {"use_dora": True, "target_modules": ["q_proj"]}, "use_dora"),
        ("pissa", {"init_lora_weights": "pissa", "target_modules": ["q_proj"]}, "'pissa'"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_training(world, users, tmp_path, name, config, found):
    check_lift(world, users(name, **config), tmp_path, f"/{name}", found)


def changed(adapter, folder, **config):
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    own = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**own, **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}, "num_layers is None"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"r": 4}, "(4, n) and (m, 4)"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(world, users, tmp_path, config, found):
    check_lift(world, changed(users(), tmp_path / "given", **config), tmp_path, "/given", found)


def test_virtual_tokens_are_refused_with_the_way_round(world, tmp_path):
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(BACKBONE), config)
    model.save_pretrained(tmp_path / "given")
    check_lift(world, tmp_path / "given", tmp_path, "/given", "a prefix adapter")


def test_an_adapter_of_another_backbone_is_refused(world, users, tmp_path):
    narrow = transformers.LlamaConfig(
        vocab_size=643, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(narrow).save_pretrained(tmp_path / "given")
    tokenizer = transformers.AutoTokenizer.from_pretrained(BACKBONE)
    tokenizer.save_pretrained(tmp_path / "given")
    check_lift(world, users(), tmp_path, "/lora", "[8, 96]", backbone=str(tmp_path / "given"))


@pytest.mark.parametrize(
    ("options", "where", "found"),
    [
        ({"to": "eng", "text": "sw.txt"}, "to", "eng is the source language"),
        ({"to": "xx-nowhere", "text": "sw.txt"}, "'xx-nowhere'", "not known"),
        ({"text": "en.txt"}, "en.txt", "/en.txt"),
        ({"text": "empty.txt"}, "empty.txt", "at least one row"),
        ({"text": "blank.txt"}, "blank.txt", "no rows"),
        ({"text": "few.txt"}, "few.txt", "at least 5"),
        ({"text": "missing.txt"}, "missing.txt", "not there"),
        ({"task": "mini-qa"}, "task", "without data"),
        ({"data": "x.jsonl"}, "data", "without task"),
        ({"task": "causal-lm", "data": "sw.txt"}, "'causal-lm'", "no labels"),
        ({"rank": 0}, "rank", "(found 0)"),
        ({"rank": 10**9}, "rank", "16,384"),
        ({"weight": float("nan")}, "weight", "nan"),
        ({"weight": 1e308}, "weight", "1,000,000"),
        ({"batch_size": 2**63}, "batch", "1,048,576"),
        ({"seed": 2**40}, "seed", "4294967296"),
        ({"workers": True}, "workers", "True"),
    ],
)
def test_bad_requests_train_nothing(world, users, tmp_path, monkeypatch, options, where, found):
    monkeypatch.chdir(world)
    for name, content in (("empty", ""), ("blank", "\n \n"), ("few", "a\nb\nc\n")):
        (world / f"{name}.txt").write_text(content)
    check_lift(world, users(), tmp_path, where, found, **options)


def test_settings_that_cannot_be_are_refused(world, users, tmp_path):
    with refused("steps", "greater than 0"):
        lifted(world, users(), tmp_path / "out", steps=0)
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_refused(world, users, tmp_path):
    (tmp_path / "out").mkdir()
    with refused("/out", "exists already", mend="another output"):
        lifted(world, users(), tmp_path / "out")
    assert not (tmp_path / "lingualift-store").exists()


@pytest.mark.slow  # test_resume.py kills trainings and runs
def test_a_killed_lift_keeps_the_reference_that_was_finished(world, users, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--backbone", "miniworld", "--adapter", users(), "--to", "sw", "--text", world / "sw.txt"]
    options += ["--source-text", world / "en.txt", "--output", "out", "--workers", "1", "--steps", "30"]
    trained = tmp_path / "lingualift-store/adapter"
    cli("lift", *options, kill_when=lambda: any(trained.glob("[!.]*/step.json")))
    assert not (tmp_path / "out").exists()
    done = cli("lift", *options)
    assert done.code == 0, done.err
    assert "1 of 2 trained now" in done.out
    assert re.search(r"perplexity, sw \(n 12\)\s+\d", done.out)
    assert "next: lingualift predict --backbone miniworld --adapter out" in done.err
    assert (tmp_path / "out" / "lift.json").is_file()


@pytest.mark.parametrize(
    "config",
    [{"bias": "all"}, {"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [70, 71]}],
    ids=lambda config: next(iter(config)),
)
def test_what_an_adapter_writes_into_the_backbone_reaches_no_reference(world, users, tmp_path, config):
    """It is put on before the references are trained in one process, and they are stored for every adapter."""
    plain, heavy = users("plain"), users(next(iter(config)), **config)
    file = heavy / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: x if "lora_" in name else x + 0.5 for name, x in tensors.items()}, file)
    found = {}
    for name, adapter in (("plain", plain), ("heavy", heavy)):
        result = lifted(world, adapter, tmp_path / name, store=tmp_path / f"store-{name}")
        sides = references(tmp_path / name)
        weights = [
            load_file(sides[f"{role}_reference"] / "adapter_model.safetensors")
            for role in ("target", "source")
        ]
        found[name] = (result.measures[0].backbone, weights)
    assert found["heavy"][0] == found["plain"][0]
    for theirs, ours in zip(found["heavy"][1], found["plain"][1], strict=True):
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
