"""CONTRIBUTING.md: the table has all of the package, and each of the four walks runs as it stands there."""

import ast
import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import lingualift as ll
import lingualift.fusion.functions as fusions
import lingualift.merging.methods as rules
import lingualift.pipeline.methods as methods
import lingualift.tasks as tasks
from lingualift.cli import app
from lingualift.config import METHOD_SETTINGS, SumMethod
from lingualift.miniworld import BACKBONE
from lingualift.miniworld.data import sentiment_rows
from lingualift.pipeline.steps import MergeRecipe
from lingualift.tasks.prompts import prompts_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = Path(ll.__file__).parent
ROWS = [
    re.findall(r"`([\w./]+)`", line.split("|")[1])
    for line in PAGE.split("| what it answers |\n")[1].split("\n\n")[0].splitlines()[1:]
]


def section(heading):
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def block(heading, language="python"):
    (found,) = re.findall(rf"```{language}\n(.*?)```", section(heading), re.DOTALL)
    return found


def command(*line):
    result = CliRunner().invoke(app, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def add_to(module, code):
    """Register what the code registers, as if it stood at the end of a module."""
    exec(compile(code, "CONTRIBUTING.md", "exec"), dict(vars(module)))


@pytest.fixture(autouse=True)
def _registries():
    """What a test registers is gone after it."""
    registries = (methods.METHODS, METHOD_SETTINGS, rules.METHODS, fusions.FUSIONS, tasks.TASKS)
    kept = [(kind, dict(kind)) for kind in registries]
    yield
    for kind, entries in kept:
        kind.clear()
        kind.update(entries)


def test_the_table_has_every_folder_and_file_of_the_package_once():
    there = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    found = [
        f"{path.name}/" for path in there if list(path.glob("*.*"))
    ]  # a folder that moved leaves its cache
    found += [path.name for path in there if path.suffix == ".py"]
    assert sorted(name for row in ROWS for name in row) == sorted(found)


def test_imports_name_what_stands_in_the_same_row_or_above_or_in_the_last():
    place = {name.removesuffix("/").removesuffix(".py"): at for at, row in enumerate(ROWS) for name in row}
    last = len(ROWS) - 1
    for path in PACKAGE.rglob("*.py"):
        own = place[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lingualift."):
                named = place[node.module.split(".")[1]]
                assert named == last or named <= own < last, f"{path.name} imports {node.module}"


def test_every_folder_and_file_that_the_page_names_is_there():
    named = {name for name in re.findall(r"`([\w./-]+(?:\.(?:py|md|yaml)|/))`", PAGE) if "sib200" not in name}
    tested = {path.name for path in (ROOT / "tests").rglob("*.py")}
    missing = [
        name for name in sorted(named - tested) if not ((ROOT / name).exists() or (PACKAGE / name).exists())
    ]
    assert missing == []
    shown = {"backbones/", "benchmarks/", "docs/", "examples/", "study/", "tests/"}
    assert {f"{path.name}/" for path in ROOT.iterdir() if path.is_dir()} & shown <= named


def test_the_experiment_files_page_has_a_row_for_every_method():
    text = (
        (ROOT / "docs/experiment.md")
        .read_text(encoding="utf-8")
        .split("\n## Methods\n")[1]
        .split("| key |")[0]
    )
    cells = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([\w-]+)`", cells)) == set(methods.METHODS)


def test_a_transfer_method_is_added(tmp_path):
    """With translations that are the target's own rows it learns what `target-ft` learns, bit for bit."""
    for language in ("en", "sw"):
        for split, count in (("train", 24), ("test", 12)):
            rows = sentiment_rows(language, split, count)
            write(tmp_path / "data" / language / f"{split}.jsonl", rows)
            write(tmp_path / "translated" / language / f"{split}.jsonl", rows)
    raw = {
        "backbone": {"name": "miniworld"},
        "languages": {"source": "en", "targets": ["sw"]},
        "tasks": [
            {
                "task": "mini-sentiment",
                "data": {"files": "data/{language}/{split}.jsonl"},
                "translated": {"into_targets": {"files": "translated/{language}/{split}.jsonl"}},
            }
        ],
        "training": {"task": {"steps": 2, "batch_size": 8, "learning_rate": 1e-2}},
        "methods": ["source-ft", "target-ft", "translate-train", "translate-only"],
        "workers": 1,
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    add_to(methods, block("Add a transfer method"))
    assert "translate-only" in command("methods")
    run = ll.run(tmp_path / "e.yaml", output=tmp_path / "run")
    assert "translate-only" in (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert {row["method"] for row in run.rows} == set(raw["methods"])

    def learnt(method):
        folder = tmp_path / "run" / "adapters" / f"mini-sentiment.sw.{method}.seed0"
        return (folder / "adapter_model.safetensors").read_bytes()

    assert learnt("translate-only") == learnt("target-ft")
    assert learnt("translate-only") not in (learnt("translate-train"), learnt("source-ft"))


def test_the_commands_to_try_it_run(inside):
    add_to(methods, block("Add a transfer method"))
    add_to(fusions, block("Add a fusion function"))
    text = section("Add a transfer method").replace("\\\n", "")
    made, run = (shlex.split(line) for line in re.findall(r"^    lingualift (.*)$", text, re.MULTILINE))
    Path(made[-1]).write_text(CliRunner().invoke(app, made[:-2]).stdout, encoding="utf-8")
    shown = command(*run)
    assert "translate-only" in shown
    assert "flare gated" in shown


def test_a_merge_rule_is_added(inside):
    """Each element of the result is x_a or x_b / 2, whichever is farther from zero."""
    torch.manual_seed(0)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "a-backbone",
    }
    given = {}
    for name in ("a", "b"):
        Path(name).mkdir()
        place = "base_model.model.layers.0.q_proj.lora"
        given[name] = {f"{place}_A.weight": torch.randn(2, 6), f"{place}_B.weight": torch.randn(5, 2)}
        save_file(given[name], f"{name}/adapter_model.safetensors")
        Path(name, "adapter_config.json").write_text(json.dumps(config))
    add_to(rules, block("Add a merge rule"))
    (line,) = re.findall(r"`lingualift (merge .*?)`", section("Add a merge rule"))
    command(*shlex.split(line))
    MergeRecipe("magmax", SumMethod(method="mine")).merge({"task": "a", "target": "b"}, 0.5, Path("again"))
    for folder in ("c", "again"):
        merged = load_file(f"{folder}/adapter_model.safetensors")
        assert set(merged) == set(given["a"])
        for key, found in merged.items():
            a, b = given["a"][key], given["b"][key] / 2
            larger = a.abs() > b.abs()
            assert 0 < larger.sum() < larger.numel()
            assert torch.equal(found, torch.where(larger, a, b))


def test_a_fusion_function_is_added():
    """It is z·S + (1 − z)·T, and (S + T) / 2 where its matrices are zero; training reaches these."""
    add_to(fusions, block("Add a fusion function"))
    entry = fusions.FUSIONS["gated"]
    torch.manual_seed(0)
    source, target, ws, wt = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(4, 4), torch.randn(4, 4)
    own = target[:, 2:]
    z = 1 / (1 + torch.exp(-(source @ ws.T + own @ wt.T)))
    found = entry.fuse(source, target, None, {"source": ws, "target": wt})
    assert torch.allclose(found, z * source + (1 - z) * own, atol=1e-6)

    given = {
        "input_ids": torch.randint(5, 50, (2, 6)),
        "attention_mask": torch.ones(2, 6, dtype=torch.long),
        "source_input_ids": torch.randint(5, 50, (2, 7)),
        "source_attention_mask": torch.ones(2, 7, dtype=torch.long),
    }
    models = {}
    for name, alpha in (("gated", 8), ("add", 4)):
        backbone = transformers.AutoModelForCausalLM.from_pretrained(BACKBONE)
        settings = {"r": 4, "lora_alpha": alpha, "target_modules": ["q_proj", "v_proj"], "fusion": name}
        models[name] = ll.flare(backbone, ll.FlareConfig(**settings)).eval()
        torch.manual_seed(1)
        for key, parameter in models[name].named_parameters():
            if "lora_" in key:
                shared = "lora_fusion" not in key
                parameter.data = torch.randn_like(parameter) / 10 if shared else torch.zeros_like(parameter)
    given["labels"] = given["input_ids"].clone()
    given["labels"][:, :4] = -100  # the prompt
    out, half = (models[name](**given) for name in ("gated", "add"))
    assert torch.allclose(out.logits, half.logits, atol=1e-5)
    with models["gated"].fusion_off():
        assert not torch.allclose(out.logits, models["gated"](**given).logits, atol=1e-2)
    out.loss.backward()
    reached = {
        key.split(".")[-1]: bool(parameter.grad.any())
        for key, parameter in models["gated"].named_parameters()
        if "lora_fusion" in key
    }
    assert reached == {"source": True, "target": True}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder in which tasks, prompts and rows stand beside those of the package."""
    for name in ("prompts", "tasks/rows"):
        shutil.copytree(PACKAGE / name, tmp_path / "package" / name)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "package" / "tasks")])
    for name in ("prompts", "shipped"):
        module = importlib.import_module(f"lingualift.tasks.{name}")
        monkeypatch.setattr(module, "resources", SimpleNamespace(files=lambda _: tmp_path / "package"))
    yield tmp_path / "package"
    prompts_of.cache_clear()
    sys.modules.pop("lingualift.tasks.sib200", None)
    vars(tasks).pop("sib200", None)


def test_a_task_is_added(inside, package):
    heading = "Add a task"
    (package / "tasks" / "sib200.py").write_text(block(heading), encoding="utf-8")
    (package / "prompts" / "sib200.yaml").write_text(block(heading, "yaml"), encoding="utf-8")
    task = importlib.import_module("lingualift.tasks.sib200").SIB200()
    (shown,) = re.findall(r'`(\{"text".*?\})`', section(heading))
    rows = [json.loads(shown)]
    rows += [{"text": f"This is {label} .", "category": label} for label in task.labels]
    write(package / "tasks" / "rows" / "sib200" / "en.jsonl", rows)
    write(Path("data/en/test.jsonl"), rows)
    assert tasks.shipped_rows("sib200", "en") == rows
    assert "afrobench" in command("tasks").split("sib200")[1].split("https")[0]

    asked = task.example({"id": "1", **rows[0]}, "en").prompt
    assert asked.startswith("Given the categories science/technology, travel, ")
    assert asked.endswith("the text: 'The match was won late.' belong to:")
    data = "data/{language}/{split}.jsonl"
    found = ll.evaluate(backbone="miniworld", task="sib200", language="en", data=data)
    predicted = [one.prediction for one in found.predictions]
    assert set(predicted) <= set(task.labels)
    right = sum(one == row["category"] for one, row in zip(predicted, rows, strict=True))
    assert found.scores["accuracy"]["score"] == pytest.approx(100 * right / 8)
    assert found.scores["accuracy"]["chance"] == pytest.approx(100 / 7)

    made, run = (shlex.split(line) for line in re.findall(r"`lingualift (\w+ .*?)`", section(heading)))
    Path(made[-1]).write_text(CliRunner().invoke(app, made[:-2]).stdout, encoding="utf-8")
    assert "sib200: accuracy in percent, n = 8" in command(*run)
