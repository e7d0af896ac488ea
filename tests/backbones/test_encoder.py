"""backbones/encoder.py: what it reads, what it masks, and the encoder it leaves."""

import gzip
import importlib.util
import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

SCRIPT = Path(__file__).parents[2] / "backbones" / "encoder.py"
SECRET = "ЖЖЖЖ"  # in labels, questions and held-out texts only
TRAINING = {
    "bible/aa.jsonl.gz": {"verse_id": "GEN.{book}.{row}", "text": "{text}"},
    "bible/bb.jsonl.gz": {"verse_id": "GEN.{book}.{row}", "text": "{text}"},
    "ntrex/aa.jsonl.gz": {"id": "{row}", "doc": "news.{book}", "text": "{text}"},
    "nusaparagraph/cc.jsonl.gz": {"id": "{row}", "text": "{text}"},
    "nusax/eng/train.jsonl.gz": {"id": "{row}", "text": "{text}", "label": SECRET},
    "nusatranslation/dd/train.jsonl.gz": {"id": "{row}", "text": "{text}", "label": SECRET},
    "xnli/en/train.jsonl.gz": {"id": "{row}", "premise": "{text}", "hypothesis": "{text}", "label": SECRET},
    "tydiqa_goldp/en/train.jsonl.gz": {"id": "{row}", "context": "{text}", "question": SECRET},
}
HELD_OUT = {
    "nusax/eng/valid.jsonl.gz": {"text": "{text} " + SECRET},
    "xnli/en/dev.jsonl.gz": {"premise": "{text}", "hypothesis": SECRET * 9},
}
NEVER = [
    "nusax/eng/test.jsonl.gz",
    "nusatranslation/dd/valid.jsonl.gz",
    "nusatranslation/dd/test.jsonl.gz",
    "xnli/en/test.jsonl.gz",
    "tydiqa_goldp/en/dev.jsonl.gz",
    "xquad/en/test.jsonl.gz",
]
WATCHED = """
import json, os, sys
log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_CREAT)
def watch(event, args):
    if event in ("open", "os.rename"):
        os.write(log, (json.dumps([event, str(args[event == "os.rename"])]) + "\\n").encode())
sys.addaudithook(watch)
"""


def write(path, columns, rows=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    dice = random.Random(str(path.name))
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in range(rows):
            words = ["".join(dice.choices("abdegiklmnorstu", k=dice.randint(2, 7))) for _ in range(12)]
            filled = {"text": " ".join(words), "row": row, "book": row // 10}
            print(json.dumps({name: value.format(**filled) for name, value in columns.items()}), file=file)


@pytest.fixture(scope="module")
def run(cli, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    data, output, log = folder / "data", folder / "encoder", folder / "log"
    for name, columns in (TRAINING | HELD_OUT).items():
        write(data / name, columns)
    for name in NEVER:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("not gzip: whoever reads this stops")
    done = cli.script(SCRIPT, "--data", data, "--output", output, "--steps", 3, before=WATCHED, LOG=str(log))
    assert done.code == 0, done.err
    return data, output, [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("encoder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["encoder"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # trains an encoder
def test_what_is_opened_and_when(run):
    data, output, events = run
    last = max(index for index, event in enumerate(events) if event[1] == str(output / "model.safetensors"))

    def opened(part):
        return {str(Path(path).relative_to(data)) for _, path in part if Path(path).is_relative_to(data)}

    assert opened(events[:last]) == set(TRAINING)
    assert opened(events[last:]) == set(HELD_OUT)


@pytest.mark.slow  # trains an encoder
def test_neither_labels_nor_held_out_texts_shape_the_tokenizer(run):
    tokenizer = AutoTokenizer.from_pretrained(run[1])
    assert len(tokenizer.tokenize(SECRET)) == 1 + len(SECRET.encode())  # the space and single bytes
    assert len(tokenizer) > 300


@pytest.mark.slow  # trains an encoder
def test_a_pair_has_xlm_rs_form(run):
    tokenizer = AutoTokenizer.from_pretrained(run[1])
    first, second = "dia mulai", "Größe, 我在 ผม"
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second)]
    encoded = tokenizer(first, second, return_offsets_mapping=True)
    assert encoded["input_ids"] == [0, *ids[0], 2, 2, *ids[1], 2]
    assert tokenizer.is_fast
    assert tokenizer.decode(encoded["input_ids"]).replace(" ", "") == "<s>diamulai</s></s>Größe,我在ผม</s>"
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [
        *range(4),
        len(tokenizer) - 1,
    ]
    for text, side in ((first, 0), (second, 1)):
        spans = [
            span
            for span, of in zip(encoded["offset_mapping"], encoded.sequence_ids(), strict=True)
            if of == side
        ]
        covered = {place for begin, end in spans for place in range(begin, end)}
        assert covered == {place for place, letter in enumerate(text) if letter != " "}


@pytest.mark.slow  # trains an encoder
def test_the_encoder_loads_with_and_without_a_head(run):
    model = AutoModelForMaskedLM.from_pretrained(run[1])
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    _, loading = AutoModelForSequenceClassification.from_pretrained(run[1], output_loading_info=True)
    assert all(name.startswith("classifier.") for name in loading["missing_keys"])
    assert "3 steps, 6," in (run[1] / "README.md").read_text()


@pytest.mark.slow  # trains an encoder
def test_a_second_run_never_touches_the_first(run, script, monkeypatch, capsys):
    before = (run[1] / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", ["encoder.py", "--data", str(run[0]), "--output", str(run[1])])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "exists already" in capsys.readouterr().err
    assert (run[1] / "model.safetensors").stat().st_mtime_ns == before


def test_masking_leaves_special_tokens_alone(script):
    rng, pieces = np.random.default_rng(1), 500
    ids = rng.integers(0, pieces, (100, 3000))
    read, chosen = script.mask(ids, pieces, rng)
    special = np.isin(ids, [0, 1, 2, 3, pieces - 1])
    assert (read[special] == ids[special]).all()
    assert not chosen[special].any()
    assert (read[~chosen] == ids[~chosen]).all()
    asked, answers = read[chosen], ids[chosen]
    assert not np.isin(asked, [0, 1, 2, 3]).any()
    assert chosen[~special].mean() == pytest.approx(0.15, abs=0.005)
    assert (asked == pieces - 1).mean() == pytest.approx(0.8, abs=0.01)
    assert (asked == answers).mean() == pytest.approx(0.1 + 0.1 / (pieces - 5), abs=0.01)


def test_rows_hold_every_token_in_order(script):
    rng = np.random.default_rng(2)
    documents = [rng.integers(4, 400, size) for size in rng.integers(1, 90, 400)]
    stream = script.Stream(iter(documents))
    held = []
    for length in itertools.islice(itertools.cycle([64, 128, 384]), 60):
        row = stream.row(length)
        assert len(row) == length
        assert row[0] == 0
        assert row[1] > 3  # the text begins at once
        assert row[-1] == 2
        held += [token for token in row.tolist() if token > 3]
    flat = np.concatenate(documents).tolist()
    assert held == flat[: len(held)]


def test_a_model_that_knows_nothing_has_the_vocabulary_for_perplexity(script):
    model = script.build(300)
    with torch.no_grad():
        model.lm_head.decoder.weight.zero_()
        model.lm_head.decoder.bias.zero_()
    corpus = script.Corpus()
    rng = np.random.default_rng(3)
    corpus.documents["aa"] = [rng.integers(4, 299, size) for size in (5, 40, 700)]
    (row,) = script.measure(model, corpus, script.Corpus())
    assert row.split("|")[1:4] == [" aa ", " 300 ", " 300 "]


def test_the_loss_is_that_of_transformers(script):
    model = script.build(300).eval()
    ids = np.random.default_rng(4).integers(4, 299, (6, 40))
    ids[:, 0], ids[3:, 25:] = 0, 1  # the last rows are padded
    ours = script.losses(model, ids, np.random.default_rng(5)).mean()
    read, chosen = script.mask(ids, 300, np.random.default_rng(5))
    labels = torch.from_numpy(np.where(chosen, ids, -100))
    theirs = model(
        torch.from_numpy(read), attention_mask=torch.from_numpy(ids != 1).long(), labels=labels
    ).loss
    torch.testing.assert_close(ours, theirs)
