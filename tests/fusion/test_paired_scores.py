"""Evaluation with a FLARE adapter: what an explicit call of the model for each example and choice gives."""

import random
from dataclasses import replace

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import lingualift as ll
from builders import paired, tiny
from builders.refusals import refused
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone, Scoring
from lingualift.data.datasets import Examples
from lingualift.encoding.heads import encode_choices, encode_parts, encode_windows
from lingualift.encoding.text import encode_pair, encode_prompt
from lingualift.evaluation.runner import evaluate
from lingualift.miniworld import SENTIMENT_PROMPT
from lingualift.miniworld.data import sentiment_rows

KINDS = {
    "llama": hf.AutoModelForCausalLM,
    "t5": hf.AutoModelForSeq2SeqLM,
    "classes": hf.AutoModelForSequenceClassification,
    "choices": hf.AutoModelForSequenceClassification,
    "span": hf.AutoModelForQuestionAnswering,
}


@pytest.fixture(scope="module")
def refs(tmp_path_factory):
    """Name of a kind -> its backbone; at T5's own draw what it reads would hardly count."""
    found = {}
    for name in ("llama", "t5", "xlmr", "bert"):
        folder = tiny.build(name, tmp_path_factory.mktemp(name) / "backbone")
        if name == "t5":
            model = hf.AutoModelForSeq2SeqLM.from_pretrained(folder)
            torch.manual_seed(0)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 2:
                        parameter.normal_(std=0.1)
            model.save_pretrained(folder)
        found[name] = find_backbone(Backbone(name=str(folder)))
    return found


class Case:
    """A backbone, paired rows and a drawn adapter."""

    def __init__(self, refs, folder, name, task, language="id", generated=False, **settings):
        source = paired.world(folder, task, language)
        if generated:
            source = Examples(source.task, source.data, folder, generated=True, beside=source.beside)
        self.task, self.examples = source.labelled(language, "train")
        self.ref = paired.headed(refs[name], source, self.examples)
        self.folder = paired.flare_folder(self.ref, name, folder / "flare", **settings)
        _, self.tokenizer = load_backbone(self.ref)

    def evaluated(self, examples=None, **scoring):
        return evaluate(
            self.ref, self.folder, self.task, examples or self.examples, Scoring(**scoring)
        ).predictions

    def alone(self):
        kind = {"words": hf.AutoModelForCausalLM}.get(self.ref.head.kind)
        if self.ref.family == "encoder-decoder":
            kind = hf.AutoModelForSeq2SeqLM
        return paired.load_alone(self.ref, self.folder, kind or KINDS[self.ref.head.kind])


def tensor(ids):
    return torch.tensor([ids])


def decoder_score(model, tokenizer, example, words):
    pair = encode_pair(tokenizer, example.prompt, words, 512)
    logits = model(
        input_ids=tensor(pair.prompt + pair.answer),
        source_input_ids=tensor(encode_prompt(tokenizer, example.source.prompt)),
        answer_start=torch.tensor([len(pair.prompt)]),
    ).logits[0]
    start = len(pair.prompt) - 1
    return sum(float(logits[start + place].log_softmax(-1)[token]) for place, token in enumerate(pair.answer))


def written_score(model, tokenizer, example, words):
    ids = tokenizer(text_target=words)["input_ids"]
    logits = model(
        input_ids=tensor(tokenizer(example.prompt)["input_ids"]),
        source_input_ids=tensor(tokenizer(example.source.prompt)["input_ids"]),
        decoder_input_ids=tensor([model.config.decoder_start_token_id, *ids[:-1]]),
    ).logits[0]
    return sum(
        float(logits[place].log_softmax(-1)[token])
        for place, token in enumerate(ids)
        if token not in tokenizer.all_special_ids
    )


@pytest.mark.parametrize("answer_source", ["last", "none", "generate"])
@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention"])
def test_ranked_words_of_a_decoder(refs, tmp_path, fusion, answer_source):
    case = Case(refs, tmp_path, "llama", "nusax", fusion=fusion, answer_source=answer_source)
    found, model = case.evaluated(batch_size=3), case.alone()
    model.get_base_model().generation_config = hf.GenerationConfig(eos_token_id=case.tokenizer.eos_token_id)
    with torch.no_grad():
        for example, prediction in zip(case.examples, found, strict=True):
            for label, words in example.choices.items():
                expected = decoder_score(model, case.tokenizer, example, words)
                assert prediction.scores[label] == pytest.approx(expected, abs=2e-4)
    lengths = {len(encode_pair(case.tokenizer, "a", words, 99).answer) for words in example.choices.values()}
    assert max(lengths) > 2  # so that cached tokens are scored too


@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention"])
def test_ranked_words_of_an_encoder_decoder(refs, tmp_path, fusion):
    case = Case(refs, tmp_path, "t5", "nusax", fusion=fusion)
    found, model = case.evaluated(batch_size=3), case.alone()
    with torch.no_grad():
        for example, prediction in zip(case.examples, found, strict=True):
            for label, words in example.choices.items():
                expected = written_score(model, case.tokenizer, example, words)
                assert prediction.scores[label] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "task", "language"),
    [
        ("xlmr", "nusax", "id"),
        ("xlmr", "xnli", "de"),
        ("bert", "xnli", "de"),
        ("xlmr", "xcopa", "id"),
        ("bert", "xcopa", "id"),
    ],
)
def test_classes_and_choices_of_an_encoder(refs, tmp_path, name, task, language):
    case = Case(refs, tmp_path, name, task, language)
    found, model = case.evaluated(batch_size=3), case.alone()

    def logits(text, source):
        given = {key: tensor(ids) for key, ids in text.inputs.items()}
        given |= {f"source_{key}": tensor(ids) for key, ids in source.inputs.items()}
        return model(**given).logits[0]

    with torch.no_grad():
        for example, prediction in zip(case.examples, found, strict=True):
            if example.options:
                both = (encode_choices(case.tokenizer, each, 512) for each in (example, example.source))
                expected = torch.cat([logits(text, source) for text, source in zip(*both, strict=True)])
            else:
                both = [encode_parts(case.tokenizer, each.parts, 512) for each in (example, example.source)]
                expected = logits(*both)
            scores = torch.tensor(list(prediction.scores.values()))
            assert torch.allclose(scores, expected.log_softmax(-1), atol=1e-4)


def test_spans_meet_the_sources_window_of_the_same_number_or_its_last(refs, tmp_path):
    case = Case(refs, tmp_path, "xlmr", "xquad", "de")
    found, model = case.evaluated(batch_size=3, max_length=24), case.alone()
    counts = set()
    with torch.no_grad():
        for example, prediction in zip(case.examples, found, strict=True):
            ours, theirs = (encode_windows(case.tokenizer, each, 24) for each in (example, example.source))
            counts.add((len(ours) > 1, len(theirs) < len(ours)))
            best = (float("-inf"), "")
            for number, window in enumerate(ours):
                beside = theirs[number] if number < len(theirs) else theirs[-1]
                output = model(
                    input_ids=tensor(window.inputs["input_ids"]),
                    source_input_ids=tensor(beside.inputs["input_ids"]),
                )
                start, end = output.start_logits[0], output.end_logits[0]
                inside = [index for index, place in enumerate(window.places) if place]
                score, first, last = max(
                    (float(start[first] + end[last]), first, last)
                    for first in inside
                    for last in inside
                    if first <= last < first + case.task.max_new_tokens
                )
                if score > best[0] + 1e-5:
                    text = example.parts[1][window.places[first][0] : window.places[last][1]].strip()
                    best = (score, text)
            assert prediction.prediction == best[1]
    assert {(True, True), (True, False)} & counts


def test_the_answer_of_the_source_stops_where_it_ends():
    """On the resident backbone, whose own settings of `generate` are put aside."""
    backbone, tokenizer = load_backbone(find_backbone(Backbone(name="miniworld")))
    config = ll.FlareConfig(target_modules=["q_proj", "v_proj"], answer_source="generate")
    model = ll.flare(backbone, config)
    try:
        (row,) = sentiment_rows("en", "train", 1)
        prompt = encode_prompt(tokenizer, SENTIMENT_PROMPT.format(text=row["text"]))
        ids, mask, start = model._answered(torch.tensor([prompt]), torch.ones(1, len(prompt)), 8)
        answer = tokenizer.decode(ids[0, int(start) :][mask[0, int(start) :].bool()])
        assert answer.split()[1:] == [tokenizer.eos_token]  # a word, and its end
    finally:
        model.unload()


@pytest.mark.parametrize("answer_source", ["last", "generate"])
def test_generated_answers_of_a_decoder(refs, tmp_path, answer_source):
    case = Case(refs, tmp_path, "llama", "nusax", generated=True, answer_source=answer_source)
    found, model = case.evaluated(batch_size=3, max_new_tokens=4), case.alone()
    model.get_base_model().generation_config = hf.GenerationConfig(eos_token_id=case.tokenizer.eos_token_id)
    with torch.no_grad():
        for example, prediction in zip(case.examples, found, strict=True):
            ids = encode_prompt(case.tokenizer, example.prompt)
            source, start = tensor(encode_prompt(case.tokenizer, example.source.prompt)), len(ids)
            while len(ids) < start + 4 and ids[-1] != case.tokenizer.eos_token_id:
                given = {"source_input_ids": source, "answer_start": torch.tensor([start])}
                ids.append(int(model(input_ids=tensor(ids), **given).logits[0, -1].argmax()))
            assert prediction.text == case.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_written_answers_of_an_encoder_decoder(refs, tmp_path):
    case = Case(refs, tmp_path, "t5", "nusax", generated=True)
    found, model = case.evaluated(batch_size=3, max_new_tokens=4), case.alone()
    with torch.no_grad():
        for example, prediction in zip(case.examples, found, strict=True):
            given = {
                "input_ids": tensor(case.tokenizer(example.prompt)["input_ids"]),
                "source_input_ids": tensor(case.tokenizer(example.source.prompt)["input_ids"]),
            }
            ids = [model.config.decoder_start_token_id]
            while len(ids) < 5 and ids[-1] != case.tokenizer.eos_token_id:
                ids.append(int(model(**given, decoder_input_ids=tensor(ids)).logits[0, -1].argmax()))
            assert prediction.text == case.tokenizer.decode(ids, skip_special_tokens=True)


def numbers(predictions):
    return {found.id: list(found.scores.values()) for found in predictions}


def close(one, other, tolerance=1e-4):
    return all(
        torch.allclose(torch.tensor(one[key]), torch.tensor(other[key]), atol=tolerance) for key in one
    )


@pytest.mark.parametrize("name", ["llama", "t5", "xlmr"])
def test_the_source_counts_and_nothing_else_of_its_row(refs, tmp_path, name):
    case = Case(refs, tmp_path, name, "nusax")
    found = numbers(case.evaluated())
    shuffled = random.Random(1).sample(case.examples, len(case.examples))
    assert close(found, numbers(case.evaluated(shuffled, batch_size=1)))
    assert numbers(case.evaluated(paired.with_gold(case.examples))) == found
    moved = numbers(case.evaluated(paired.other_sources(case.examples)))
    assert not any(
        torch.allclose(torch.tensor(found[key]), torch.tensor(moved[key]), atol=1e-3) for key in found
    )


def test_one_prompt_with_two_sources_is_two_prompts(refs, tmp_path):
    case = Case(refs, tmp_path, "llama", "nusax")
    twice = [replace(row, prompt=case.examples[0].prompt) for row in case.examples]
    found = case.evaluated(twice, batch_size=8)
    assert len({tuple(each.scores.values()) for each in found}) == len(twice)


@pytest.mark.parametrize("name", ["llama", "t5", "xlmr"])
def test_the_resident_backbone_is_as_it_was(refs, tmp_path, name):
    case = Case(refs, tmp_path, name, "nusax")

    def state():
        model, _ = load_backbone(case.ref)
        parts = {
            key: (type(module), len(module._forward_hooks), len(module._forward_pre_hooks), module.training)
            for key, module in model.named_modules()
        }
        return parts, {key: value.clone() for key, value in model.state_dict().items()}, vars(model).keys()

    before = state()
    case.evaluated()
    with refused("example 'r0'", "no source side", mend="--beside"):
        case.evaluated([replace(row, source=None) for row in case.examples])
    weights = load_file(case.folder / paired.WEIGHTS)
    weights.pop(next(iter(sorted(weights))))
    save_file(weights, case.folder / paired.WEIGHTS)
    with refused("flare/adapter_model.safetensors", "was changed"):
        case.evaluated()
    (case.folder / "provenance.json").unlink()
    with refused("flare/adapter_model.safetensors", "is missing"):
        case.evaluated()
    after = state()
    assert before[0] == after[0]
    assert before[2] == after[2]
    assert before[1].keys() == after[1].keys()
    assert all(torch.equal(value, after[1][key]) for key, value in before[1].items())


def test_what_is_refused(refs, tmp_path):
    case = Case(refs, tmp_path, "llama", "nusax")
    with refused("source of example 'r", "tokens", "at most 5"):
        case.evaluated(max_length=5)
    (case.folder / paired.WEIGHTS).write_bytes(b"broken")
    with refused(f"/{paired.WEIGHTS}", "6 bytes", mend="restore"):
        case.evaluated()
    model, _ = load_backbone(case.ref)
    assert not any("lora" in key for key in model.state_dict())


def test_other_adapters_do_not_look_at_the_source(refs, tmp_path):
    case = Case(refs, tmp_path, "llama", "nusax")
    first = case.folder / "first-stage"
    alone = [replace(row, source=None) for row in case.examples]
    scoring = Scoring(max_length=40)
    found = [
        evaluate(case.ref, first, case.task, rows, scoring).predictions for rows in (case.examples, alone)
    ]
    assert found[0] == found[1]
    assert ll.inspect(first)
