"""Answers that are spans: carried over in training data, never looked at in test data."""

import re

import pytest

from builders.prefixing import Prefixing, foreign, run
from builders.refusals import refused
from lingualift.tasks import TASKS
from lingualift.translation.spans import UNMARKED, locate, look_up

CONTEXT = "The old mill stands beside the river. It was built by Peter Stone in 1820."


def row(id, answer, context=CONTEXT, **more):
    answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return {
        "id": id,
        "context": context,
        "question": f"Question {id}?",
        "answers": answers,
        "title": "Mills",
        **more,
    }


ROWS = [row("a", "Peter Stone"), row("b", "1820"), row("c", "river. It was"), row("d", CONTEXT)]


def read_back(rows):
    """The answers as the task itself reads them, each a part of its passage."""
    task = TASKS["xquad"]
    for one in rows:
        example = task.example(one, "sw")
        (gold,) = task.gold(one, example)
        start = one["answers"]["answer_start"][0]
        assert one["context"][start : start + len(gold)] == gold
        yield one["id"], gold


@pytest.mark.parametrize(
    ("treat", "how"),
    [
        (lambda text: text, "[ ]"),
        (lambda text: text.replace("[", "［").replace("]", "］"), "[ ]"),
        (lambda text: re.sub(r"[][]", "", text), "<b> </b>"),
        (lambda text: re.sub(r"[][]|</?xb>", "", text), '" "'),
        (lambda text: re.sub(r"[][]|</?xb>", "", text).replace('"', "«", 1).replace('"', "»"), '" "'),
        (lambda text: re.sub(r'[][]|</?xb>|"', "", text), UNMARKED),
        (lambda text: text.translate(str.maketrans("[]", "][")), "<b> </b>"),
        (lambda text: text.replace("[", "[["), "<b> </b>"),
        (lambda text: re.sub(r"\[.*\]", "[ ]", text), "<b> </b>"),
    ],
    ids=[
        "kept",
        "widened",
        "dropped",
        "two dropped",
        "quoted",
        "all dropped",
        "swapped",
        "doubled",
        "emptied",
    ],
)
def test_each_answer_of_training_data_is_the_translation_of_the_answer(tmp_path, treat, how):
    def tags(text):  # the stand-in reads `b` as a word
        return treat(text).replace("<xb>", "<b>").replace("</xb>", "</b>")

    written, counts = run(tmp_path, Prefixing(tags), "xquad", train=ROWS)["train"]
    expected = [(one["id"], foreign(one["answers"]["text"][0])) for one in ROWS]
    if how == UNMARKED:  # which drops the full stop around an answer
        expected[3] = ("d", expected[3][1].rstrip("."))
    assert list(read_back(written)) == expected
    assert {one["context"] for one in written} == {foreign(CONTEXT)}
    assert [one["question"] for one in written] == [f"xQuestion x{one['id']}?" for one in ROWS]
    assert (counts.rows, counts.written, counts.projected, counts.dropped) == (4, 4, {how: 4}, [])


def test_a_row_whose_answer_is_lost_is_dropped_from_training_data_and_counted(tmp_path):
    lossy = Prefixing(lambda text: re.sub(r'[][]|</?xb>|"', "", text).replace("xin x1820", "xthen"))
    rows = [*ROWS[:2], {**row("e", "mill"), "answers": {"text": ["windmill"], "answer_start": [0]}}]
    results = run(tmp_path, lossy, "xquad", train=rows, validation=rows[:2], test=rows)
    written, counts = results["train"]
    assert [one["id"] for one in written] == ["a"]
    assert (counts.rows, counts.written, counts.dropped) == (3, 1, ["b", "e"])
    assert results["validation"][1].dropped == ["b"]
    assert [one["id"] for one in results["test"][0]] == ["a", "b", "e"]
    assert results["test"][1].dropped == []


def test_data_of_which_nothing_is_left_is_refused(tmp_path):
    with refused("split 'train'", "2 rows", mend="--split"):
        run(tmp_path, Prefixing(lambda text: "xyz" if "." in text else "x"), "xquad", train=ROWS[:2])


def test_marks_that_stand_in_the_sentence_or_are_unknown_are_not_tried(tmp_path):
    rows = [
        row("m", "Peter", "The [old] mill of Peter. It fell."),
        row("n", "Peter", "A [5]. The mill of Peter."),
    ]
    written, counts = run(tmp_path / "1", Prefixing(unknown="<"), "xquad", train=rows)["train"]
    assert [one["context"] for one in written] == [foreign(one["context"]) for one in rows]
    assert list(read_back(written)) == [("m", "xPeter"), ("n", "xPeter")]
    assert counts.projected == {'" "': 1, "[ ]": 1}


def test_an_answer_that_stands_in_two_sentences_is_found_in_its_own(tmp_path):
    begin = "Ann is here. Now Ann is there.".rindex("Ann")
    twice = {
        **row("t", "Ann", "Ann is here. Now Ann is there."),
        "answers": {"text": ["Ann"], "answer_start": [begin]},
    }
    for treat in (lambda text: text, lambda text: re.sub(r'[][]|</?xb>|"', "", text)):
        (written,), _ = run(tmp_path / str(id(treat)), Prefixing(treat), "xquad", train=[twice])["train"]
        assert written["answers"] == {
            "text": ["xAnn"],
            "answer_start": ["xAnn xis xhere. xNow xAnn".rindex("xAnn")],
        }


def test_an_answer_in_a_sentence_that_is_cut_is_found_if_its_marks_are(tmp_path):
    long = row(
        "l", "eight nine", "One. " + "two three four five six seven eight nine ten eleven twelve. Thirteen."
    )
    (written,), counts = run(tmp_path, Prefixing(limit=4), "xquad", train=[long])["train"]
    assert list(read_back([written])) == [("l", "xeight xnine")]
    assert written["context"] == foreign(long["context"])
    assert counts.cut == ["l"]


def test_only_the_sentence_with_the_answer_is_translated_again(tmp_path):
    translator = Prefixing()
    run(tmp_path, translator, "xquad", train=ROWS[:2])
    seen = sorted(text for call in translator.calls for text in call)
    first, second = CONTEXT.split(". ")
    assert seen == sorted([
        "Question a?", "Question b?", f"{first}.",
        second.replace("Peter Stone", "[Peter Stone]"), second.replace("1820", "[1820]"),
    ])  # fmt: skip


def test_of_several_accepted_answers_the_first_is_carried_over_and_the_others_are_counted(tmp_path):
    answers = {"text": ["1820", "in 1820"], "answer_start": [CONTEXT.index("1820"), CONTEXT.index("in 1820")]}
    written, counts = run(tmp_path, Prefixing(), "xquad", train=[{**ROWS[1], "answers": answers}])["train"]
    assert list(read_back(written)) == [("b", "x1820")]
    assert counts.other_answers == 1


GOLDS = [
    lambda one: one,
    lambda one: {**one, "answers": {"text": ["mill"], "answer_start": [8]}},
    lambda one: {**one, "answers": None},
    lambda one: {**one, "answers": "no answer at all"},
    lambda one: {name: value for name, value in one.items() if name != "answers"},
]


def test_test_rows_are_translated_without_a_look_at_their_answers(tmp_path):
    """Other answers, blank ones or none: the same calls, the same translations, the answers left as they are."""
    seen = []
    for number, change in enumerate(GOLDS):
        translator = Prefixing()
        rows = [change(one) for one in ROWS]
        written, counts = run(tmp_path / str(number), translator, "xquad", test=rows)["test"]
        assert [one.get("answers") for one in written] == [one.get("answers") for one in rows]
        assert (counts.rows, counts.written, counts.projected) == (4, 4, {})
        texts = [{name: value for name, value in one.items() if name != "answers"} for one in written]
        seen.append((translator.calls, texts))
    assert all(one == seen[0] for one in seen)
    assert not any(set('[]<"') & set(text) for call in seen[0][0] for text in call)
    assert seen[0][1][0]["context"] == foreign(CONTEXT)


def test_only_columns_that_are_text_change(tmp_path):
    rows = [{"id": "7", "premise": "It rained.", "choice1": "We went.", "choice2": "We stayed.", "question": "effect",
             "label": 1, "idx": 7}]  # fmt: skip
    ((written,), _) = run(tmp_path, Prefixing(), "xcopa", train=rows)["train"]
    assert written == {
        **rows[0],
        "premise": "xIt xrained.",
        "choice1": "xWe xwent.",
        "choice2": "xWe xstayed.",
    }


def test_text_that_is_to_be_written_is_translated_in_training_data_alone(tmp_path):
    rows = [{"id": "1", "context": "Ann is here.", "question": "Who is here?", "answer": "Ann"}]
    results = run(tmp_path, Prefixing(), "mini-qa", train=rows, test=rows)
    assert results["train"][0][0]["answer"] == "xAnn"
    assert results["test"][0][0] == {**results["train"][0][0], "answer": "Ann"}


def test_rows_without_an_id_are_called_by_their_line_and_texts_are_rows_too(tmp_path):
    written, counts = run(
        tmp_path, Prefixing(limit=2), "causal-lm", train=[{"text": "One two three. Four."}, {"text": "Five"}]
    )["train"]
    assert written == [{"text": "xOne xtwo xthree. xFour.", "id": 1}, {"text": "xFive", "id": 2}]
    assert counts.cut == ["1"]


def test_a_sentence_of_which_nothing_is_made_stays_beside_that_of_the_answer(tmp_path):
    mute = Prefixing(lambda text: "" if "xmill" in text or text == "xKim" else text)
    rows = [ROWS[1], row("k", "mill"), row("l", "Kim", '[Kim] "<b> here.')]
    written, counts = run(tmp_path, mute, "xquad", train=rows)["train"]
    assert list(read_back(written)) == [("b", "x1820")]
    assert (
        written[0]["context"]
        == "The old mill stands beside the river. xIt xwas xbuilt xby xPeter xStone xin x1820."
    )
    assert (counts.empty, counts.dropped) == (["b"], ["k", "l"])


def test_a_sentence_of_which_nothing_is_made_stays_and_is_counted(tmp_path):
    mute = Prefixing(lambda text: "" if "xfour" in text else text)
    written, counts = run(tmp_path, mute, "causal-lm", train=[{"text": "One two. Three four."}])["train"]
    assert written[0]["text"] == "xOne xtwo. Three four."
    assert counts.empty == ["1"]


def test_empty_text_is_refused_with_file_and_line(tmp_path):
    with refused("train.jsonl", ":2: column 'text' is empty"):
        run(tmp_path, Prefixing(), "causal-lm", train=[{"text": "One."}, {"text": " "}])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a [ b ] c", ("a b c", "b", 2)),
        ("a[ b]c", ("a bc", "b", 2)),
        ("[b], c", ("b, c", "b", 0)),
        ("[ b ]", ("b", "b", 0)),
        ("a ] b [ c", None),
        ("a [b", None),
        ("a [b] [c]", None),
        ("a [ ] b", None),
        ("a b", None),
    ],
)
def test_an_answer_is_found_by_a_pair_of_marks_or_not_at_all(text, found):
    assert locate(text, ("[", "]")) == found


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("ni paka mweusi", "Paka.", None),
        ("ni paka mweusi", "paka.", ("ni paka mweusi", "paka", 3)),
        ("paka na paka", "paka", None),
        ("mapaka", "paka", None),
        ("a b", ".", None),
    ],
)
def test_an_answer_by_itself_is_found_once_as_whole_words_or_not_at_all(text, answer, found):
    assert look_up(text, answer) == found
