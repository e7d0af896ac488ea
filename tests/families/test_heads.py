"""Heads of encoders: whose weights they have, what they answer to, and what is refused instead of answered wrongly."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import lingualift as ll
from builders.refusals import refused
from builders.shipped import drawn, examples_of, learn
from lingualift.backbone.architectures import Head
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone, Scoring, Training
from lingualift.evaluation.runner import evaluate
from lingualift.evaluation.writing import rank_written
from lingualift.tasks import TASKS, Example, Task, shipped_languages, shipped_rows


@pytest.mark.parametrize("task", ["nusax", "xcopa", "xquad"])
def test_without_an_adapter_there_is_no_head_to_score(backbone, tmp_path, task):
    """transformers would draw one at random, another one every time."""
    chosen, examples = examples_of(tmp_path, task)
    with refused("backbone '", "an encoder", "head", mend="--adapter"):
        evaluate(backbone("xlmr"), None, chosen, examples, Scoring())
    rows = [dict(row) for row in shipped_rows(task, shipped_languages(task)[0])]
    with refused("backbone '", "an encoder", "head", mend="--adapter"):
        ll.predict(backbone=backbone("xlmr").source, adapter=None, task=task, language="en", rows=rows)


def test_training_further_keeps_the_trained_head(backbone, tmp_path):
    task, examples = examples_of(tmp_path, "nusax")
    ref = backbone("xlmr")
    first = learn(ref, task, examples, drawn(ref, tmp_path / "start"), tmp_path / "one")
    further = learn(ref, task, examples, first, tmp_path / "two", seed=7)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, further))
    heads = [key for key in before if ".classifier." in key]
    assert heads
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in heads)


def test_a_pooling_layer_that_was_pretrained_is_kept_and_the_rest_drawn(backbone, tmp_path):
    ref = backbone("bert")
    config = hf.AutoConfig.from_pretrained(ref.source)
    whole = hf.BertForPreTraining(config)
    torch.nn.init.constant_(whole.bert.pooler.dense.weight, 0.5)
    whole.save_pretrained(tmp_path / "bert")
    hf.AutoTokenizer.from_pretrained(ref.source).save_pretrained(tmp_path / "bert")
    ref = find_backbone(Backbone(name=str(tmp_path / "bert")))
    task, examples = examples_of(tmp_path, "nusax")
    start = drawn(ref, tmp_path / "start")
    one, other = (
        load_file(
            learn(ref, task, examples, start, tmp_path / str(seed), seed=seed) / "adapter_model.safetensors"
        )
        for seed in (0, 1)
    )
    pooler = next(key for key in one if key.endswith("pooler.dense.weight"))
    assert torch.allclose(one[pooler], torch.tensor(0.5), atol=1e-6)
    fresh = next(key for key in one if key.endswith("classifier.weight"))
    assert not torch.allclose(one[fresh], other[fresh], atol=1e-3)


class Several(Task):
    columns = ("id",)
    gold_column = "label"
    metrics = ("accuracy",)
    source = "https://example.org"


class Compared(Several):
    encoder_head = "choices"


@pytest.mark.parametrize(
    ("task", "rows", "facts"),
    [
        (Several(), ["yes no", "no yes"], ("no, yes", "yes, no", "order")),
        (Several(), ["yes no", "w z"], ("w, z", "yes, no", "order")),
        (Compared(), ["a b", "a b c"], ("a, b, c", "as many choices")),
    ],
)
def test_rows_whose_classes_differ_are_refused(backbone, tmp_path, task, rows, facts):
    """Else they would be trained as classes by their place, or shared out between rows."""
    kind = "options" if isinstance(task, Compared) else "choices"
    examples = [
        Example(str(number), "what?", (row[0],), parts=("what?",), **{kind: {one: one for one in row}})
        for number, row in enumerate(map(str.split, rows))
    ]
    ref = backbone("xlmr")
    start = drawn(ref, tmp_path / "start")
    with refused("example '1'", *facts, mend="mend the row"):
        learn(ref, task, examples, start, tmp_path / "out")
    with refused("example '1'", *facts, mend="mend the row"):
        evaluate(ref, start, task, examples, Scoring())


def test_a_head_for_other_classes_of_the_same_number_is_refused(backbone, tmp_path):
    task, examples = examples_of(tmp_path, "nusax")
    ref = backbone("xlmr")
    adapter = learn(ref, task, examples, drawn(ref, tmp_path / "start"), tmp_path / "one")
    ll.merge(method="arithmetic", adapters=[(adapter, 1.0), (adapter, 1.0)], output=tmp_path / "merged")
    other, asked = examples_of(tmp_path, "xnli")
    for folder in (adapter, tmp_path / "merged"):
        assert evaluate(ref, folder, task, examples, Scoring()).predictions
        with refused(f"/{folder.name}", "negative, neutral, positive", "entailment, neutral, contradiction"):
            evaluate(ref, folder, other, asked, Scoring())


def test_a_checkpoints_own_head_of_another_size_gives_way(backbone, tmp_path):
    """The adapter brings its own; a body of another size is refused."""
    ref = backbone("xlmr")
    config = hf.AutoConfig.from_pretrained(ref.source, num_labels=2)
    hf.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "tuned")
    hf.AutoTokenizer.from_pretrained(ref.source).save_pretrained(tmp_path / "tuned")
    tuned = find_backbone(Backbone(name=str(tmp_path / "tuned")))
    model, _ = load_backbone(tuned.answering(Head("classes", 3)))
    assert model.classifier.out_proj.out_features == 3
    assert model.fresh_weights == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    changed = json.loads((tmp_path / "tuned" / "config.json").read_text())
    (tmp_path / "tuned" / "config.json").write_text(json.dumps({**changed, "intermediate_size": 48}))
    with refused("'body'", "lacks roberta", "5 more", "XLMRobertaForSequenceClassification"):
        load_backbone(replace(tuned, name="body").answering(Head("classes", 3)))


@pytest.mark.parametrize("task", ["nusax", "xcopa", "xquad"])
def test_a_prefix_on_a_bfloat16_encoder_trains_and_answers(backbone, tmp_path, task):
    """XLM-R's head, which is held in float32, is its first module, whose format peft takes for the prefix."""
    chosen, examples = examples_of(tmp_path, task)
    ref = replace(backbone("xlmr"), dtype="bfloat16")
    start = drawn(ref, tmp_path / "start", type="prefix", tokens=3)
    adapter = learn(ref, chosen, examples, start, tmp_path / "one", Training(steps=2, batch_size=4))
    assert len(evaluate(ref, adapter, chosen, examples, Scoring()).predictions) == 8


def test_more_tokens_than_an_encoder_has_positions_for_are_refused(backbone, tmp_path):
    ref = backbone("xlmr")  # 512 positions
    task, examples = examples_of(tmp_path, "nusax")
    long = [replace(row, parts=("word " * 700,)) for row in examples]
    start = drawn(ref, tmp_path / "start", type="prefix", tokens=3)
    facts = ("512 tokens", "a prefix of 3 ", "512 positions")
    with refused("max_length", *facts, mend="set it to 509"):
        learn(ref, task, long, start, tmp_path / "a", Training(steps=1, max_length=512))
    texts = ["one long text of many words"] * 200
    with refused("segment_tokens", *facts, mend="set it to 509"):
        learn(ref, TASKS["masked-lm"], texts, start, tmp_path / "b", segment_tokens=512)
    fits = learn(ref, task, long, start, tmp_path / "c", Training(steps=1, max_length=509))
    assert evaluate(ref, fits, task, long, Scoring(max_length=509)).truncated == 8
    with refused("max_length", *facts, mend="set it to 509"):
        evaluate(ref, fits, task, long, Scoring(max_length=512))


def test_an_experiment_with_too_many_tokens_is_refused_before_anything_is_trained(backbone, tmp_path):
    ref = backbone("xlmr")
    facts = ("512 tokens", "a prefix of 20 ", "512 positions")
    text = f"""
backbone: {{name: {ref.source}}}
languages: {{source: en, targets: [id]}}
tasks: [{{task: xcopa, data: {{files: "absent/{{language}}.jsonl"}}}}]
adapter: {{type: prefix}}
training: {{task: {{epochs: 1}}, reference: {{epochs: 1}}}}
methods: [source-ft]
"""
    (tmp_path / "e.yaml").write_text(text, encoding="utf-8")
    for tiny_run in (False, True):
        with refused("training.task.max_length", *facts, mend="set it to 492"):
            ll.run(tmp_path / "e.yaml", output=tmp_path / "run", tiny=tiny_run)
    assert not Path(tmp_path / "run").exists()


def test_words_that_the_tokenizer_cannot_spell_are_scored(backbone):
    """Leaving `<unk>` out would make such a word the likeliest of all."""
    ref = backbone("t5")
    model, tokenizer = load_backbone(ref)
    assert tokenizer.unk_token_id in tokenizer("ደግ")["input_ids"]
    choices = {"unknown": "ደግ", "empty": "▁"}
    (scores,), _ = rank_written(model, tokenizer, [Example("0", "is it good?", choices=choices)], Scoring())
    ids = tokenizer(text_target="ደግ")["input_ids"]
    with torch.inference_mode():
        asked = tokenizer("is it good?", return_tensors="pt")
        logits = model(**asked, labels=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = sum(float(logits[place, token]) for place, token in enumerate(ids[:-1]))
    assert scores["unknown"] == pytest.approx(expected, abs=1e-4)
