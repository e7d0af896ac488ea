"""Every family trains, merges, evaluates and reloads on every task that suits it, with the rows that ship."""

import json
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file

import lingualift as ll
from builders import tiny
from builders.refusals import refused
from lingualift.backbone.architectures import head_modules, model_class
from lingualift.backbone.loading import load_backbone
from lingualift.config import Adapter, Data, Scoring, Training
from lingualift.data.datasets import Examples
from lingualift.evaluation.runner import evaluate
from lingualift.tasks import TASKS, shipped_languages, shipped_rows
from lingualift.training.trainer import initialise, train

LABELLED = [name for name in TASKS if shipped_languages(name)]
SETTINGS = Training(steps=2, batch_size=4, learning_rate=1e-2, max_length=256)
TEXTS = {
    "en": ["the red book is on the table in the kitchen, and nobody reads it"] * 6,
    "id": ["buku merah ada di atas meja di dapur, dan tidak ada yang membacanya"] * 6,
}
FAMILIES = {
    **dict.fromkeys(tiny.DECODERS, ("lora", "ia3")),
    **dict.fromkeys((*tiny.ENCODER_DECODERS, *tiny.ENCODERS), ("lora", "ia3", "prefix")),
}
EVERY = [(name, kind, task) for name, kinds in FAMILIES.items() for kind in kinds for task in LABELLED]
PAIRS = ((0, 1), (0, 2), (1, 2))


def covering(cases):
    """The first of the cases that leave no pair out: class × kind, class × task, kind × task."""
    left = {(pair, *(case[place] for place in pair)) for case in cases for pair in PAIRS}
    taken = []
    while left:
        held = {case: {(pair, *(case[place] for place in pair)) for pair in PAIRS} & left for case in cases}
        taken.append(max(cases, key=lambda case: len(held[case])))
        left -= held[taken[-1]]
    return taken


QUICK = set(covering(EVERY))
CASES = [
    pytest.param(*case, id="-".join(case), marks=() if case in QUICK else pytest.mark.slow) for case in EVERY
]


def suits(name, task):
    return name not in tiny.ENCODERS or TASKS[task].encoder_head is not None


def rows(folder, task, code):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in shipped_rows(task, code))
    (folder / f"{code}.jsonl").write_text(text, encoding="utf-8")
    return Examples(task, Data(files=str(folder / "{language}.jsonl")), folder)


def learn(ref, task, examples, start, output, language, seed=0):
    output.mkdir()
    train(
        ref, task, examples, SETTINGS, start=start, seed=seed, output=output, work=output.parent / "work",
        language=language, segment_tokens=24,
    )  # fmt: skip
    return output


@pytest.fixture(scope="module")
def references(backbone, tmp_path_factory):
    """Backbone and kind -> the start, and the references of two languages."""
    made = {}

    def get(name, kind):
        if (name, kind) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{kind}")
            ref = backbone(name)
            start = folder / "start"
            start.mkdir()
            initialise(ref, Adapter(type=kind, rank=2, alpha=4, tokens=3), 0, start)
            text = TASKS[{"decoder": "causal-lm", "encoder": "masked-lm"}.get(ref.family, "prefix-lm")]
            both = [learn(ref, text, TEXTS[code], start, folder / code, code) for code in TEXTS]
            made[name, kind] = (start, *both)
        return made[name, kind]

    return get


@pytest.mark.parametrize(("name", "kind", "task"), CASES)
def test_a_family_trains_merges_evaluates_and_reloads(backbone, references, tmp_path, name, kind, task):
    ref = backbone(name)
    code = shipped_languages(task)[0]
    source = rows(tmp_path / "rows", task, code)
    _, examples = source.labelled(code, "train")
    if not suits(name, task):
        with refused("task '", "an encoder", "classes, choices or spans"):
            evaluate(ref, None, TASKS[task], examples, Scoring())
        return
    asked = type(TASKS[task])()
    asked.max_new_tokens = 4
    start, english, other = references(name, kind)
    adapter = learn(ref, asked, examples, start, tmp_path / "task", code)
    ll.merge(
        method="adamergex", task=adapter, target_reference=other, source_reference=english,
        weight=0.5, output=tmp_path / "merged",
    )  # fmt: skip
    found = evaluate(ref, tmp_path / "merged", asked, examples, Scoring(max_length=256))
    assert len(found.predictions) == 8
    assert list(found.scores) == list(asked.metrics)
    load_backbone.cache_clear()
    again = evaluate(ref, tmp_path / "merged", asked, examples, Scoring(max_length=256, batch_size=3))
    assert [one.prediction for one in again.predictions] == [one.prediction for one in found.predictions]
    for one, other_ in zip(again.predictions, found.predictions, strict=True):
        assert one.text == other_.text
        assert one.scores == pytest.approx(other_.scores, abs=1e-4)
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "merged")
    )
    assert before.keys() == after.keys()
    heads = {key for key in before if ".classifier." in key or ".qa_outputs." in key or ".pooler." in key}
    assert bool(heads) == (name in tiny.ENCODERS)
    assert all(torch.equal(before[key], after[key]) for key in heads)
    assert any(not torch.equal(before[key], after[key]) for key in before.keys() - heads)


@pytest.mark.parametrize("task", ["nusax", "xcopa", "xquad"])
@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix"])
def test_plain_peft_loads_the_adapter_of_an_encoder(backbone, references, tmp_path, kind, task):
    """Its head too: the same logits as ours, by transformers' class and peft alone."""
    ref = backbone("xlmr")
    code = shipped_languages(task)[0]
    _, examples = rows(tmp_path / "rows", task, code).labelled(code, "train")
    adapter = learn(ref, TASKS[task], examples, references("xlmr", kind)[0], tmp_path / "task", code)
    ours = evaluate(ref, adapter, TASKS[task], examples, Scoring())
    config = json.loads((adapter / "adapter_config.json").read_text())
    head = {"nusax": 3, "xcopa": 1, "xquad": 2}[task]
    auto = (
        peft.AutoPeftModelForQuestionAnswering
        if task == "xquad"
        else peft.AutoPeftModelForSequenceClassification
    )
    assert config["task_type"] == ("QUESTION_ANS" if task == "xquad" else "SEQ_CLS")
    theirs = auto.from_pretrained(str(adapter), num_labels=head).eval()
    _, tokenizer = load_backbone(ref)
    for example, found in zip(examples, ours.predictions, strict=True):
        with torch.inference_mode():
            if task == "xquad":
                output = theirs(**tokenizer(*example.parts, return_tensors="pt"))
                ids = tokenizer(*example.parts, return_offsets_mapping=True)
                inside = [place for place, part in enumerate(ids.sequence_ids(0)) if part == 1]
                pairs = [(i, j) for i in inside for j in inside if i <= j < i + TASKS[task].max_new_tokens]
                logits = output.start_logits[0], output.end_logits[0]
                first, last = max(pairs, key=lambda pair: float(logits[0][pair[0]] + logits[1][pair[1]]))
                begin, end = ids["offset_mapping"][first][0], ids["offset_mapping"][last][1]
                assert found.text == example.parts[1][begin:end].strip()
                continue
            pairs = (
                [(example.parts[0], option) for option in example.options.values()]
                if task == "xcopa"
                else [example.parts]
            )
            logits = torch.cat([theirs(**tokenizer(*pair, return_tensors="pt")).logits for pair in pairs])
        expected = logits.reshape(-1).log_softmax(0)
        assert torch.allclose(torch.tensor(list(found.scores.values())), expected, atol=1e-5)


def test_the_head_follows_from_the_seed_alone(backbone, references, tmp_path):
    ref = backbone("xlmr")
    _, examples = rows(tmp_path / "rows", "nusax", shipped_languages("nusax")[0]).labelled(
        shipped_languages("nusax")[0], "train"
    )
    start = references("xlmr", "lora")[0]
    folders = [
        learn(ref, TASKS["nusax"], examples, start, tmp_path / name, "en", seed)
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    ]
    one, again, other = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert all(torch.equal(one[key], again[key]) for key in one)
    head = next(key for key in one if key.endswith("classifier.out_proj.weight"))
    assert not torch.allclose(one[head], other[head], atol=0.05)
    load_backbone(replace(ref, name="again"))  # another head in between
    assert head_modules(model_class("encoder", ref.answering(ref.head).head).from_pretrained(ref.source)) == [
        "lm_head"
    ]


def test_a_reference_has_no_head_to_answer_with(backbone, references, tmp_path):
    code = shipped_languages("nusax")[0]
    _, examples = rows(tmp_path / "rows", "nusax", code).labelled(code, "train")
    adapter = references("xlmr", "lora")[1]
    with refused(f"/{adapter.name}", "no head", mend="the task adapter"):
        evaluate(backbone("xlmr"), adapter, TASKS["nusax"], examples, Scoring())


def test_a_prefix_is_not_for_decoders(backbone, tmp_path):
    (tmp_path / "start").mkdir()
    with refused("adapter.type", "prefix", "a decoder", "lora or ia3"):
        initialise(backbone("llama"), Adapter(type="prefix"), 0, tmp_path / "start")
