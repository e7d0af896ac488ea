"""Scoring with an adapter on the resident backbone, and without."""

import json
import shutil
from dataclasses import replace

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from builders.refusals import refused
from builders.worlds import build_bpe_backbone
from lingualift import merge
from lingualift.attachment import check_adapter
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Adapter, Backbone, Scoring
from lingualift.evaluation.runner import adapted, evaluate
from lingualift.tasks import Example, get_task
from lingualift.training.trainer import initialise

IDS = torch.tensor([[1, 5, 9, 30, 31, 7]])
TASK = get_task("mini-sentiment")
ROWS = [
    {"id": str(i), "text": text, "label": "positive"}
    for i, text in enumerate(["the book", "so good", "so bad"])
]
EXAMPLES = [replace(TASK.example(row, "en"), gold=(row["label"],)) for row in ROWS]


def adapter(ref, folder, *, seed=0, **settings):
    """An adapter that changes what the backbone says."""
    folder.mkdir()
    initialise(ref, Adapter(rank=2, **settings), 0, folder)
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    torch.manual_seed(seed)
    tensors = {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "provenance.json").unlink()
    return folder


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize("name", ["mini", "bpe"])
def test_an_adapter_leaves_the_backbone_as_it_was(request, tmp_path, name, kind):
    ref = request.getfixturevalue(name)
    model, _ = load_backbone(ref)
    before, state = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(key, type(value)) for key, value in model.named_modules()]
    folder = adapter(ref, tmp_path / "adapter", type=kind)
    for _ in range(2):
        with adapted(ref, folder) as (wrapped, _):
            assert not torch.equal(logits(wrapped), before)
        assert torch.equal(logits(model), before)
    assert [(key, type(value)) for key, value in model.named_modules()] == modules
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert load_backbone(ref)[0] is model


def test_an_adapter_is_taken_off_when_the_block_fails(mini, tmp_path):
    before = logits(load_backbone(mini)[0])
    with pytest.raises(KeyError), adapted(mini, adapter(mini, tmp_path / "adapter")):
        raise KeyError
    assert torch.equal(logits(load_backbone(mini)[0]), before)


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_a_merged_adapter_gives_plain_peft_the_logits_it_gives_us(mini, tmp_path, space):
    folders = [adapter(mini, tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    out = tmp_path / "merged"
    roles = dict(zip(("task", "target_reference", "source_reference"), folders, strict=True))
    merge(method="adamergex", weight=0.7, space=space, output=out, **roles)
    with adapted(mini, out) as (wrapped, _):
        ours = logits(wrapped)
    plain = AutoModelForCausalLM.from_pretrained(mini.source)
    assert torch.equal(ours, logits(peft.PeftModel.from_pretrained(plain, out)))
    assert not torch.equal(ours, logits(load_backbone(mini)[0]))


def test_the_result_says_all_that_was_answered(mini):
    found = evaluate(mini, None, TASK, EXAMPLES, Scoring())
    assert [row["id"] for row in found.rows()] == ["0", "1", "2"]
    for row in found.rows():
        assert row["prediction"] == max(row["scores"], key=row["scores"].get)
        assert row["correct"] == (row["prediction"] == "positive")
        assert row["text"] is None
    share = sum(row["correct"] for row in found.rows()) / 3
    summary = json.loads(json.dumps(found.summary()))
    assert summary["scores"]["accuracy"]["score"] == pytest.approx(100 * share)
    assert list(summary["scores"]) == ["accuracy", "macro_f1"]
    assert {key: summary[key] for key in ("n", "malformed", "truncated")} == {
        "n": 3,
        "malformed": 0,
        "truncated": 0,
    }


def test_of_equally_likely_choices_the_first_wins(mini):
    twins = [Example("0", "x", ("b",), {"b": "good", "a": "good"})]
    assert evaluate(mini, None, TASK, twins, Scoring()).predictions[0].prediction == "b"


def test_one_item_has_no_standard_error(mini):
    found = evaluate(mini, None, TASK, EXAMPLES[:1], Scoring())
    assert found.scores["accuracy"]["stderr"] is None


def test_an_adapter_of_another_backbone_is_refused_by_its_record(mini, bpe, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    initialise(bpe, Adapter(), 0, folder)
    check_adapter(bpe, folder)
    with refused("/adapter", "fingerprint", "'miniworld'"):
        check_adapter(mini, folder)


@pytest.mark.parametrize("other", [{"width": 64}, {"layers": 3}, {"layers": 1}])
def test_an_adapter_that_does_not_fit_is_refused_without_a_record_too(bpe, tmp_path, other):
    theirs = find_backbone(Backbone(name=str(build_bpe_backbone(tmp_path / "other", **other))))
    folder = adapter(theirs, tmp_path / "adapter", modules=("q_proj", "down_proj"))
    with refused("/adapter", "does not fit"), adapted(bpe, folder):
        pytest.fail("the adapter was taken")
    before = logits(AutoModelForCausalLM.from_pretrained(bpe.source))
    assert torch.equal(logits(load_backbone(bpe)[0]), before)


@pytest.mark.parametrize(
    ("damage", "found", "mend"),
    [
        ("missing tensor", "layers.1.self_attn.v_proj.lora_B", "another backbone or adapter"),
        ("no weights", "adapter_model.safetensors", "restore"),
        ("no config", "adapter_config.json", "check the path"),
    ],
)
def test_a_damaged_adapter_is_refused(mini, tmp_path, damage, found, mend):
    folder = adapter(mini, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    if damage == "missing tensor":
        from safetensors.torch import load_file, save_file

        tensors = load_file(file)
        tensors.popitem()
        save_file(tensors, file)
    else:
        (file if damage == "no weights" else folder / "adapter_config.json").unlink()
    with refused("/adapter", found, mend=mend), adapted(mini, folder):
        pytest.fail("the adapter was taken")


def test_a_backbone_is_known_by_its_content_and_not_by_its_place(bpe, bpe_folder, tmp_path):
    copy = shutil.copytree(bpe_folder, tmp_path / "copy")
    found = find_backbone(Backbone(name="copy"), tmp_path)
    assert found.identity() == bpe.identity()
    assert found.source != bpe.source
    config = json.loads((copy / "config.json").read_text())
    other = shutil.copytree(bpe_folder, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert find_backbone(Backbone(name=str(other))).identity() != bpe.identity()
    assert find_backbone(Backbone(name="copy", dtype="bfloat16"), tmp_path).identity() != bpe.identity()


@pytest.mark.parametrize("name", ["none", "./none", "/none/at/all", "a/b/c", "~/none-at-all"])
def test_a_backbone_that_is_not_there_is_refused(tmp_path, name):
    with refused(f"backbone '{name}'", "is no folder", "a hub id"):
        find_backbone(Backbone(name=name), tmp_path)


def test_a_hub_id_that_cannot_be_fetched_is_refused(tmp_path):
    with refused("backbone 'nobody/nothing'", "no folder", "cannot be fetched", mend="network"):
        find_backbone(Backbone(name="nobody/nothing"), tmp_path)


@pytest.mark.parametrize(
    ("missing", "found", "mend"),
    [("config.json", "no config.json", "path"), ("model.safetensors", "no weights", "with safetensors")],
)
def test_a_folder_that_is_no_model_is_refused(bpe_folder, tmp_path, missing, found, mend):
    folder = shutil.copytree(bpe_folder, tmp_path / "model")
    (folder / missing).unlink()
    with refused("/model", found, mend=mend):
        find_backbone(Backbone(name=str(folder)))


def test_a_backbone_that_cannot_be_loaded_is_refused(bpe_folder, tmp_path):
    folder = shutil.copytree(bpe_folder, tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')
    with refused("/model", "no-such-model", "a language model"):
        load_backbone(find_backbone(Backbone(name=str(folder))))


ACUTE = "caf\u00e9"
"""é as one character."""


@pytest.mark.parametrize(("form", "right"), [("none", False), ("NFC", True)])
@pytest.mark.parametrize(("gold", "written"), [(ACUTE, "cafe\u0301"), ("cafe\u0301", ACUTE)])
def test_answers_are_compared_as_written_or_composed(mini, monkeypatch, form, right, gold, written):
    """The official scorers compare characters; é typed in two ways is worth nothing to them."""

    def answer(model, tokenizer, rows, scoring, longest, progress, tell):
        tell(0, written)
        return [written], 0

    monkeypatch.setattr("lingualift.evaluation.runner.generate_answers", answer)
    task = get_task("mini-qa")
    rows = [Example("1", "where ?", (gold,), {}, "en")]
    found = evaluate(mini, None, task, rows, Scoring(unicode_normalization=form))
    assert found.predictions[0].correct is right
    assert found.predictions[0].text == written
    assert (found.predictions[0].prediction in found.predictions[0].gold) is right
    for name in task.metrics:
        assert found.scores[name]["score"] == (100 if right else 0)
