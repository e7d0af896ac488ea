"""The tokenizer, the shipped backbone, and the command that rebuilds it."""

import itertools
import json

import pytest
import torch
from decoder import THRESHOLD, Recipe, exact_match, label_accuracy, main, passes, probe, rebuild
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders.refusals import refused
from lingualift.miniworld import BACKBONE, LABEL_WORDS, LANGUAGES, QA_PROMPT, SENTIMENT_PROMPT, WEAK
from lingualift.miniworld.data import qa_rows, reference_rows, sentiment_rows
from lingualift.miniworld.pretraining import documents
from lingualift.miniworld.tokenizer import build_tokenizer, vocabulary, words

TINY = Recipe(steps=2, extra_steps=1, extra_rounds=1, hidden=8, intermediate=8, heads=2, batch=2)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BACKBONE)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BACKBONE).eval()


def texts(language):
    for split in ("train", "validation", "test", "probe"):
        yield from (
            f"{SENTIMENT_PROMPT.format(**row)} {LABEL_WORDS[row['label']]}"
            for row in sentiment_rows(language, split, 1000)
        )
        yield from (f"{QA_PROMPT.format(**row)} {row['answer']}" for row in qa_rows(language, split, 1000))
    yield from (row["text"] for row in reference_rows(language, 1000))


@pytest.mark.slow  # all texts of a language
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_has_unknown_tokens(tokenizer, language):
    for text, ids in zip(texts(language), tokenizer(list(texts(language)))["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == " ".join(words(text))


@pytest.mark.slow  # 20,000 documents
def test_no_pretraining_document_has_unknown_tokens_or_is_too_long(tokenizer):
    some = [document.text for document in itertools.islice(documents(5), 20_000)]
    ids = tokenizer(some)["input_ids"]
    assert not any(tokenizer.unk_token_id in line for line in ids)
    assert max(map(len, ids)) < tokenizer.model_max_length


def test_an_answer_is_tokenised_alike_alone_and_after_its_prompt(tokenizer):
    for row in qa_rows("fr", "test", 100):
        prompt, answer = QA_PROMPT.format(**row), " " + row["answer"]
        assert tokenizer(prompt + answer)["input_ids"] == (
            tokenizer(prompt)["input_ids"] + tokenizer(answer)["input_ids"]
        )


def test_the_shipped_tokenizer_is_the_built_one(tokenizer):
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab() == {word: i for i, word in enumerate(vocabulary())}
    tokens = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    assert tokens == ("<pad>", "<bos>", "<eos>", "<unk>")


def test_the_shipped_backbone_is_small_and_says_how_it_was_made():
    files = {path.name: path.stat().st_size for path in BACKBONE.iterdir()}
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "provenance.json",
    }
    assert sum(files.values()) < 1_300_000
    provenance = json.loads((BACKBONE / "provenance.json").read_text())
    assert provenance["recipe"] == Recipe().__dict__
    assert {"seed", "steps", "versions", "probe", "text"} <= provenance.keys()


def test_the_shipped_backbone_passes_the_probe(model, tokenizer):
    scores = probe(model, tokenizer)
    assert passes(scores)
    recorded = json.loads((BACKBONE / "provenance.json").read_text())["probe"]
    for language in LANGUAGES:
        assert scores[language] == pytest.approx(recorded[language], abs=0.02)
    for task in ("qa", "sentiment"):
        weak = [scores[language][task] for language in WEAK]
        assert sum(weak) / len(weak) < scores["en"][task] - 0.1
        assert max(weak) < scores["en"][task] - 0.03
    assert all(scores[language]["qa"] > 1 / 16 for language in WEAK)


def test_the_probe_agrees_with_greedy_generation(model, tokenizer):
    rows = qa_rows("id", "probe", 40)
    right = 0
    for row in rows:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(QA_PROMPT.format(**row))["input_ids"]]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        said = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        right += said == row["answer"]
    assert exact_match(model, tokenizer, rows, batch=7) == right / len(rows)


def test_the_probe_can_fail(tokenizer):
    class Mute(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids):
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, len(tokenizer))})

    assert exact_match(Mute(), tokenizer, qa_rows("en", "probe", 30)) == 0
    assert label_accuracy(Mute(), tokenizer, sentiment_rows("en", "probe", 30)) == 0.5
    good, bad = {"qa": 1.0, "sentiment": THRESHOLD}, {"qa": THRESHOLD - 0.01, "sentiment": 1.0}
    assert passes({"en": good, "de": bad})
    assert not passes({"en": bad, "de": good})


@pytest.mark.slow  # a probe can fail: above
def test_a_backbone_that_fails_its_probe_is_not_written(tmp_path):
    seen = []
    with refused("/b", "probe", "3 steps", "0.95", mend="--seed"):
        rebuild(tmp_path / "b", recipe=TINY, advance=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2), (3, 3)]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_before_the_training(tmp_path, capsys):
    (tmp_path / "config.json").write_text("half written")
    assert main(["--output", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "exists already" in printed.err
    assert "Traceback" not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.slow  # from Python above
def test_a_failed_probe_exits_with_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("decoder.Recipe", lambda: TINY)
    assert main(["--output", str(tmp_path / "b")]) == 2
    assert "choose another --seed" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.slow  # the shipped one is probed above
def test_a_rebuild_passes_the_probe(tmp_path):
    """Fewer steps than the full recipe has: enough for English, which is all that the probe asks."""
    threads = torch.get_num_threads()
    scores = rebuild(tmp_path / "b", seed=1, recipe=Recipe(steps=1500, extra_steps=400, extra_rounds=2))
    assert torch.get_num_threads() == threads
    assert passes(scores)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    again = probe(loaded, AutoTokenizer.from_pretrained(tmp_path / "b"))
    assert again == scores
    assert {path.name for path in (tmp_path / "b").iterdir()} == {path.name for path in BACKBONE.iterdir()}
