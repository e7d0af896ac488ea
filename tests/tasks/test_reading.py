"""The lenient reading: what it takes for an answer, what it never does, and that both readings are kept."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.worlds import read_jsonl, write_jsonl
from lingualift.commands.evaluate import evaluate
from lingualift.commands.predict import predict
from lingualift.config import Scoring
from lingualift.evaluation import runner
from lingualift.metrics.scores import METRICS
from lingualift.tasks import TASKS, Example, Task, shipped_rows
from lingualift.tasks.prompts import prompts_of
from lingualift.tasks.reading import announced

ROOT = Path(__file__).parents[2]
CLASSES = [(name, prompt) for name in ("xnli", "xcopa", "nusax") for prompt in prompts_of(name)]
OPTIONS = {"choice1": "It broke.", "choice2": "It fell off the table."}


def asked(name, prompt=None, language="en", **columns):
    task = TASKS[name].asked(prompt, None, bool(TASKS[name].labels) and prompt != "xlt")
    return task, task.example({"id": "0", **shipped_rows(name, language)[0], **columns}, language)


def lenient(name, text, prompt=None, **columns):
    task, example = asked(name, prompt, **columns)
    return runner._parsed(task, example, text, text, "lenient").prediction


def named(name, prompt, label):
    """The word that a prompt has for a label."""
    return TASKS[name].asked(prompt, None).prompt_for("en").labels[label]


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("xcopa", "(A) It broke.", "choice1"),
        ("xcopa", "(B) It fell off the", "choice2"),  # cut by the longest answer
        ("xcopa", "B) It fell off the table. A fall breaks things.", "choice2"),
        ("xcopa", "Answer: (A)", "choice1"),
        ("xcopa", "**B**", "choice2"),
        ("xcopa", "It fell off the table", "choice2"),
        ("xcopa", "Option A: It broke.", "choice1"),
        ("xcopa", "The more plausible option is (B).", "choice2"),
        ("xcopa", "(A) It broke.\n(B) It fell off the table.\n\nThe answer is (B).", "choice2"),
        ("xcopa", "Let me think.\nGlass is brittle.\n\n$\\boxed{A}$", "choice1"),
        ("xcopa", "（Ｂ）", "choice2"),
        ("xcopa", "A, because glass is brittle", "choice1"),
        ("xnli", "True (entailment)", "entailment"),
        ("xnli", "Entailment. The hypothesis repeats the premise.", "entailment"),
        ("xnli", "The hypothesis is undetermined (neutral) given that nothing is said.", None),
        ("xnli", "The hypothesis is undetermined (neutral).", "neutral"),
        ("xnli", "## Answer\n\n> *Contradiction* - they exclude each other", "contradiction"),
        ("xnli", "The correct answer is: “Neutral”", "neutral"),
        ("xnli", "So, I think that the relationship is neutral.", None),  # no word of this prompt
        ("nusax", "The sentiment of the text is positive.", "positive"),
        ("mgsm", "The answer is 42.", "42"),
        ("xquad", "Answer: Peter Stone", "Answer: Peter Stone"),  # what strict reads
    ],
)
def test_what_instruction_tuned_models_write_is_read(name, text, answer):
    columns = OPTIONS if name == "xcopa" else {}
    assert lenient(name, text, **columns) == answer


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("xnli", "I retell it.\nThe relationship is entailment.", "entailment"),
        ("xnli", "**Relationship**: Entailment (true)", "entailment"),
        ("xnli", "Relationship: neutral\nNo.\nRelationship: not neutral", None),
        ("xcopa", "Choice 2", "choice2"),
        ("xcopa", "The choice number is 1", "choice1"),
        ("xcopa", "1. I retell it.\n2. I choose.", None),
        ("mgsm", "3 + 4 = 7. He has **7** pens.", "7"),
        ("mgsm", "The answer is $1,500.00. See page 3.", "1,500.00"),
        ("mgsm", "La respuesta es 7, en 2 días.", None),  # two numbers
        ("mgsm", "Answer: seven\nI used 2 steps.", None),
        ("mgsm", "The answer is 7.\nThe answer is 8.", None),
        ("mgsm", "The answer is 1/2.", None),
        ("xquad", "The answer is Peter Stone", "Peter Stone"),
        ("xquad", "**Answer**: “Peter Stone”", "Peter Stone"),
        ("xquad", "Peter Stone", None),
        ("xlsum", "# Summary:\n\nA bridge has opened.", "A bridge has opened."),
    ],
)
def test_an_answer_that_misses_xlts_format_is_read_where_it_is_announced(name, text, answer):
    assert lenient(name, text, "xlt", **(OPTIONS if name == "xcopa" else {})) == answer


@pytest.mark.parametrize(
    "form",
    [
        "{a} or {b}",
        "{a} and {b}",
        "{a}/{b}",
        "{a}, {b}",
        "{a} ({b})",
        "{a}, not {b}",
        "{a}. {b}.",
        "not {a}",
        "Not {a}, {b}",
        "neither {a} nor {b}",
        "It is {a}",
        "{a} is wrong",
        "{a}? No",
        "non-{a}",
        "Answer: {a} or {b}",
        "Answer: not {a}",
        "Answer: {a}\nAnswer: {b}",
        "The answer is not {a}.",
        "I do not think the answer is {a}.",
        "It is wrong that the answer is {a}.",
        "If it were so, the answer is {a}.",
        "- {a}\n- {b}",
        "{a}: no\n{b}: yes",
        "",
        "  \n",
    ],
)
@pytest.mark.parametrize(("name", "prompt"), CLASSES)
def test_an_answer_that_is_ambiguous_or_denied_is_malformed(name, prompt, form):
    task, example = asked(name, prompt)
    for a, b in itertools.permutations(task.labels, 2):
        for words in (named(name, prompt, a), a.upper()):
            text = form.format(a=words, b=named(name, prompt, b))
            assert task.parse_lenient(text, example) is None, text


FORMS = (
    "{a}",
    "{a}.",
    "'{a}'",
    "({a})",
    "**{a}**",
    "Answer: {a}",
    "The answer is {a}.",
    "The correct answer is **{a}**",
    "Final answer:\n{a}",
    "{a} because I say so",
    "{a}\n\nThis follows.",
    "First I look.\nThen I see.\n{a}",
    "Die Antwort ist {a}.",
    "答案是{a}。",
)


@given(
    case=st.sampled_from([str, str.upper, str.lower, str.swapcase]),
    form=st.sampled_from(FORMS),
    which=st.sampled_from(CLASSES),
    before=st.text(" \t\n", max_size=3),
    after=st.text(" \t\n", max_size=3),
    wide=st.booleans(),
)
def test_case_and_white_space_change_no_answer(case, form, which, before, after, wide):
    task, example = asked(*which)
    for label in task.labels:
        text = form.format(a=named(*which, label))
        spaced = text.replace(" ", "  ") if wide else text
        assert task.parse_lenient(before + case(spaced) + after, example) == label


PIECES = (
    "{a}",
    "{b}",
    "(",
    ")",
    " ",
    "\n",
    ".",
    ", ",
    "Answer: ",
    "Relationship: ",
    "not ",
    "is ",
    "x",
    "**",
    "1",
)


@given(which=st.sampled_from(CLASSES), pieces=st.lists(st.sampled_from(PIECES), max_size=8), data=st.data())
def test_what_is_read_strictly_is_never_read_otherwise(which, pieces, data):
    task, example = asked(*which)
    a, b = (named(*which, data.draw(st.sampled_from(task.labels))) for _ in "ab")
    text = "".join(pieces).format(a=a, b=b)
    strict = task.parse(text, example)
    found = runner._parsed(task, example, text, text, "lenient")
    assert found.readings["strict"]["prediction"] == strict
    assert found.prediction == strict or strict is None
    assert task.parse_lenient(text, example) in (strict, None) or strict is None


@given(
    name=st.sampled_from(["mgsm", "xquad", "xlsum"]),
    xlt=st.booleans(),
    text=st.text("Answer:37.,\n #é", max_size=20),
)
def test_numbers_and_texts_that_are_read_strictly_are_never_read_otherwise(name, xlt, text):
    task, example = asked(name, "xlt" if xlt else None)
    found = runner._parsed(task, example, text, text, "lenient")
    assert task.parse(text, example) in (None, found.prediction)


@given(
    which=st.sampled_from(CLASSES),
    start=st.integers(0, 400),
    length=st.integers(0, 400),
    row=st.integers(0, 7),
)
def test_a_label_in_the_prompt_is_never_found(which, start, length, row):
    """No answer is read off the prompt, and a model that repeats it, or some lines of it, has not answered."""
    name, prompt = which
    task = TASKS[name].asked(prompt, None, prompt != "xlt")
    example = task.example({"id": "0", **shipped_rows(name, "en")[row]}, "en")
    blind = replace(example, prompt="?")
    echo = example.prompt
    for text in (echo, f"{echo}\n{echo}", echo[:start]):
        assert runner._lenient(task, text, example) is None
    part = echo[start : start + length]
    found = runner._lenient(task, part, example)
    assert (
        found is None if len(part.strip().splitlines()) > 1 else found == runner._lenient(task, part, blind)
    )


@pytest.mark.parametrize(("name", "prompt"), CLASSES)
def test_other_words_for_a_label_stand_in_the_template(name, prompt):
    found = TASKS[name].asked(prompt, None).prompt_for("en")
    assert set(found.also) <= set(found.labels)
    for label, words in found.also.items():
        assert all(f"{word} ({label})" in found.template for word in words)
    assert found.subject in found.template


@pytest.mark.parametrize(
    "sentence",
    [
        "5 + 6 = 11. The answer is 11.",
        "5 + 6 = 11. Die Antwort ist 11.",
        "5 + 6 = 11. La respuesta es 11.",
        "5 + 6 = 11. La réponse est 11.",
        "5 + 6 = 11. Ответ — 11.",
        "5 + 6 = 11. Jibu ni 11.",
        "5 + 6 = 11 คำตอบคือ 11",
        "5 + 6 = 11。答案是 11。",
        "Antwort: 11",
        "Respuesta: 11",
        "Réponse : 11",
        "Ответ: 11",
        "Jibu: 11",
        "คำตอบ: 11",
        "答案：11",
    ],
)
def test_mgsms_exemplars_announce_their_answers(sentence):
    assert [said.strip(".。") for said in announced(sentence)] == ["11"]


@pytest.mark.parametrize("language", ["de", "fr", "ru", "sw", "th", "zh"])
def test_a_prompts_own_word_for_the_answer_announces_it(language):
    task = TASKS["mgsm"].asked("native", language)
    cue = task.prompt_for(language).template.splitlines()[-1]
    assert announced(f"{cue} 7", task.prompt_for(language).nouns)[0] == "7"


class Verdict(Task):
    """A user's task whose own reading wants `<label>`."""

    columns = ("text",)
    labels = ("guilty", "not_guilty")
    metrics = ("accuracy",)
    source = "a test"

    def parse(self, text, example):
        return text[1:-1] if text[1:-1] in self.labels and text[:1] == "<" else None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<guilty>", "guilty"),
        ("Not guilty.", "not_guilty"),
        ("Answer: guilty", "guilty"),
        ("Guilty or not guilty", None),
    ],
)
def test_a_task_of_ones_own_is_read_leniently_by_its_labels(text, answer):
    found = runner._parsed(Verdict(), Example("0", "?", ("guilty",)), text, text, "lenient")
    assert found.prediction == answer


def test_what_the_docs_show_is_what_is_read():
    """The table of docs/tasks.md; XCOPA's options are those of its examples."""
    options = {"choice1": "It broke.", "choice2": "It fell."}
    page = (
        (ROOT / "docs/tasks.md")
        .read_text(encoding="utf-8")
        .partition("| read | as |")[2]
        .partition("\n\n")[0]
    )
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()[2:]]
    assert len(lines) == 6
    for read, answer, malformed, _ in lines:
        name = "mgsm" if answer == "42" else "xcopa" if answer.startswith("choice") else "xnli"
        columns, prompt = (options, None) if name == "xcopa" else ({}, "xlt" if name == "mgsm" else None)
        text, other = (one.split("`")[1].replace("⏎", "\n") for one in (read, malformed))
        assert lenient(name, text, prompt, **columns) == answer.split(",")[0]
        assert lenient(name, other, prompt, **columns) is None


WRITTEN = ["(A) {choice1}", "(B)", "A or B", "B", "", "(A)", "Answer: b", "no"]


@pytest.fixture
def copa(tmp_path, monkeypatch):
    """Rows of XCOPA and a model that writes what chat models write."""
    rows = shipped_rows("xcopa", "en")
    write_jsonl(tmp_path / "test.jsonl", rows)
    texts = [text.format(**row) for text, row in zip(WRITTEN, rows, strict=True)]

    def write(model, tokenizer, examples, scoring, longest, progress, tell):
        for place, text in enumerate(texts):
            tell(place, text)
        return texts, 0

    monkeypatch.setattr(runner, "generate_answers", write)
    golds = [("choice1", "choice2")[row["label"]] for row in rows]
    read = ["choice1", "choice2", None, "choice2", None, "choice1", "choice2", None]
    strict = [answer if text in ("(A)", "(B)") else None for text, answer in zip(texts, read, strict=True)]
    asked = {"task": "xcopa", "language": "en", "answers": "generated"}
    return tmp_path, asked, golds, {"strict": strict, "lenient": read}


@pytest.mark.parametrize("reading", ["strict", "lenient"])
def test_an_evaluation_keeps_both_readings(bpe_folder, copa, reading):
    folder, asked, golds, answers = copa
    found = evaluate(
        backbone=str(bpe_folder),
        data=str(folder / "{split}.jsonl"),
        output=folder / "s.json",
        scoring=Scoring(reading=reading),
        **asked,
    )
    assert [one.prediction for one in found.predictions] == answers[reading]
    told = json.loads((folder / "s.json").read_text())
    assert told["reading"] == reading
    for name, read in answers.items():
        value = METRICS["accuracy"].score(read, [(gold,) for gold in golds], "en")
        assert told["readings"][name]["malformed"] == read.count(None)
        assert told["readings"][name]["scores"]["accuracy"]["score"] == pytest.approx(value.value)
        lines = read_jsonl(folder / "s.predictions.jsonl")
        assert [line["readings"][name]["prediction"] for line in lines] == read
        assert [line["readings"][name]["correct"] for line in lines] == [
            answer == gold for answer, gold in zip(read, golds, strict=True)
        ]
    assert (told["scores"], told["malformed"]) == (
        told["readings"][reading]["scores"],
        told["readings"][reading]["malformed"],
    )


def test_predictions_are_read_as_asked(bpe_folder, copa):
    folder, asked, _, answers = copa
    for reading, read in answers.items():
        found = predict(
            backbone=str(bpe_folder), rows=folder / "test.jsonl", scoring=Scoring(reading=reading), **asked
        )
        assert [one["prediction"] for one in found] == read


def test_ranked_answers_have_no_readings(bpe_folder, copa):
    folder, asked, *_ = copa
    found = evaluate(
        backbone=str(bpe_folder), data=str(folder / "{split}.jsonl"), **{**asked, "answers": "ranked"}
    )
    assert found.readings == {}
    assert all(one.readings is None for one in found.predictions)
