"""Encoders without a head for words, as most sentence encoders are: what runs without one, and the one that is made."""

import json
import math
from dataclasses import replace

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from typer.testing import CliRunner

import lingualift as ll
from builders import shipped
from builders.refusals import refused
from lingualift.backbone.architectures import WORDS
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.backbone.words import HEAD_FILE, draw_words, own_weights
from lingualift.checking import check
from lingualift.cli import app
from lingualift.commands.lift import lift
from lingualift.config import Backbone, Scoring, Training
from lingualift.encoding.collator import Padding
from lingualift.errors import UserError
from lingualift.evaluation.perplexity import mean_nats
from lingualift.evaluation.runner import evaluate
from lingualift.pipeline import plan_of
from lingualift.pipeline.cost import estimate
from lingualift.provenance import read_json
from lingualift.tasks import TASKS
from lingualift.training.data import masked_loss
from lingualift.training.objectives import masked
from lingualift.training.words import expect, initialise_words, train_words

TEXTS = {
    "en": ["the red book is on the table in the kitchen, and nobody reads it"] * 6,
    "jv": ["buku abang ana ing meja pawon, lan ora ana sing maca"] * 6,
}
FEW = Training(steps=3, batch_size=2, learning_rate=1e-3)


def head_of(ref, folder, seed=0, settings=FEW, texts=TEXTS):
    folder.mkdir()
    train_words(
        ref, texts, settings, seed=seed, output=folder, work=folder.parent / "work", segment_tokens=24
    )
    return folder


def masked_model(ref):
    return load_backbone(ref.answering(WORDS))[0]


@pytest.mark.parametrize(
    ("name", "lacks"), [("e5", True), ("bert", False), ("xlmr", False), ("llama", False)]
)
def test_whether_a_checkpoint_has_a_head_for_words_is_told_before_loading(backbone, name, lacks, monkeypatch):
    ref = backbone(name)
    monkeypatch.setattr("lingualift.backbone.loading.load_model", None)
    assert ref.lacks_words == lacks


def test_a_head_for_other_things_is_no_head_for_words(backbone, tmp_path):
    """Next sentences, classes: checkpoints of BERT with any head but the one for words."""
    config = hf.AutoConfig.from_pretrained(backbone("bert").source)
    for kind in (hf.BertForNextSentencePrediction, hf.BertForSequenceClassification, hf.BertForPreTraining):
        kind(config).save_pretrained(tmp_path / kind.__name__)
        hf.AutoTokenizer.from_pretrained(backbone("bert").source).save_pretrained(tmp_path / kind.__name__)
        found = find_backbone(Backbone(name=str(tmp_path / kind.__name__)))
        assert found.lacks_words == (kind is not hf.BertForPreTraining)


def test_a_head_for_words_that_is_half_there_is_refused_as_before(backbone, tmp_path):
    model = hf.AutoModelForMaskedLM.from_pretrained(backbone("bert").source)
    state = {
        name: value for name, value in model.state_dict().items() if "transform.LayerNorm.bias" not in name
    }
    model.save_pretrained(tmp_path / "half", state_dict=state)
    hf.AutoTokenizer.from_pretrained(backbone("bert").source).save_pretrained(tmp_path / "half")
    with refused("/half", "cls.predictions.transform.LayerNorm.bias", "BertForMaskedLM"):
        load_backbone(find_backbone(Backbone(name=str(tmp_path / "half"))))


@pytest.mark.parametrize("task", ["nusax", "xcopa", "xquad"])
def test_tasks_with_a_head_of_their_own_need_no_head_for_words(backbone, tmp_path, task):
    """And plain peft gives the same logits, pooling layer and head from the adapter's folder."""
    ref = backbone("e5")
    chosen, examples = shipped.examples_of(tmp_path, task)
    start = shipped.drawn(ref, tmp_path / "start")
    adapter = shipped.learn(ref, chosen, examples, start, tmp_path / "one", Training(steps=2, batch_size=4))
    ours = evaluate(ref, adapter, chosen, examples, Scoring())
    assert len(ours.predictions) == len(examples)
    recorded = read_json(adapter / "provenance.json")
    if task == "xquad":
        assert recorded["drawn"] == ["qa_outputs"]
        return
    assert recorded["drawn"] == ["classifier", "pooler"]
    assert "pooling layer" in (adapter / "README.md").read_text(encoding="utf-8")
    outputs = {"nusax": 3, "xcopa": 1}[task]
    plain = hf.AutoModelForSequenceClassification.from_pretrained(ref.source, num_labels=outputs)
    theirs = peft.PeftModel.from_pretrained(plain, str(adapter)).eval()
    _, tokenizer = load_backbone(ref)
    for example, found in zip(examples, ours.predictions, strict=True):
        asked = [example.parts] if task == "nusax" else [
            (" ".join(example.parts), text) for text in example.options.values()
        ]  # fmt: skip
        with torch.inference_mode():
            logits = torch.cat([theirs(**tokenizer(*parts, return_tensors="pt")).logits for parts in asked])
        expected = logits.flatten().log_softmax(-1).tolist()
        assert list(found.scores.values()) == pytest.approx(expected, abs=1e-4)


def test_a_missing_pooling_layer_is_said_and_follows_from_the_seed(backbone, tmp_path, caplog):
    ref = backbone("e5")
    task, examples = shipped.examples_of(tmp_path, "nusax")
    start = shipped.drawn(ref, tmp_path / "start")
    poolers = []
    for place, seed in enumerate((0, 0, 1)):
        load_backbone.cache_clear()
        torch.manual_seed(place)  # of which the draw is independent
        folder = shipped.learn(ref, task, examples, start, tmp_path / str(place), seed=seed)
        found = load_file(folder / "adapter_model.safetensors")
        poolers.append(next(value for key, value in found.items() if key.endswith("pooler.dense.weight")))
    assert "backbone has no pooling layer: it is drawn from the seed" in caplog.text
    assert torch.equal(poolers[0], poolers[1])
    assert not torch.allclose(poolers[0], poolers[2], atol=1e-3)


def test_words_are_refused_without_a_head(backbone, tmp_path):
    """transformers would draw one at random, another one every time."""
    ref = backbone("e5")
    start = shipped.drawn(ref, tmp_path / "start")
    with refused("backbone '", "no head for words", "cls.predictions.bias", mend="train-head"):
        shipped.learn(ref, TASKS["masked-lm"], TEXTS["en"], start, tmp_path / "one")
    with refused("backbone '", "no head for words", "cls.predictions.bias", mend="train-head"):
        mean_nats(ref, *load_backbone(ref), TEXTS["en"], 24, "en")


def test_a_head_is_drawn_from_its_seed_alone(backbone, tmp_path):
    ref = backbone("e5")
    drawn = []
    for place, seed in enumerate((0, 0, 1)):
        load_backbone.cache_clear()
        (tmp_path / str(place)).mkdir()
        initialise_words(ref, seed, tmp_path / str(place))
        drawn.append(load_file(tmp_path / str(place) / HEAD_FILE))
    weight = "cls.predictions.transform.dense.weight"
    assert torch.equal(drawn[0][weight], drawn[1][weight])
    assert not torch.equal(drawn[0][weight], drawn[2][weight])
    assert drawn[0][weight].std() == pytest.approx(0.1, rel=0.1)  # `initializer_range`


def test_the_bias_is_the_logarithm_of_frequencies(backbone):
    model = masked_model(backbone("e5"))
    draw_words(model, 0)
    expect(model, [[5, 5, 5, 7]])
    bias = own_weights(model)["cls.predictions.bias"]
    shares = bias.double().softmax(0)
    size = model.config.vocab_size
    assert float(shares[5]) == pytest.approx(4 / (size + 4), rel=1e-5)
    assert float(shares[7]) == pytest.approx(2 / (size + 4), rel=1e-5)
    assert float(shares[9]) == pytest.approx(1 / (size + 4), rel=1e-5)


@pytest.fixture(scope="module")
def trained(backbone, tmp_path_factory):
    ref = backbone("e5")
    return ref, head_of(ref, tmp_path_factory.mktemp("head") / "head")


def test_only_the_head_is_trained_and_it_is_tied_to_the_frozen_embeddings(trained):
    ref, folder = trained
    body = load_file(f"{ref.source}/model.safetensors")
    model = masked_model(ref.with_words(folder))
    after = {name.removeprefix("bert."): value for name, value in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in body.items())
    assert model.cls.predictions.decoder.weight is model.get_input_embeddings().weight
    written = load_file(folder / HEAD_FILE)
    assert set(written) == set(own_weights(model))
    assert all(torch.equal(model.get_parameter(name), value) for name, value in written.items())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.fresh_weights == set()


def test_a_head_is_the_same_again_and_after_a_stop(trained, tmp_path, monkeypatch):
    ref, folder = trained
    first = load_file(folder / HEAD_FILE)
    again = load_file(head_of(ref, tmp_path / "again") / HEAD_FILE)
    assert all(torch.equal(first[name], again[name]) for name in first)
    saving = FEW.model_copy(update={"checkpoint_steps": 1})

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Stop

    (tmp_path / "stopped").mkdir()
    arguments = {"seed": 0, "work": tmp_path / "work", "segment_tokens": 24}
    with pytest.raises(Stop):
        train_words(ref, TEXTS, saving, output=tmp_path / "stopped", progress=stop, **arguments)
    kept = list((tmp_path / "work").glob("checkpoint-*/model.safetensors"))
    assert kept
    assert set(load_file(kept[0])) == set(first)  # no embeddings, no body
    seen = []
    train_words(
        ref, TEXTS, saving, output=tmp_path / "stopped", progress=lambda *at: seen.append(at), **arguments
    )
    assert seen[0][0] > 1
    resumed = load_file(tmp_path / "stopped" / HEAD_FILE)
    assert all(torch.allclose(first[name], resumed[name], atol=1e-6) for name in first)


def test_a_head_learns(backbone, tmp_path):
    """More of its text than how often each token occurs."""
    ref = backbone("e5")
    nats = []
    for steps, rate in ((1, 1e-9), (60, 3e-2)):
        settings = Training(steps=steps, batch_size=4, learning_rate=rate)
        speaking = ref.with_words(head_of(ref, tmp_path / str(steps), settings=settings))
        nats.append(mean_nats(speaking, *load_backbone(speaking), TEXTS["en"], 24, "en"))
    assert nats[1] < nats[0] - 0.5


def test_references_read_by_the_frozen_head_and_hold_nothing_of_it(trained, tmp_path):
    ref, folder = trained
    speaking = ref.with_words(folder)
    start = shipped.drawn(ref, tmp_path / "start")
    before = (folder / HEAD_FILE).read_bytes()
    made = shipped.learn(speaking, TASKS["masked-lm"], TEXTS["en"], start, tmp_path / "en", FEW)
    assert (folder / HEAD_FILE).read_bytes() == before
    drawn, after = (load_file(one / "adapter_model.safetensors") for one in (start, made))
    assert drawn.keys() == after.keys()
    assert not any("cls" in name for name in after)
    config = read_json(made / "adapter_config.json")
    assert not config.get("modules_to_save")
    told = read_json(made / "provenance.json")["words_head"]
    assert told["languages"] == ["en", "jv"]
    assert told["weights_sha256"] == read_json(folder / "provenance.json")["weights_sha256"]
    assert "trained by lingualift on en, jv" in (made / "README.md").read_text(encoding="utf-8")


def test_a_head_is_trained_in_float32_for_a_bfloat16_backbone(trained, tmp_path):
    """A step at the learning rate is lost in bfloat16; references read by what is left of it there."""
    ref, folder = trained
    narrow = replace(ref, dtype="bfloat16")
    first, second = (load_file(one / HEAD_FILE) for one in (folder, head_of(narrow, tmp_path / "head")))
    assert all(torch.equal(first[name], second[name]) for name in first)
    speaking = narrow.with_words(folder)
    assert masked_model(speaking).cls.predictions.transform.dense.weight.dtype == torch.bfloat16
    start = shipped.drawn(speaking, tmp_path / "start")
    assert shipped.learn(speaking, TASKS["masked-lm"], TEXTS["en"], start, tmp_path / "en", FEW)


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
CONFIGS = {
    "xlmr": lambda size: hf.XLMRobertaConfig(vocab_size=size, max_position_embeddings=66, pad_token_id=1, **SMALL),
    "mpnet": lambda size: hf.MPNetConfig(vocab_size=size, pad_token_id=1, **SMALL),
    "distilbert": lambda size: hf.DistilBertConfig(vocab_size=size, dim=32, hidden_dim=64, n_layers=2, n_heads=4),
    "modernbert": lambda size: hf.ModernBertConfig(
        vocab_size=size, pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2, **SMALL
    ),
    "untied": lambda size: hf.BertConfig(vocab_size=size, tie_word_embeddings=False, **SMALL),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_bodies_of_other_classes_get_a_head_too(backbone, tmp_path, kind):
    """As sentence encoders are saved; heads of several modules, and a config that would not tie."""
    tokenizer = hf.AutoTokenizer.from_pretrained(backbone("xlmr").source)
    hf.AutoModel.from_config(CONFIGS[kind](len(tokenizer))).save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    ref = find_backbone(Backbone(name=str(tmp_path / "body")))
    assert ref.lacks_words
    speaking = ref.with_words(head_of(ref, tmp_path / "head"))
    model = masked_model(speaking)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert math.isfinite(mean_nats(speaking, model, tokenizer, TEXTS["jv"], 24, "jv"))


def test_a_damaged_head_or_one_of_another_backbone_is_refused(trained, backbone, tmp_path):
    ref, folder = trained
    with refused(f"/{tmp_path.name}", HEAD_FILE, mend="train-head"):
        ref.with_words(tmp_path)
    with refused("/head", "made for the backbone", mend="train-head"):
        replace(ref, fingerprint="other").with_words(folder)
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in (HEAD_FILE, "provenance.json"):
        (copied / name).write_bytes((folder / name).read_bytes())
    (copied / HEAD_FILE).write_bytes((folder / HEAD_FILE).read_bytes()[:-4] + b"\0\0\0\1")
    with refused(f"/copied/{HEAD_FILE}", "altered", mend="train-head"):
        ref.with_words(copied)
    with refused("backbone '", "of its own", mend="as it is"):
        head_of(backbone("bert"), tmp_path / "none")


@pytest.mark.slow  # a tiny run trains one below
def test_an_experiment_trains_one_head_for_all_references(backbone, tmp_path):
    ref = backbone("e5")
    path = shipped.write_experiment(tmp_path, "e", ref.source, "nusax", seeds=[0, 1])
    planned, store = plan_of(path, output=tmp_path / "out")
    made = [step for step in planned.steps if step.kind == "words-head"]
    assert [step.label() for step in made] == [
        f"train the head for words that backbone lacks on en, id, jv, seed {seed}" for seed in (0, 1)
    ]
    references = [step for step in planned.steps if getattr(step, "words", None)]
    assert len(references) == 6
    found = estimate(planned, store, calibrate=True)
    assert math.isfinite(found.seconds)
    finished = ll.run(path, output=tmp_path / "out")
    rows = json.loads((finished.folder / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"source-ft", "arithmetic", "adamergex", "target-ft"}
    log = (finished.folder / "log.jsonl").read_text(encoding="utf-8")
    assert "has no head for words: one is trained on en, id, jv" in log
    assert "train the head for words" in (finished.folder / "report.html").read_text(encoding="utf-8")
    assert not ll.run(path, output=tmp_path / "out").trained


def test_without_text_no_head_is_trained(backbone, tmp_path):
    def kinds(**changes):
        path = shipped.write_experiment(tmp_path, "e", backbone("e5").source, "nusax", **changes)
        return {step.kind: step for step in plan_of(path, output=tmp_path / "out")[0].steps}

    assert "words-head" not in kinds(methods=["source-ft"])
    labelled = {"task": "nusax", "data": {"files": "{language}/train.jsonl"}}
    assert "words-head" not in kinds(reference=labelled)
    assert kinds(methods=["arithmetic"])["words-head"].languages == ("id", "jv")
    path = shipped.write_experiment(
        tmp_path, "e", backbone("e5").source, "nusax", methods=["source-ft", "arithmetic"]
    )
    (tmp_path / "jv/text.txt").unlink()
    plan, _ = plan_of(path, output=tmp_path / "out")
    (head,) = (step for step in plan.steps if step.kind == "words-head")
    assert (head.languages, [one.language for one in plan.empty]) == (("id",), ["jv"])
    path = shipped.write_experiment(tmp_path, "e", backbone("bert").source, "nusax")
    assert "words-head" not in {step.kind for step in plan_of(path, output=tmp_path / "out")[0].steps}


def test_a_tiny_run_trains_a_head_too(backbone, tmp_path):
    path = shipped.write_experiment(tmp_path, "e", backbone("e5").source, "nusax", methods=["adamergex"])
    finished = ll.run(path, output=tmp_path / "tiny", tiny=True)
    steps = json.loads((finished.folder / "steps.json").read_text())["steps"]
    assert "words-head" in {step["kind"] for step in steps}
    assert "tiny-random-BertModel" in finished.notes[0]


@pytest.mark.slow  # looks at a whole experiment
def test_check_has_no_perplexity_and_says_why(backbone, tmp_path):
    look = check(shipped.write_experiment(tmp_path, "e", backbone("e5").source, "nusax"))
    assert all(one.nats is None for one in look.languages)
    assert all(one.to_dict()["perplexity"] is None for one in look.languages)
    (note,) = [one for one in look.findings if "no head for words" in one.found]
    assert note.grade == "note"
    assert "the plan trains one" in note.found
    found = CliRunner().invoke(app, ["check", str(tmp_path / "e.yaml")])
    assert "no head for words" in " ".join(found.output.split())


def test_lift_trains_a_head_of_its_own(backbone, tmp_path):
    ref = backbone("e5")
    shipped.write_experiment(tmp_path, "e", ref.source, "nusax")
    task, examples = shipped.examples_of(tmp_path, "nusax")
    start = shipped.drawn(ref, tmp_path / "start")
    adapter = shipped.learn(ref, task, examples, start, tmp_path / "task")
    lifted = lift(
        backbone=ref.source, adapter=adapter, to="jv", text=tmp_path / "jv" / "text.txt",
        source_text=tmp_path / "en" / "text.txt", output=tmp_path / "lifted", steps=2, max_length=64,
        batch_size=2, learning_rate=1e-2, workers=1,
    )  # fmt: skip
    (perplexity,) = lifted.measures
    assert math.isfinite(perplexity.after)
    assert any("no head for words: one was trained on both texts" in note for note in lifted.notes)
    before, after = (load_file(one / "adapter_model.safetensors") for one in (adapter, tmp_path / "lifted"))
    assert not any("cls" in name for name in after)
    assert all(torch.equal(before[name], after[name]) for name in before if "classifier" in name)


def test_two_references_of_the_command_line_share_a_head(backbone, tmp_path):
    ref = backbone("e5")
    shipped.write_experiment(tmp_path, "e", ref.source, "nusax")
    runner = CliRunner()
    shared = [
        "--backbone",
        ref.source,
        "--data",
        str(tmp_path / "{language}" / "text.txt"),
        "--max-length",
        "24",
    ]

    def told(*arguments):
        return runner.invoke(app, [*map(str, arguments), *shared, "--steps", "2", "--batch-size", "2"])

    train = ["train", "--task", "masked-lm", "--rank", "2"]
    refused = told(*train, "--language", "en", "--output", tmp_path / "none")
    assert isinstance(refused.exception, UserError)
    assert "lingualift train-head" in str(refused.exception)
    head = tmp_path / "head"
    assert told("train-head", "--language", "en", "--language", "jv", "--output", head).exit_code == 0
    for code in ("en", "jv"):
        made = told(*train, "--language", code, "--words-head", head, "--output", tmp_path / f"ref-{code}")
        assert made.exit_code == 0, made.output
    one, other = (
        read_json(tmp_path / f"ref-{code}" / "provenance.json")["words_head"] for code in ("en", "jv")
    )
    assert one == other
    assert one["languages"] == ["en", "jv"]
    idle = runner.invoke(
        app, ["train", "--backbone", ref.source, "--task", "nusax", "--language", "en", "--data",
              str(tmp_path / "{language}" / "train.jsonl"), "--words-head", str(head), "--output", str(tmp_path / "x")],
    )  # fmt: skip
    assert "the task learns no words" in str(idle.exception)


def test_a_large_vocabulary_costs_no_optimizer_state_and_no_logits_of_all_tokens(
    backbone, tmp_path, monkeypatch
):
    """250,037 words: the trained numbers are a bias and the transform, and the head sees masked tokens alone."""
    ref = backbone("e5-words")
    seen = []
    model = masked_model(ref)
    model.cls.register_forward_hook(lambda _, __, logits: seen.append(tuple(logits.shape)))
    folder = head_of(ref, tmp_path / "head", settings=Training(steps=1, batch_size=2))
    assert all(len(shape) == 2 and shape[0] <= 20 for shape in seen)
    numbers = sum(value.numel() for value in load_file(folder / HEAD_FILE).values())
    assert numbers < 250_037 + 2 * 64 * 64


@pytest.mark.parametrize("name", ["bert", "xlmr"])
def test_masked_tokens_in_parts_have_the_loss_and_the_gradient_of_all_at_once(backbone, name, monkeypatch):
    """Against transformers' own loss, over logits of every token."""
    ref = backbone(name)
    model, tokenizer = load_backbone(ref)
    rows = masked(tokenizer, TEXTS["en"], 24, 0)
    batch = Padding(tokenizer.pad_token_id)([rows[place] for place in range(4)])
    states = model.get_input_embeddings().weight.requires_grad_(True)
    try:
        expected = model(**batch).loss
        (slope,) = torch.autograd.grad(expected, states)
        for at_once in (2**26, 3 * model.config.vocab_size, 1):
            monkeypatch.setattr("lingualift.backbone.products.LOGITS", at_once)
            found = masked_loss(model, dict(batch), None)
            torch.testing.assert_close(found, expected)
            with torch.inference_mode():
                torch.testing.assert_close(masked_loss(model, dict(batch), None), expected.detach())
            torch.testing.assert_close(torch.autograd.grad(found, states)[0], slope, rtol=1e-4, atol=1e-6)
    finally:
        states.requires_grad_(False)
