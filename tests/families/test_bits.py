"""Backbones rounded to 4 bits: what is rounded, that it computes what it should, and that adapters train on it."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

import lingualift as ll
from builders import tiny
from builders.refusals import refused
from lingualift.attachment import answering, attach, detach
from lingualift.backbone.architectures import Head, outside_blocks
from lingualift.backbone.loading import load_backbone, weight_bytes
from lingualift.backbone.reference import find_backbone
from lingualift.config import Adapter, Backbone, Data, Scoring, Training
from lingualift.data.datasets import Examples
from lingualift.evaluation.runner import evaluate
from lingualift.tasks import TASKS, shipped_languages, shipped_rows
from lingualift.training.trainer import initialise, train

bnb = pytest.importorskip("bitsandbytes", reason="needs the extra `quantization`")
functional = pytest.importorskip("bitsandbytes.functional")

NAMES = ("llama", "gemma2", "t5", "nllb", "xlmr", "bert")
SETTINGS = Training(steps=3, batch_size=4, learning_rate=1e-2, max_length=256)


@pytest.fixture(scope="module")
def rounded(backbone):
    return lambda name, **more: backbone(name, quantization="nf4", **more)


def inputs(ref):
    torch.manual_seed(1)
    ids = torch.randint(5, 200, (3, 9))
    more = {"decoder_input_ids": ids[:, :5]} if ref.family == "encoder-decoder" else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def held(model):
    """Every number that a model holds, the scales of its 4-bit weights too."""
    found = {name: tensor.clone() for name, tensor in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            found.update({f"{name}.{key}": value.clone() for key, value in scales(module)})
    return found


def scales(module):
    state = module.weight.quant_state
    return (("absmax", state.absmax), ("nested", state.state2.absmax), ("offset", state.offset))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_of_the_blocks_are_rounded_and_no_others(rounded, name):
    heads = [Head(), Head("classes", 3), Head("span")] if name in tiny.ENCODERS else [Head()]
    for head in heads:
        model, _ = load_backbone(rounded(name).answering(head))
        four = {path for path, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
        left = {
            path
            for path, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and path not in four
        }
        assert {path for path in four if ".layer" not in path and ".block." not in path} == set()
        assert {
            path for path in left if (".layer" in path or ".block." in path) and not path.endswith(".wo")
        } == set()
        assert bool([path for path in left if path.endswith(".wo")]) == (name == "t5")
        assert all(model.get_submodule(path).weight.dtype == torch.uint8 for path in four)
        assert all(isinstance(model.get_submodule(path).weight, bnb.nn.Params4bit) for path in four)
        assert left == set(outside_blocks(model))
        assert not isinstance(model.get_input_embeddings(), bnb.nn.Embedding4bit)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_plain_model_with_rounded_weights(backbone, rounded, name):
    """Its weights are unpacked by bitsandbytes' own functions and put into the plain model."""
    ref = rounded(name)
    model, _ = load_backbone(ref)
    unpacked = {
        path: functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        for path, module in model.named_modules()
        if isinstance(module, bnb.nn.Linear4bit)
    }
    given = inputs(ref)
    with torch.inference_mode():
        first, again = (model(**given).logits for _ in range(2))
        plain, _ = load_backbone(backbone(name))
        exact = plain(**given).logits
        for path, weight in unpacked.items():
            assert weight.shape == plain.get_submodule(path).weight.shape
            plain.get_submodule(path).weight.data = weight
        expected = plain(**given).logits
    load_backbone.cache_clear()  # the plain one was changed
    assert torch.equal(first, again)
    assert torch.allclose(first, expected, atol=1e-4)
    assert not torch.allclose(first, exact, atol=1e-2)  # rounding is seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bytes_told_from_the_config_are_those_of_the_model(backbone, rounded, name, dtype):
    for get in (backbone, rounded):
        ref = get(name, dtype=dtype)
        model, _ = load_backbone(ref)
        real = sum(weight.nbytes for weight in model.parameters())
        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                state = module.weight.quant_state
                real += state.absmax.nbytes + state.state2.absmax.nbytes
        # each layer rounds its number of scales up
        layers = sum(isinstance(module, bnb.nn.Linear4bit) for module in model.modules())
        assert 0 <= real - weight_bytes(ref) <= 4 * layers


def learn(ref, task, examples, start, output, language):
    output.mkdir()
    train(
        ref, task, examples, SETTINGS, start=start, seed=0, output=output, work=output.parent / "work",
        language=language, segment_tokens=24,
    )  # fmt: skip
    return output


@pytest.mark.parametrize(
    ("name", "task", "dtype", "kind"),
    [
        pytest.param(*case, marks=() if kind == quick else pytest.mark.slow)
        for *about, quick in (
            ("llama", "nusax", "float32", "ia3"),
            ("llama", "mgsm", "bfloat16", "lora"),
            ("gemma2", "nusax", "float32", "lora"),
            ("t5", "nusax", "float32", "lora"),
            ("t5", "mgsm", "bfloat16", "ia3"),
            ("nllb", "nusax", "float32", "ia3"),
            ("xlmr", "nusax", "bfloat16", "ia3"),
            ("bert", "xquad", "float32", "lora"),
        )
        for kind in ("lora", "ia3")
        for case in [(*about, kind)]
    ],
)
def test_adapters_train_merge_and_score_on_rounded_weights(rounded, tmp_path, name, kind, task, dtype):
    ref = rounded(name, dtype=dtype)
    asked = type(TASKS[task])()
    asked.max_new_tokens = 4
    code = shipped_languages(task)[0]
    text = "".join(json.dumps(row) + "\n" for row in shipped_rows(task, code))
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    _, examples = Examples(task, Data(files=str(tmp_path / "rows.jsonl")), tmp_path).labelled(code, "train")
    start = tmp_path / "start"
    start.mkdir()
    initialise(ref, Adapter(type=kind, rank=2, alpha=4), 0, start)
    before = held(load_backbone(ref)[0])
    reference = TASKS[{"decoder": "causal-lm", "encoder": "masked-lm"}.get(ref.family, "prefix-lm")]
    other = learn(ref, reference, ["buku merah ada di atas meja"] * 6, start, tmp_path / "other", "id")
    english = learn(ref, reference, ["the red book is on the table"] * 6, start, tmp_path / "en", "en")
    assert same(held(load_backbone(ref)[0]), before)
    if ref.family != "encoder":
        evaluate(
            ref, None, asked, examples, Scoring()
        )  # scoring before training must not change the gradients
    headed = held(load_backbone(answering(ref, asked, examples))[0])
    adapter = learn(ref, asked, examples, start, tmp_path / "task", code)
    ll.merge(
        method="adamergex", task=adapter, target_reference=other, source_reference=english,
        weight=0.5, output=tmp_path / "merged",
    )  # fmt: skip
    found = evaluate(ref, tmp_path / "merged", asked, examples, Scoring())
    assert same(held(load_backbone(answering(ref, asked, examples))[0]), headed)
    load_backbone.cache_clear()
    again = evaluate(ref, tmp_path / "merged", asked, examples, Scoring())
    assert [one.prediction for one in again.predictions] == [one.prediction for one in found.predictions]
    trained, drawn, merged = (
        load_file(folder / "adapter_model.safetensors") for folder in (adapter, start, tmp_path / "merged")
    )
    assert {tensor.dtype for tensor in (*trained.values(), *merged.values())} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in (*trained.values(), *merged.values()))
    assert all(not torch.equal(trained[key], drawn[key]) for key in drawn)
    assert json.loads((adapter / "provenance.json").read_text())["backbone"]["quantization"] == "nf4"


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_gradients_are_those_of_the_plain_model_with_rounded_weights(backbone, rounded, tmp_path, kind):
    """After scoring too: bitsandbytes packs weights anew there, unless it is kept from it."""
    initialise(rounded("llama"), Adapter(type=kind, rank=2), 0, tmp_path)
    found = []
    for quantized in (True, False):
        ref = rounded("llama") if quantized else backbone("llama")
        model, _ = load_backbone(ref)
        given = inputs(ref)
        if quantized:
            with torch.inference_mode():
                model(**given)
            unpacked = {
                path: functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                for path, module in model.named_modules()
                if isinstance(module, bnb.nn.Linear4bit)
            }
        else:
            for path, weight in unpacked.items():
                model.get_submodule(path).weight.data = weight
        wrapped = attach(ref, tmp_path, trainable=True)
        wrapped(**given, labels=given["input_ids"]).loss.backward()
        found.append({key: value.grad for key, value in wrapped.named_parameters() if value.requires_grad})
        detach(wrapped)
    load_backbone.cache_clear()
    four, plain = found
    assert four.keys() == plain.keys()
    assert any(grad.abs().max() > 1e-3 for grad in plain.values())
    for key, grad in plain.items():
        assert torch.allclose(four[key], grad, atol=1e-5, rtol=1e-3), key


def test_steps_of_rounded_backbones_are_other_steps(backbone, rounded):
    plain, four = backbone("llama"), rounded("llama")
    assert plain.fingerprint == four.fingerprint
    assert plain.identity() != four.identity()
    assert "quantization" not in plain.identity()


def test_without_bitsandbytes_the_mend_is_told(backbone, monkeypatch):
    name = backbone("llama").source
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked: None if asked == "bitsandbytes" else find(asked)
    )
    with refused("backbone.quantization", "nf4", "bitsandbytes", mend="lingualift[quantization]"):
        find_backbone(Backbone(name=name, quantization="nf4"))
    find_backbone(Backbone(name=name))


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("name", tiny.quick(["llama", "t5"], "llama"))
def test_spread_over_one_processor_a_backbone_is_the_same(backbone, tmp_path, name, quantization):
    """What no machine without GPUs can show is how it is spread over several."""
    one = backbone(name, quantization=quantization)
    spread = backbone(name, quantization=quantization, device_map="auto")
    assert one.identity() == spread.identity()
    given = inputs(one)
    with torch.inference_mode():
        alone, auto = (load_backbone(ref)[0](**given).logits for ref in (one, spread))
    assert torch.equal(alone, auto)
    for ref, folder in ((one, "one"), (spread, "spread")):
        (tmp_path / folder).mkdir()
        initialise(ref, Adapter(rank=2), 0, tmp_path / folder)
        text = TASKS["causal-lm" if name == "llama" else "prefix-lm"]
        learn(
            ref,
            text,
            ["the red book is on the table"] * 6,
            tmp_path / folder,
            tmp_path / f"{folder}-en",
            "en",
        )
    first, second = (
        load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("one-en", "spread-en")
    )
    assert same(first, second)


def test_a_backbone_that_would_go_to_disk_is_refused(backbone, monkeypatch):
    from transformers.integrations import accelerate

    size = 40_000  # bytes of memory, of the 200 000 that it needs
    monkeypatch.setattr(accelerate, "get_max_memory", lambda *_: {"cpu": size})
    with refused("backbone '", "`device_map: auto`", "disk", mend="nf4"):
        load_backbone(backbone("llama", device_map="auto"))


def test_processes_that_train_together_do_not_each_spread_the_backbone(backbone, monkeypatch):
    name = backbone("llama").source
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused("backbone.device_map", "auto", "processes", mend="accelerate launch"):
        find_backbone(Backbone(name=name, device_map="auto"))
