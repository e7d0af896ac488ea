"""`--tiny`: any experiment, end to end, on a random small backbone of the same class and the rows that ship."""

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import lingualift as ll
from builders import tiny
from builders.refusals import refused
from lingualift.backbone.loading import weight_bytes
from lingualift.backbone.reference import find_backbone
from lingualift.cli import app
from lingualift.config import Backbone, load_experiment
from lingualift.fusion.translator import find_translator
from lingualift.miniworld import write_data
from lingualift.pipeline import plan_of
from lingualift.pipeline.cost import estimate
from lingualift.pipeline.store import Store
from lingualift.pipeline.tiny import tiny_model
from lingualift.tasks import TASKS, shipped_languages, shipped_rows

ROOT = Path(__file__).parents[2]
SIX = {"llama": "lora", "gemma2": "ia3", "t5": "prefix", "mt5": "lora", "nllb": "ia3", "xlmr": "prefix"}


def write(folder, name, **changes):
    """An experiment file without any data beside it."""
    tasks = changes.pop("tasks", ["xnli"])
    raw = {
        "backbone": {"name": str(name)},
        "languages": {"source": "en", "targets": ["de", "th"]},
        "tasks": [
            {"task": task, "data": {"files": f"absent/{task}/{{language}}/{{split}}.jsonl"}}
            if isinstance(task, str)
            else task
            for task in tasks
        ],
        "reference": {"data": {"files": "absent/{language}.jsonl"}},
        "training": {"task": {"epochs": 3}, "reference": {"epochs": 3}},
        "methods": ["source-ft", "adamergex"],
        "weights": {"tune_on": "de"},
        "scoring": {"max_length": 1024},
        "workers": 1,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder / "mine.yaml"


# Configurations as large as published ones, and what is expected of the small ones.
PUBLISHED = {
    "llama": (
        lambda: hf.LlamaConfig(
            num_attention_heads=32, num_key_value_heads=8, rope_theta=5e5, max_position_embeddings=8192
        ),
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 8192},
    ),
    "gemma2": (
        lambda: hf.Gemma2Config(sliding_window=4096),
        {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        | {"sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}
        | {"attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 256},
    ),
    "qwen3": (
        lambda: hf.Qwen3Config(num_attention_heads=16, num_key_value_heads=8, hidden_size=1024),
        {"hidden_size": 64, "num_key_value_heads": 2, "head_dim": 8}
        | {"layer_types": ["full_attention", "full_attention"]},
    ),
    "t5": (
        hf.T5Config,
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4},
    ),
    "mt5": (
        hf.MT5Config,
        {"d_model": 64, "d_kv": 8, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
        | {"feed_forward_proj": "gated-gelu"},
    ),
    "nllb": (
        lambda: hf.M2M100Config(decoder_start_token_id=2),
        {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
        | {"decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
    ),
    "xlmr": (
        hf.XLMRobertaConfig,
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_backbone_is_made_small_and_keeps_its_class_its_structure_and_its_tokenizer(tmp_path, name):
    make, expected = PUBLISHED[name]
    tokenizer, config = tiny.tokenizer_of(name), make()
    config.vocab_size, config.architectures = len(tokenizer), ["As saved"]
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    kind = hf.AutoModelForMaskedLM if name in tiny.ENCODERS else hf.AutoModel
    with torch.device("meta"):  # of its weights, the names alone are read
        names = kind.from_config(config).state_dict()
    save_file({key: torch.zeros(0) for key in names}, tmp_path / "model.safetensors")
    ref = find_backbone(Backbone(name=str(tmp_path), dtype="bfloat16"))
    model, found = tiny_model(ref)
    assert type(model.config) is type(config)
    assert {key: getattr(model.config, key) for key in expected} == expected
    assert model.config.vocab_size == len(tokenizer)
    assert str(model.dtype) == "torch.float32"
    sample = [row for task in ("xnli", "xlsum") for row in shipped_rows(task, "en")]
    texts = [text for row in sample for text in row.values() if isinstance(text, str)]
    assert found(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert found.get_vocab() == tokenizer.get_vocab()
    again, _ = tiny_model(ref)
    assert all(a.equal(b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    changed = {key for key, value in config.to_dict().items() if model.config.to_dict()[key] != value}
    others = {"num_hidden_layers", "max_window_layers", "dtype", "architectures", "transformers_version"}
    assert changed <= {*expected, *others, "intermediate_size", "num_attention_heads", "head_dim"}


def test_a_model_that_cannot_be_made_small_is_told(tmp_path):
    hf.LlamaConfig().save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with refused(f"/{tmp_path.name}", "no small model"):
        tiny_model(find_backbone(Backbone(name=str(tmp_path))))


@pytest.mark.slow  # recipes and the example run the same code below
@pytest.mark.parametrize(("name", "kind"), SIX.items())
def test_an_experiment_with_every_task_that_suits_runs_to_its_report(backbone, tmp_path, name, kind):
    encoder = name in tiny.ENCODERS
    tasks = [
        task
        for task in TASKS
        if shipped_languages(task) and not (encoder and TASKS[task].encoder_head is None)
    ]
    methods = ["source-ft", "target-ft", "adamergex"] if encoder else ["vanilla", "source-ft", "adamergex"]
    ref = backbone(name)
    changes = {"tasks": tasks, "methods": methods, "adapter": {"type": kind}}
    if encoder:  # whose positions a prefix takes some of
        lengths = {"epochs": 3, "max_length": 256}
        changes |= {"training": {"task": lengths, "reference": lengths}, "scoring": {"max_length": 256}}
        changes["reference"] = {"data": {"files": "absent/{language}.jsonl"}, "segment_tokens": 256}
    path = write(tmp_path, ref.source, **changes)
    finished = ll.run(path, output=tmp_path / "run", tiny=True)
    assert {(row["task"], row["language"]) for row in finished.rows} == {
        (task, language) for task in tasks for language in ("en", "de", "th")
    }
    model = finished.rows[0]["backbone"]
    architecture = json.loads((tmp_path / "run" / model / "config.json").read_text())["architectures"]
    theirs = json.loads((Path(ref.source) / "config.json").read_text())["architectures"]
    assert architecture == theirs
    assert re.fullmatch(rf"tiny-random-{theirs[0]}-[0-9a-f]{{8}}", model)
    assert "scores mean nothing" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "scores mean nothing" in finished.notes[0]
    assert {row["n"] for row in finished.rows} == {8}
    assert {row["weight"] for row in finished.rows if row["method"] == "adamergex"} <= {0.0, 1.5}


@pytest.mark.slow  # the example that fuses runs the same code below
@pytest.mark.parametrize("name", ["llama", "t5", "xlmr"])
def test_an_experiment_that_fuses_runs_to_its_report(backbone, tmp_path, name):
    """Classes, pairs of texts, choices and spans, with and without ids; a source encoder beside the backbone."""
    tasks = ["nusax", "xnli", "xcopa", "tydiqa-goldp"]
    absent = {"files": "absent/{language}/{split}.jsonl"}
    entries = [
        {"task": task, "data": absent, "translated": {"into_targets": absent, "into_source": absent}}
        for task in tasks
    ]
    methods = ["source-ft", "translate-test", "translate-train", "input-fusion"]
    methods += ["x-mixup", "flare", "flare-mt"]
    lengths = {"epochs": 3, "max_length": 256}
    path = write(
        tmp_path,
        backbone(name).source,
        tasks=entries,
        languages={"source": "en", "targets": ["id"]},
        methods=methods,
        training={"task": lengths, "reference": lengths},
        scoring={"max_length": 256},
        reference=None,
        weights={},
        flare={"source_encoder": backbone("nllb").source},
        adapter={"rank": 2},
    )
    finished = ll.run(path, output=tmp_path / "run", tiny=True)
    assert {(row["task"], row["method"]) for row in finished.rows if row["language"] == "id"} == {
        (task, method) for task in tasks for method in methods
    } - {("tydiqa-goldp", "translate-test")}  # for want of a model that translates its answers back
    assert {row["n"] for row in finished.rows} == {8}
    assert any("M2M100" in note for note in finished.notes)
    planned, _ = plan_of(finished.folder / "experiment.yaml", output=tmp_path / "again")
    told = estimate(planned, Store(tmp_path / "empty"), calibrate=False).costs
    memory = {step.what(): cost.memory for step, cost in told.items()}
    encoder = find_translator(planned.experiment.flare.source_encoder, base=finished.folder).ref
    more = memory["train nusax by flare-mt add_relu"] - memory["train nusax by flare add_relu"]
    assert more == weight_bytes(encoder) > 0


def test_a_language_that_the_source_encoder_cannot_tag_is_told_before_anything_runs(backbone, tmp_path):
    absent = {"files": "absent/{language}/{split}.jsonl"}
    path = write(
        tmp_path,
        backbone("llama").source,
        tasks=[{"task": "xnli", "data": absent, "translated": {"into_targets": absent}}],
        methods=["flare-mt"],
        languages={"source": "en", "targets": ["el"]},
        reference=None,
        weights={},
        flare={"source_encoder": backbone("nllb").source},
    )
    with refused("language 'el'", "no tag", "the source encoder", mend="without a source encoder"):
        ll.run(path, output=tmp_path / "run", tiny=True)
    assert not list((tmp_path / "run").rglob("adapter_model.safetensors"))


@pytest.mark.parametrize("name", ["llama", "xlmr"])
def test_a_text_that_the_source_encoder_has_no_positions_for_is_told_before_anything_runs(
    backbone, tmp_path, name
):
    shutil.copytree(backbone("nllb").source, tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 12}))
    for code in ("en", "id"):
        for split in ("train", "test"):
            file = tmp_path / f"{code}.{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in shipped_rows("nusax", code)))
    rows = {"files": "{language}.{split}.jsonl"}
    path = write(
        tmp_path,
        backbone(name).source,
        tasks=[{"task": "nusax", "data": rows, "translated": {"into_targets": rows}}],
        methods=["flare-mt"],
        languages={"source": "en", "targets": ["id"]},
        reference=None,
        weights={},
        scoring={"max_length": 256},
        flare={"source_encoder": str(tmp_path / "short")},
    )
    with refused("example '", " tokens for the source encoder", "at most 12", mend="shorten"):
        plan_of(path, output=tmp_path / "run")


@pytest.mark.slow  # two runs
def test_references_of_languages_with_the_same_rows_differ(backbone, tmp_path):
    """Else every merge for such a language would change nothing."""
    changes = {"languages": {"source": "sw", "targets": ["de", "th", "el", "hi"]}}
    path = write(
        tmp_path,
        backbone("llama").source,
        **changes,
        reference={"task": "xnli", "data": {"files": "absent/{language}.jsonl"}},
        tasks=["xcopa"],
        methods=[{"method": "reference-only"}, {"method": "adamergex", "space": "delta", "weight": 0.5}],
        adapter={"rank": 64},
    )
    folder = ll.run(path, output=tmp_path / "run", tiny=True).folder
    kept = [
        load_file(one / "adapter_model.safetensors")
        for one in (folder / "adapters").glob("*.reference-only.*")
    ]
    assert len(kept) == 3  # a tiny run takes three targets
    key = next(key for key in kept[0] if "lora_B" in key)
    assert len({tuple(one[key].flatten().tolist()) for one in kept}) == 3


def test_the_command_says_what_it_did_and_what_comes_next(backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LINGUALIFT_STORE", str(tmp_path / "real"))
    write(
        tmp_path,
        backbone("llama").source,
        backbone={"name": backbone("llama").source, "quantization": "nf4", "device_map": "auto"},
        tasks=["mgsm"],
        methods=["source-ft"],
        seeds=[3, 4],
    )
    asked = []
    importlib.import_module("peft")  # whose import makes transformers load itself anew
    transformers = importlib.import_module("transformers")

    class Told(transformers.GenerationConfig):
        def __init__(self, **options):
            asked.append(options.get("max_new_tokens"))
            super().__init__(**options)

    monkeypatch.setattr(transformers, "GenerationConfig", Told)
    result = CliRunner().invoke(app, ["run", "mine.yaml", "--tiny"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert set(asked) - {None} == {8}
    assert result.stderr.splitlines()[-1] == "next: lingualift check mine.yaml"
    assert "de stands in for th" in result.stdout
    assert "left out, so not proven: backbone.quantization, backbone.device_map" in result.stdout
    assert sorted(path.name for path in Path("runs").iterdir()) == ["mine-tiny"]
    assert (Path("runs") / "mine-tiny" / "store").is_dir()
    assert not Path("real").exists()
    results = json.loads(Path("runs/mine-tiny/results.json").read_text())
    assert {row["seed"] for row in results["rows"]} == {3}
    # what it leaves is an experiment of its own
    again = ll.run("runs/mine-tiny/experiment.yaml", output="runs/mine-tiny", store="runs/mine-tiny/store")
    assert again.trained == 0


def test_what_the_real_run_refuses_is_refused(backbone, tmp_path):
    """Answers of 512 tokens have no room in 512, although tiny ones are short."""
    path = write(tmp_path, backbone("llama").source, tasks=["mgsm"], scoring={"max_length": 512})
    with refused("scoring.max_length", "512, and answers", "up to 512 tokens", mend="1024"):
        ll.run(path, output=tmp_path / "run", tiny=True)
    mended = write(tmp_path, backbone("llama").source, tasks=["mgsm"], methods=["vanilla"])
    assert ll.run(mended, output=tmp_path / "run", tiny=True).rows  # no --replace is needed


@pytest.mark.slow  # two runs
def test_a_real_run_is_not_replaced(backbone, tmp_path):
    write_data(tmp_path / "data")
    own = {"task": "mini-qa", "data": {"files": "data/qa/{language}/{split}.jsonl"}}
    languages = {"source": "en", "targets": ["fr"]}
    path = write(
        tmp_path,
        "miniworld",
        tasks=[{**own, "data": {**own["data"], "max_rows": {"test": 8}}}],
        methods=["vanilla"],
        languages=languages,
        weights={},
        workers=1,
    )
    ll.run(path, output=tmp_path / "run")
    before = (tmp_path / "run" / "results.json").read_bytes()
    with refused("/run", "another experiment", mend="--replace"):
        ll.run(path, output=tmp_path / "run", tiny=True)
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    assert not list((tmp_path / "run").glob("tiny-random-*"))


def rename(path, columns):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    text = "".join(json.dumps({columns.get(k, k): v for k, v in row.items()}) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def test_tasks_without_shipped_rows_use_the_first_rows_of_their_files(tmp_path):
    """By the experiment's own names of columns and splits; text of a language without shipped rows too."""
    write_data(tmp_path / "data")
    for language in ("en", "ht"):
        folder = tmp_path / "data" / "sentiment" / language
        (folder / "validation.jsonl").rename(folder / "valid.jsonl")
        for file in folder.iterdir():
            rename(file, {"text": "sentence", "id": "number"})
    own = (ROOT / "examples" / "topics.py").read_text()
    own = own.replace(
        'register("topics")', 'register("tiny-topics")'
    )  # another test registers the example itself
    (tmp_path / "topics.py").write_text(own)
    for split in ("train", "test"):
        for language in ("en", "ht"):
            file = tmp_path / "topics" / language / f"{split}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            topics = ("sports", "politics", "health") * 4
            lines = (f"{n},a text of {language} {n},{topic}\n" for n, topic in enumerate(topics))
            file.write_text("id,text,topic\n" + "".join(lines), encoding="utf-8")
    mapped = {"splits": {"validation": "valid"}, "columns": {"text": "sentence", "id": "number"}}
    path = write(
        tmp_path,
        "miniworld",
        languages={"source": "en", "targets": ["ht"]},
        tasks=[
            {
                "task": "mini-sentiment",
                "data": {
                    "files": "data/sentiment/{language}/{split}.jsonl",
                    "aligned_on": "id",
                    "max_rows": {"test": 20},
                    **mapped,
                },
            },
            {"task": "topics.py", "data": {"files": "topics/{language}/{split}.csv"}},
        ],
        reference={"data": {"files": "data/reference/{language}/train.jsonl"}},
        methods=["source-ft", {"method": "adamergex", "weight": 1.0}],
        weights={},
    )
    finished = ll.run(path, output=tmp_path / "run", tiny=True)
    assert {(row["task"], row["n"]) for row in finished.rows} == {("mini-sentiment", 8), ("topics", 8)}
    assert "text: that of the rows that ship; the first 32 texts of yours in ht" in finished.notes
    test = tmp_path / "data" / "sentiment" / "ht" / "test.jsonl"
    theirs = {json.loads(line)["number"] for line in test.read_text(encoding="utf-8").splitlines()}
    told = (tmp_path / "run" / "predictions" / "mini-sentiment.ht.source-ft.seed0.jsonl").read_text()
    assert {json.loads(line)["id"] for line in told.splitlines()} <= theirs
    (tmp_path / "topics" / "ht" / "test.csv").unlink()
    with refused("topics/ht/test.csv", "not there", "'ht'", mend="train.csv"):
        ll.run(path, output=tmp_path / "other", tiny=True)
    assert not (tmp_path / "other").exists()


def test_the_example_that_fuses_runs(backbone, tmp_path):
    overrides = [f"backbone.name={backbone('llama').source}", "languages.targets=[jav]", "workers=1"]
    path = ROOT / "examples" / "flare_nusax.yaml"
    finished = ll.run(path, output=tmp_path / "run", overrides=overrides, tiny=True)
    found = {(row["method"], row["variant"]) for row in finished.rows if row["language"] == "jav"}
    assert len(found) == len(load_experiment(path).methods)
    assert ("x-mixup", "") in found
    assert not (ROOT / "examples" / "runs").exists()


def test_x_mixup_in_a_block_that_a_small_backbone_lacks(backbone, tmp_path):
    """Of the whole backbone a block that is not there is told; one that only the small one lacks is lowered."""
    absent = {"files": "absent/{language}/{split}.jsonl"}
    translated = {"into_targets": absent, "into_source": absent}
    given = {"tasks": [{"task": "nusax", "data": absent, "translated": translated}], "reference": None}
    given |= {"languages": {"source": "en", "targets": ["id"]}, "weights": {}, "adapter": {"rank": 2}}
    entry = [{"method": "x-mixup", "layer": layer} for layer in (1, 2)]
    path = write(tmp_path, backbone("t5").source, methods=entry, **given)  # whose encoder has three blocks
    finished = ll.run(path, output=tmp_path / "run", tiny=True)
    assert {row["variant"] for row in finished.rows} == {"layer=1"}
    assert any("blocks that methods name are among the first 2" in note for note in finished.notes)
    entry[1]["layer"] = 3
    path = write(tmp_path, backbone("t5").source, methods=entry, **given)
    with refused("layer", "is 3", "0 to 2, a block", mend="one of them"):
        ll.run(path, output=tmp_path / "other", tiny=True)


def test_states_that_cannot_be_kept_are_told_before_anything_runs(backbone, tmp_path):
    absent = {"files": "absent/{language}/{split}.jsonl"}
    translated = {"into_targets": absent, "into_source": absent}
    given = {"tasks": [{"task": "xnli", "data": absent, "translated": translated}], "reference": None}
    given |= {"languages": {"source": "en", "targets": ["id"]}, "weights": {}, "adapter": {"rank": 2}}
    given |= {"methods": ["flare"], "flare": {"cache_sources": True}, "scoring": {"max_length": 256}}
    given |= {"training": {"task": {"epochs": 3, "max_length": 256}}}
    with refused("flare.cache_sources", "no token types", mend="leave it out"):
        ll.run(write(tmp_path, backbone("bert").source, **given), output=tmp_path / "run", tiny=True)
    assert not (tmp_path / "run" / "store").exists()
