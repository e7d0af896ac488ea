"""FLARE-MT through our own training and evaluation: the rows' own text, tagged with its language, read by NLLB."""

import json
from dataclasses import replace

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import lingualift as ll
from builders import paired, tiny
from builders.refusals import refused
from lingualift.attachment import attach, detach
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone, Scoring, Training
from lingualift.encoding.heads import encode_choices, encode_classes, encode_windows
from lingualift.encoding.text import encode_pair
from lingualift.evaluation.runner import evaluate
from lingualift.fusion.translator import find_translator
from lingualift.training.measuring import measure_step
from lingualift.training.trainer import initialise_fused, train

NAMES = ["llama", "t5", "xlmr"]
KINDS = {"llama": hf.AutoModelForCausalLM, "t5": hf.AutoModelForSeq2SeqLM}
SETTINGS = {"steps": 6, "batch_size": 4, "learning_rate": 5e-3, "warmup": 0.0}


@pytest.fixture(scope="module")
def nllb(tmp_path_factory):
    return paired.translation_model(tmp_path_factory.mktemp("nllb") / "translator")


@pytest.fixture(scope="module")
def refs(tmp_path_factory):
    return {
        name: find_backbone(Backbone(name=str(tiny.build(name, tmp_path_factory.mktemp(name) / "backbone"))))
        for name in NAMES
    }


class Case:
    """A backbone, rows without a source side, and a FLARE-MT adapter before training."""

    def __init__(self, refs, nllb, folder, name, task="nusax", language="id", **settings):
        self.at, self.name, self.language, self.nllb = folder, name, language, nllb
        source = paired.world(folder, task, language)
        self.task, examples = source.labelled(language, "train")
        self.examples = [replace(row, source=None) for row in examples]
        self.plain = refs[name]
        self.ref = paired.headed(self.plain, source, self.examples)
        self.first = paired.first_stage(self.ref, name, folder / "first")
        where = str(nllb)
        self.start = paired.flare_start(
            self.ref, name, folder / "start", self.first, source_encoder=where, **settings
        )
        self.tokenizer = load_backbone(self.ref)[1]

    def trained(self, folder, rows=None, **settings):
        output = self.at / folder
        output.mkdir()
        train(
            self.plain,
            self.task,
            rows or self.examples,
            Training(**{**SETTINGS, **settings}),
            start=self.start,
            seed=0,
            output=output,
            work=self.at / "work" / folder,
            language=self.language,
        )
        return load_file(output / paired.WEIGHTS)

    def evaluated(self, folder, examples=None, **scoring):
        return evaluate(
            self.ref, folder, self.task, examples or self.examples, Scoring(**scoring)
        ).predictions

    def alone(self, folder):
        """The adapter on models of its own, and the translation model's tokenizer, told the rows' language."""
        kind = KINDS.get(self.name)
        if self.ref.head.kind != "words":
            spans = self.ref.head.kind == "span"
            kind = hf.AutoModelForQuestionAnswering if spans else hf.AutoModelForSequenceClassification
        options = {"num_labels": self.ref.head.outputs} if self.ref.head.kind != "words" else {}
        model = ll.load_flare(
            kind.from_pretrained(self.ref.source, **options).eval(),
            folder,
            source_encoder=hf.AutoModelForSeq2SeqLM.from_pretrained(self.nllb),
        ).eval()
        codes = {"id": "ind_Latn", "de": "deu_Latn", "sw": "swh_Latn"}
        return model, hf.AutoTokenizer.from_pretrained(self.nllb, src_lang=codes[self.language])


def tensor(ids):
    return torch.tensor([ids])


def expected(case, folder):
    """Label -> score of every example, by one call of the model for each text."""
    model, reader = case.alone(folder)
    found = []
    for row in case.examples:
        scores = {}
        if case.ref.head.kind != "words":
            texts = (
                encode_choices(case.tokenizer, row, 512)
                if row.options
                else [encode_classes(case.tokenizer, row, 512)]
            )
            own = (
                [(" ".join(row.parts), option) for option in row.options.values()]
                if row.options
                else [row.parts or (row.prompt,)]
            )
            with torch.no_grad():
                logits = torch.cat(
                    [
                        model(
                            **{key: tensor(ids) for key, ids in text.inputs.items()},
                            source_input_ids=tensor(reader(*parts)["input_ids"]),
                        ).logits.reshape(-1)
                        for text, parts in zip(texts, own, strict=True)
                    ]
                )
            labels = list(row.options) or list(case.task.labels or row.choices)
            found.append(dict(zip(labels, logits.log_softmax(-1).tolist(), strict=True)))
            continue
        beside = tensor(reader(row.prompt)["input_ids"])
        for label, words in row.choices.items():
            with torch.no_grad():
                if case.name == "t5":
                    ids = case.tokenizer(text_target=words)["input_ids"]
                    logits = model(
                        input_ids=tensor(case.tokenizer(row.prompt)["input_ids"]),
                        source_input_ids=beside,
                        decoder_input_ids=tensor([model.config.decoder_start_token_id, *ids[:-1]]),
                    ).logits[0]
                    places, scored = range(len(ids)), ids
                else:
                    pair = encode_pair(case.tokenizer, row.prompt, words, 512)
                    logits = model(
                        input_ids=tensor(pair.prompt + pair.answer),
                        source_input_ids=beside,
                        answer_start=torch.tensor([len(pair.prompt)]),
                    ).logits[0]
                    start = len(pair.prompt) - 1
                    places, scored = range(start, start + len(pair.answer)), pair.answer
            scores[label] = sum(
                float(logits[place].log_softmax(-1)[token])
                for place, token in zip(places, scored, strict=True)
                if case.name != "t5" or token not in case.tokenizer.all_special_ids
            )
        found.append(scores)
    return found


@pytest.mark.parametrize(
    ("name", "task", "language"),
    [
        ("llama", "nusax", "id"),
        ("t5", "nusax", "id"),
        ("xlmr", "nusax", "id"),
        ("xlmr", "xnli", "de"),
        ("xlmr", "xcopa", "id"),
    ],
)
def test_it_trains_and_is_scored_as_the_formula_says(refs, nllb, tmp_path, name, task, language):
    case = Case(refs, nllb, tmp_path, name, task, language, fusion="cross_attention")
    start, end = load_file(case.start / paired.WEIGHTS), case.trained("one")
    assert start.keys() == end.keys()
    trained = [key for key in start if ".lora_A." in key or ".lora_B." in key or "projection" in key]
    assert [key for key in trained if torch.equal(start[key], end[key])] == []
    assert not any("source_encoder" in key for key in end)
    card = (tmp_path / "one" / "README.md").read_text()
    assert "adapter, source_encoder=reader)" in card
    assert 'reader = AutoModelForSeq2SeqLM.from_pretrained("translator")  # the folder' in card
    assert "the encoder of `translator` makes of the same text" in card
    assert str(nllb) not in card
    assert sum(key.startswith("flare_projection.") for key in end) == 2
    paired.drawn(tmp_path / "one", 5)  # so that what the source gives is large
    found = case.evaluated(tmp_path / "one", batch_size=3)
    for ours, theirs in zip(found, expected(case, tmp_path / "one"), strict=True):
        assert ours.scores == pytest.approx(theirs, abs=3e-4)


def test_windows_of_a_passage_stand_beside_their_own_text(refs, nllb, tmp_path):
    case = Case(refs, nllb, tmp_path, "xlmr", "xquad", "de")
    case.trained("one", max_length=24, steps=1)
    paired.drawn(tmp_path / "one", 5)
    found = case.evaluated(tmp_path / "one", batch_size=3, max_length=24)
    model, reader = case.alone(tmp_path / "one")
    for row, prediction in zip(case.examples, found, strict=True):
        best = (float("-inf"), "")
        windows = encode_windows(case.tokenizer, row, 24)
        assert len(windows) > 1
        for window in windows:
            inside = [index for index, place in enumerate(window.places) if place]
            text = row.parts[1][window.places[inside[0]][0] : window.places[inside[-1]][1]]
            with torch.no_grad():
                output = model(
                    input_ids=tensor(window.inputs["input_ids"]),
                    source_input_ids=tensor(reader(row.parts[0], text)["input_ids"]),
                )
            score, first, last = max(
                (float(output.start_logits[0][first] + output.end_logits[0][last]), first, last)
                for first in inside
                for last in inside
                if first <= last < first + case.task.max_new_tokens
            )
            if score > best[0] + 1e-5:
                best = (
                    score,
                    row.parts[1][window.places[first][0] : window.places[last][1]].strip(),
                )
        assert prediction.prediction == best[1]


def test_generated_answers_meet_the_target_text(refs, nllb, tmp_path):
    case = Case(refs, nllb, tmp_path, "llama")
    paired.drawn(case.start, 5)
    rows = [replace(row, choices={}) for row in case.examples]
    found = case.evaluated(case.start, rows, batch_size=3, max_new_tokens=4)
    model, reader = case.alone(case.start)
    for row, prediction in zip(case.examples, found, strict=True):
        ids = encode_pair(case.tokenizer, row.prompt, "a", 512).prompt
        given = {
            "source_input_ids": tensor(reader(row.prompt)["input_ids"]),
            "answer_start": torch.tensor([len(ids)]),
        }
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 4 and ids[-1] != case.tokenizer.eos_token_id:
                ids.append(int(model(input_ids=tensor(ids), **given).logits[0, -1].argmax()))
        assert prediction.text == case.tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_is_frozen_and_reads_each_row_once(refs, nllb, tmp_path, name):
    """The authors' code encodes all of them again in every epoch."""
    case = Case(refs, nllb, tmp_path, name)
    encoder = find_translator(str(nllb)).encoder
    assert encoder is find_translator(str(nllb)).encoder
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    read = []
    hook = encoder.register_forward_hook(
        lambda _, given, more, out: read.append(len(out[0])), with_kwargs=True
    )
    case.trained("one", steps=12)
    hook.remove()
    distinct = len({row.prompt for row in case.examples})
    assert sum(read) == distinct + 1  # one row more, to see how wide the states are
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert all(value.grad is None and not value.requires_grad for value in encoder.parameters())
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").rglob("*.bin"))


def test_states_from_the_disk_teach_what_fresh_ones_do(refs, nllb, tmp_path, monkeypatch):
    case = Case(refs, nllb, tmp_path, "llama")
    one = case.trained("one")
    monkeypatch.setattr("lingualift.training.trainer._with_states", lambda job, wrapped: job)
    other = case.trained("other")
    moved = sum(float((one[key] - load_file(case.start / paired.WEIGHTS)[key]).abs().sum()) for key in one)
    apart = sum(float((one[key] - other[key]).abs().sum()) for key in one)
    assert 0 < apart < 0.05 * moved  # bfloat16 on the disk


def test_each_language_is_tagged_as_itself(refs, nllb, tmp_path):
    """The authors' code tags the target's texts as English."""
    case = Case(refs, nllb, tmp_path, "llama")
    model = attach(case.ref, case.start)
    try:
        tokenizer = model.translator.tokenizer
        rows = [("a", "id", ("selamat pagi",)), ("b", "sw", ("habari", "asante")), ("c", "id", ("baik",))]
        read = model.translator.read(rows)
    finally:
        detach(model)
    tags = [tokenizer.convert_tokens_to_ids(tag) for tag in ("ind_Latn", "swh_Latn", "ind_Latn")]
    english = tokenizer.convert_tokens_to_ids("eng_Latn")
    assert [row[0] for row in read] == tags
    assert not any(english in row for row in read)
    with refused("language 'zu'", "no tag", "source encoder"):
        case.evaluated(case.start, [replace(row, language="zu") for row in case.examples])
    with refused("language 'zu'", "no tag", mend="FLARE without a source encoder"):
        case.trained("zulu", [replace(row, language="zu") for row in case.examples])


def test_no_source_side_is_read(refs, nllb, tmp_path):
    case = Case(refs, nllb, tmp_path, "xlmr")
    _, given = paired.world(tmp_path, "nusax", "id").labelled("id", "train")
    one, other = case.trained("one"), case.trained("other", given)
    assert all(torch.equal(one[key], other[key]) for key in one)
    paired.drawn(tmp_path / "one", 5)
    assert case.evaluated(tmp_path / "one") == case.evaluated(tmp_path / "one", given)
    swapped = [
        replace(row, prompt=other.prompt, parts=other.parts)
        for row, other in zip(given, given[1:] + given[:1], strict=True)
    ]
    assert case.evaluated(tmp_path / "one") != case.evaluated(tmp_path / "one", swapped)


def test_the_folder_says_which_encoder_and_refuses_another(refs, nllb, tmp_path):
    where = paired.translation_model(tmp_path / "own")
    case = Case(refs, where, tmp_path, "llama")
    recorded = json.loads((case.start / "adapter_config.json").read_text())
    assert recorded["source_encoder"] == str(where.resolve())
    assert recorded["source_encoder_fingerprint"] == find_translator(str(where)).ref.fingerprint
    moved = where.rename(tmp_path / "moved")
    with refused("source encoder", "is no folder") as caught:
        case.evaluated(case.start)
    assert "adapter_config.json to where the model is" in caught.value.mend
    other = {**recorded, "source_encoder": str(nllb)}
    weights = load_file(nllb / "model.safetensors")
    name = next(iter(sorted(weights)))
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in moved.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    save_file({**weights, name: weights[name] + 1}, changed / "model.safetensors", metadata={"format": "pt"})
    other["source_encoder"] = str(changed)
    (case.start / "adapter_config.json").write_text(json.dumps(other))
    with refused("/changed", "trained with", "fingerprint"):
        case.evaluated(case.start)
    (case.start / "adapter_config.json").write_text(json.dumps({**recorded, "source_encoder": str(moved)}))
    assert case.evaluated(case.start)


def test_a_relative_path_starts_from_the_base(refs, nllb, tmp_path):
    case = Case(refs, nllb, tmp_path, "llama")
    (tmp_path / "again").mkdir()
    config = ll.FlareConfig(r=4, lora_alpha=6, target_modules=("q_proj", "v_proj"), source_encoder=nllb.name)
    initialise_fused(case.ref, config, case.first, 0, tmp_path / "again", base=nllb.parent)
    one, other = (load_file(folder / paired.WEIGHTS) for folder in (case.start, tmp_path / "again"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_refused(refs, nllb, tmp_path):
    case = Case(refs, nllb, tmp_path, "llama")
    (tmp_path / "none").mkdir()

    def start(encoder, **more):
        config = ll.FlareConfig(target_modules=("q_proj",), source_encoder=str(encoder), **more)
        initialise_fused(case.ref, config, case.first, 0, tmp_path / "none")

    for encoder in (case.ref.source, refs["t5"].source):
        with refused("source encoder", "no translation model", "NLLB"):
            start(encoder)
    with refused("source encoder", "nowhere' is no folder"):
        start(tmp_path / "nowhere")
    with refused("source_encoder_dtype", "'bfloat'", mend="bfloat16"):
        start(nllb, source_encoder_dtype="bfloat")
    assert not list((tmp_path / "none").iterdir())
    long = [replace(row, prompt="selamat pagi " * 400) for row in case.examples]
    with refused("example 'r", " tokens for the source encoder", "at most 512", mend="shorten it"):
        case.evaluated(case.start, long)


def test_a_step_is_measured_with_its_encoder(refs, nllb, tmp_path):
    case = Case(refs, nllb, tmp_path, "llama")
    seconds, kept, rows = measure_step(
        case.plain, case.task, case.examples, Training(**SETTINGS), start=case.start, language="id"
    )
    assert seconds > 0
    assert kept > 0
    assert rows == len(case.examples)
