"""The tasks of the papers: what the model is asked, what counts as an answer, and that real rows are read."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import datasets
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builders.refusals import refused
from builders.worlds import experiment, write_experiment, write_jsonl
from lingualift.backbone.loading import load_backbone
from lingualift.config import Data, Scoring, Training, load_experiment
from lingualift.data.datasets import Examples, labelled_task
from lingualift.data.rows import load_examples
from lingualift.encoding.text import encode_pair
from lingualift.evaluation.runner import evaluate, score
from lingualift.languages import language as find_language
from lingualift.metrics.numbers import number_match
from lingualift.pipeline import plan_of
from lingualift.tasks import TASKS, Example, PromptedTask, shipped_languages, shipped_rows
from lingualift.tasks.base import RowError
from lingualift.tasks.prompts import prompts_of
from lingualift.training.trainer import initialise, train

SHARED = Path(__file__).parents[3] / "shared" / "data"
PROMPTED = {name: task for name, task in TASKS.items() if isinstance(task, PromptedTask)}
LANGUAGES = {
    "xnli": ("de", "en", "es"),
    "xcopa": ("en", "id", "it"),
    "mgsm": ("de", "en", "es"),
    "xquad": ("de", "en", "es"),
    "tydiqa-goldp": ("en", "id", "sw"),
    "xlsum": ("en", "fr", "id"),
    "nusax": ("en", "id", "jv"),
    "nusatranslation": ("id", "jv", "su"),
}

# By hand from the papers: Table 1 of AdaMergeX, FLARE's prompts, XLT's template with its meta data.
ASKED = [
    (
        "xnli",
        None,
        "de",
        1,
        "You should judge whether the hypothesis is true (entailment), false (contradiction), or undetermined "
        "(neutral) given the premise.\nPremise: Anna kaufte drei rote Äpfel.\nHypothesis: Anna kaufte Obst.",
        ("entailment",),
        "entailment",
    ),
    (
        "xnli",
        "flare",
        "es",
        2,
        "Premise: El autobús llegó tarde otra vez.\nHypothesis: El conductor estaba enfermo.\nLabel:",
        ("neutral",),
        "neutral",
    ),
    (
        "xnli",
        "xlt",
        "de",
        0,
        "I want you to act as a natural language inference expert for German.\n"
        "Premise: Der Laden schließt um sechs.\n"
        "Hypothesis: Der Laden ist die ganze Nacht geöffnet.\n"
        "You should retell the premise and hypothesis in English.\n"
        "You should judge whether the hypothesis is true (entailment), false (contradiction), or undetermined "
        "(neutral) given the premise. The relationship can be chosen from entailment, contradiction, and neutral.\n"
        "You should step-by-step answer the request.\n"
        "You should tell me the relationship in this format 'Relationship:'.",
        ("contradiction",),
        "Relationship: contradiction",
    ),
    (
        "xcopa",
        None,
        "id",
        1,
        "Here is a premise and a question. Help me pick the more plausible option.\nPremise: Jalan itu basah.\n"
        "Question: What is the cause?\n(A) Matahari bersinar.\n(B) Hujan telah turun.",
        ("choice2",),
        "(B)",
    ),
    (
        "mgsm",
        None,
        "de",
        5,
        "Let’s think step by step.\n"
        "Question: Ein Bauer verkauft 50 Säcke Reis für je 30 Dollar. Wie viele Dollar verdient er?",
        ("1500",),
        "50 * 30 = 1500. Die Antwort lautet 1500.",
    ),
    (
        "xquad",
        None,
        "en",
        2,
        "The market is held every Saturday on the town square.\nQuestion: On which day is the market held?",
        ("Saturday", "every Saturday"),
        "Saturday",
    ),
    (
        "tydiqa-goldp",
        None,
        "sw",
        2,
        "Context: Nyuki hutengeneza asali.\nQuestion: Nyuki hutengeneza nini?\nAnswer:",
        ("asali",),
        "asali",
    ),
    (
        "xlsum",
        None,
        "fr",
        4,
        "Summarize the context in one sentence.\nTitle: Un chien retrouvé\n"
        "Context: Un chien perdu en mai a été retrouvé dans une forêt. Son maître était heureux.",
        ("Un chien perdu a été retrouvé dans une forêt.",),
        "Un chien perdu a été retrouvé dans une forêt.",
    ),
    ("nusax", None, "jv", 2, "Aku teka wingi.\nSentiment:", ("neutral",), "neutral"),
    ("nusatranslation", None, "su", 3, "Caina kotor.\nSentiment:", ("negative",), "negative"),
]


def source(folder, name, language, **chosen):
    write_jsonl(folder / language / "test.jsonl", shipped_rows(name, language))
    return Examples(name, Data(files="{language}/{split}.jsonl"), folder, **chosen)


@pytest.mark.parametrize(("name", "prompt", "language", "index", "asked", "gold", "trained"), ASKED)
def test_the_prompt_is_the_papers(tmp_path, name, prompt, language, index, asked, gold, trained):
    example = source(tmp_path, name, language, prompt=prompt).rows(language, "test")[index]
    assert (example.prompt, example.gold, example.answer) == (asked, gold, trained)


def test_every_task_is_asked_by_hand_above():
    assert {case[0] for case in ASKED} == set(PROMPTED) == set(LANGUAGES)


@pytest.mark.parametrize("name", PROMPTED)
def test_eight_rows_ship_in_three_languages(tmp_path, name):
    assert shipped_languages(name) == LANGUAGES[name]
    for language in LANGUAGES[name]:
        rows = source(tmp_path, name, language).rows(language, "test")
        assert len(rows) == 8
        assert all(row.gold for row in rows)
        if TASKS[name].labels:
            assert {row.gold[0] for row in rows} == set(TASKS[name].labels)


@pytest.mark.parametrize("name", PROMPTED)
def test_every_template_fills_and_says_its_source(tmp_path, name):
    for prompt, template in prompts_of(name).items():
        assert template.source
        for code, words in template.languages.items():
            assert find_language(code).code == code
            assert set(words.labels) == set(TASKS[name].labels)
            assert bool(words.labels_source) == bool(words.labels)
            assert len(set(words.labels.values())) == len(words.labels)
            for row in shipped_rows(name, LANGUAGES[name][0]):
                task = TASKS[name].asked(prompt, code)
                asked = task.example({"id": "0", **row}, LANGUAGES[name][0])
                assert all(str(row[column]) in asked.prompt for column in task.columns if column != "id")
                assert "{" not in asked.prompt
                assert asked.prompt == asked.prompt.strip()


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("xnli", "First I retell the premise.\nRelationship: Entailment.", "entailment"),
        ("xnli", "Relationship:\n'neutral'", "neutral"),
        ("xnli", "Relationship: neutral\nNo, wait.\nRelationship: contradiction", "contradiction"),
        ("xnli", "The relationship is entailment.", None),  # not in the format
        ("xnli", "Relationship: neither entailment nor neutral", None),  # no label, though it holds two
        ("xnli", "Relationship: ", None),
        ("xnli", "", None),
        ("xcopa", "Choice number: 2", "choice2"),
        ("xcopa", "Choice number: 3", None),
        ("xcopa", "I pick choice 2", None),
        ("mgsm", "3 + 4 = 7\nAnswer: 7 pens", "7"),
        ("mgsm", "3 + 4 = 7", None),
        ("mgsm", "Answer: seven", None),
        ("xquad", "I think.\nAnswer: Peter Stone\nThat is all.", "Peter Stone"),
        ("xquad", "Peter Stone", None),
        ("xlsum", "Summary: A bridge has opened.", "A bridge has opened."),
    ],
)
def test_xlts_format_is_kept_or_the_answer_is_malformed(name, text, answer):
    task = TASKS[name].asked("xlt", None)
    row = {"id": "0", **shipped_rows(name, "en")[0]}
    assert task.parse(text, task.example(row, "en")) == answer


def test_what_xlt_trains_on_is_read_as_the_answer(tmp_path):
    for name in PROMPTED:
        if "xlt" in prompts_of(name):
            for language in LANGUAGES[name]:
                asked = source(tmp_path / name, name, language, prompt="xlt")
                task, rows = asked.labelled(language, "test")
                assert not any(row.choices for row in rows)
                assert [task.parse(row.answer, row) for row in rows] == [row.gold[0] for row in rows]


@pytest.mark.parametrize(
    ("written", "language", "gold"),
    [
        *(
            ("60,000", code, "60000")
            for code in ("en", "de", "es", "fr", "ru", "sw", "zh", "bn", "th", "te", "ja")
        ),
        ("1,234,567.50", "de", "1234567.5"),
        ("60 000", "fr", "60000"),
        ("60\u202f000", "ru", "60000"),
        ("1.234.567", "de", "1234567"),
        ("1.234,5", "es", "1234.5"),
        ("60.000", "en", "60"),
        (60.125, "de", "60.125"),
        (60000, "de", "60000"),
        (-3, "ru", "-3"),
        ("12.5", "fr", "12.5"),
    ],
)
def test_mgsms_gold_is_one_number_in_every_language(written, language, gold):
    """And the right answer, as the language writes it, is right."""
    task = TASKS["mgsm"]
    row = {"id": "1", "question": "?", "answer_number": written}
    example = task.example(row, language)
    assert task.gold(row, example) == (gold,)
    answer = task.parse("= " + (gold.replace(".", ",") if language in ("de", "es") else gold), example)
    assert number_match(answer, task.gold(row, example), language) == 1


@pytest.mark.parametrize("language", ["de", "es", "ru", "fr"])
def test_a_gold_number_of_two_readings_is_refused(language):
    task = TASKS["mgsm"]
    row = {"id": "1", "question": "?", "answer_number": "60.000"}
    with pytest.raises(
        RowError, match=r"answer_number is '60\.000', which is 60 or, in this language, 60000"
    ):
        task.gold(row, task.example(row, language))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4 * 5 = 20. 9 + 20 = 29. Die Antwort lautet 29.", "29"),
        ("He earns $1,500.00", "1,500.00"),
        ("-3", "-3"),
        ("10:30", None),
        ("half: 0.5", "0.5"),
        ("no number", None),
        ("", None),
    ],
)
def test_mgsm_reads_the_last_number(text, answer):
    task = TASKS["mgsm"]
    assert task.parse(text, task.example({"id": 0, "question": "How many?"}, "en")) == answer


def test_an_exemplars_own_heading_is_not_said_twice():
    for language, question in (
        ("zh", "问题：有几个？"),
        ("fr", "Question : Combien ?"),
        ("th", "โจทย์: เท่าไร"),
    ):
        task = TASKS["mgsm"].asked("native", "target")
        asked = task.example({"id": 0, "question": question}, language).prompt
        bare = task.example({"id": 0, "question": question.split(":")[-1].split("：")[-1]}, language).prompt
        assert asked == bare


def test_malformed_answers_are_wrong_and_counted(bpe, tmp_path):
    """A random model keeps to no format: nothing of its prompt, which holds every label, is taken for an answer."""
    task, rows = source(tmp_path, "xnli", "en", prompt="xlt").labelled("en", "test")
    task.max_new_tokens = 4
    found = evaluate(bpe, None, task, rows[:3], Scoring(max_length=480))
    assert found.malformed == 3
    assert found.scores["accuracy"]["score"] == 0
    assert found.scores["accuracy"]["chance"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("name", "change", "facts"),
    [
        ("xnli", {"label": -1}, ("label is -1", "0 (entailment), 1 (neutral), 2 (contradiction)")),
        ("xnli", {"label": 3}, ("label is 3", "none of")),
        ("xnli", {"label": True}, ("label is True", "none of")),
        ("xcopa", {"question": "why"}, ("question is 'why'", "neither cause nor effect")),
        ("xquad", {"answers": {"text": [], "answer_start": []}}, ("column 'answers'", "no answer")),
        ("xquad", {"answers": "1820"}, ("column 'answers'", '"answer_start"')),
        ("xlsum", {"title": ""}, ("column 'title'", "empty")),
        ("mgsm", {"answer_number": "many"}, ("answer_number is 'many'", "no number")),
        ("mgsm", {"answer_number": None}, ("column 'answer_number'", "missing")),
    ],
)
def test_a_row_that_cannot_be_right_is_named(tmp_path, name, change, facts):
    first, *others = shipped_rows(name, "en")
    write_jsonl(tmp_path / "test.jsonl", [*others, {**first, **change}])
    with refused("/test.jsonl", "1 bad row", "/test.jsonl:8: ", *facts, mend="correct or remove"):
        load_examples(TASKS[name], Data(files="{split}.jsonl"), "en", "test", tmp_path)


UNITS = {
    "characters": lambda text: len(text),
    "bytes": lambda text: len(text.encode()),
    "UTF-16 units": lambda text: len(text.encode("utf-16-le")) // 2,
}


@given(
    lead=st.sampled_from(["", " ", "\n\u3000 "]),
    before=st.text("aé\U0001f600 ", max_size=12),
    after=st.text("aé\U0001f600 ", max_size=12),
    answer=st.sampled_from(["a", "aé", "\U0001f600", "é a", "a "]),
    unit=st.sampled_from(sorted(UNITS)),
    stripped=st.booleans(),
)
@example(
    lead=" ",
    before="é\U0001f600\U0001f600a",
    after="",
    answer="\U0001f600",
    unit="UTF-16 units",
    stripped=True,
)
def test_an_answer_is_found_where_the_row_says_or_not_at_all(lead, before, after, answer, unit, stripped):
    """However the place is counted; a place that counts characters, as SQuAD's do, is never moved."""
    context = f"{lead}{before}{answer}{after}"
    if not context.strip():
        return
    own = len(context) - len(context.lstrip())
    place = UNITS[unit](f"{lead}{before}"[own:] if stripped else f"{lead}{before}")
    task = TASKS["xquad"]
    row = {
        "id": "1",
        "context": context,
        "question": "?",
        "answers": {"text": [answer], "answer_start": [place]},
    }
    example = task.example(row, "en")
    (start,) = task.starts(row, replace(example, gold=task.gold(row, example)))
    gold, passage = answer.strip(), context.strip()
    sound = context.startswith(answer, place)
    assert start == -1 or passage.startswith(gold, start)
    if sound:
        assert start == place + answer.index(gold) - own
    elif start >= 0 and passage.count(gold) > 1:
        readings = {own + place, len(lead + before)}
        assert start + own - answer.index(gold) in readings | {
            index for index in range(len(context)) if any(UNITS[u](context[:index]) == place for u in UNITS)
        }


@pytest.mark.parametrize(
    ("answers", "starts"),
    [
        ({"text": ["red"], "answer_start": [15]}, (15,)),
        ({"text": ["red"], "answer_start": [7]}, (-1,)),
        ({"text": ["red"], "answer_start": [None]}, (-1,)),
        ({"text": ["red"]}, (-1,)),
        ({"text": ["book"], "answer_start": [2]}, (8,)),
        ({"text": ["blue"], "answer_start": [2]}, (-1,)),
        ({"text": ["red", "red"], "answer_start": [4, 15]}, (4,)),
    ],
)
def test_an_answer_that_stands_twice_is_never_taken_for_the_first_one(answers, starts):
    task = TASKS["xquad"]
    row = {"id": "1", "context": "the red book a red one", "question": "?", "answers": answers}
    example = task.example(row, "en")
    assert task.starts(row, replace(example, gold=task.gold(row, example))) == starts


@pytest.mark.parametrize("name", sorted(PROMPTED))
def test_rows_need_no_ids(tmp_path, name):
    """A row without one is called by its line; the columns that the table of tasks lists are all that it needs."""
    language = LANGUAGES[name][0]
    rows = [{key: value for key, value in row.items() if key != "id"} for row in shipped_rows(name, language)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    found = load_examples(TASKS[name], Data(files="{split}.jsonl"), language, "test", tmp_path)
    assert [example.id for example in found] == [str(line) for line in range(1, len(rows) + 1)]


@pytest.mark.parametrize("where", ["files", "hub"])
@pytest.mark.parametrize("names", [("positive", "negative", "neutral"), ("negative", "neutral", "positive")])
def test_classes_are_those_that_the_data_set_names(tmp_path, monkeypatch, where, names):
    """In its own order, which is not the task's."""
    features = datasets.Features({
        "id": datasets.Value("string"),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=list(names)),
    })  # fmt: skip
    rows = {"id": ["1", "2", "3"], "text": ["a", "b", "c"], "label": [0, 1, 2]}
    built = datasets.Dataset.from_dict(rows, features)
    if where == "files":
        built.to_parquet(str(tmp_path / "test.parquet"))
        data = Data(files="{split}.parquet")
    else:
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: built)
        data = Data(hub="some/set", revision="0" * 40)
    found = load_examples(TASKS["nusax"], data, "id", "test", tmp_path)
    assert [example.gold for example in found] == [(name,) for name in names]


@pytest.mark.parametrize(
    ("names", "label", "facts"),
    [
        (["neg", "neu", "pos"], 2, ("label is 'pos'", "none of 0 (negative)")),
        (["negative", "neutral", "positive"], -1, ("column 'label'", "missing")),
    ],
)
def test_classes_that_the_task_has_not_are_refused_by_name(tmp_path, names, label, facts):
    features = datasets.Features({
        "id": datasets.Value("string"),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=names),
    })  # fmt: skip
    built = datasets.Dataset.from_dict({"id": ["1"], "text": ["a"], "label": [label]}, features)
    built.to_parquet(str(tmp_path / "test.parquet"))
    with refused("/test.parquet", "/test.parquet row 1: ", *facts, mend="correct or remove"):
        load_examples(TASKS["nusax"], Data(files="{split}.parquet"), "id", "test", tmp_path)


@pytest.mark.parametrize("name", PROMPTED)
def test_parquet_and_json_lines_are_the_same_rows(tmp_path, name):

    language = LANGUAGES[name][0]
    rows = shipped_rows(name, language)
    write_jsonl(tmp_path / "test.jsonl", rows)
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "test.parquet"))
    read = [
        load_examples(TASKS[name], Data(files=f"{{split}}.{kind}"), language, "test", tmp_path)
        for kind in ("jsonl", "parquet")
    ]
    assert read[0] == read[1]
    assert len(read[0]) == 8


def test_a_class_is_told_by_name_and_by_number(tmp_path):
    rows = shipped_rows("xnli", "en")
    named = [{**row, "label": TASKS["xnli"].labels[row["label"]]} for row in rows]
    written = [{**row, "label": str(row["label"])} for row in rows]
    found = []
    for number, variant in enumerate((rows, named, written)):
        write_jsonl(tmp_path / f"{number}.jsonl", variant)
        data = Data(files=f"{number}.jsonl")
        found.append([row.gold for row in load_examples(TASKS["xnli"], data, "en", "train", tmp_path)])
    assert found[0] == found[1] == found[2]


REAL = [
    ("xnli", "xnli/{language}/test", "sw", 5010, ("contradiction",), None),
    ("xnli", "xnli/{language}/dev", "en", 2490, ("neutral",), None),
    ("xcopa", "xcopa/{language}/test", "sw", 500, ("choice1",), None),
    ("mgsm", "mgsm/{language}/test", "th", 250, ("18",), None),
    ("mgsm", "mgsm/{language}/train", "ru", 8, ("11",), "11"),
    ("xquad", "xquad/{language}/test", "de", 1190, ("308",), "308"),
    ("tydiqa-goldp", "tydiqa_goldp/{language}/dev", "sw", 499, None, None),
    ("nusax", "nusax/{language}/test", "jav", 400, None, None),
    ("nusatranslation", "nusatranslation/{language}/test", "min", 1200, None, None),
]


@pytest.mark.parametrize(("name", "place", "language", "count", "first", "parsed"), REAL)
def test_real_rows_are_read(name, place, language, count, first, parsed):
    path = SHARED / (place.format(language=language) + ".jsonl.gz")
    if not path.is_file():
        pytest.skip("real data lies in ../shared/data, which is not here")
    task = TASKS[name]
    rows = load_examples(task, Data(files=f"{place}.jsonl.gz"), language, "train", SHARED)
    assert len(rows) == count
    if first:
        assert rows[0].gold == first
    if parsed:
        assert task.parse(rows[0].answer, rows[0]) == parsed
    if task.labels:
        assert {row.gold[0] for row in rows} == set(task.labels)


def test_the_headings_of_every_real_exemplar_are_known():
    if not SHARED.is_dir():
        pytest.skip("real data lies in ../shared/data, which is not here")
    native = prompts_of("mgsm")["native"].languages
    for folder in (SHARED / "mgsm").iterdir():
        data = Data(files="mgsm/{language}/{split}.jsonl.gz")
        task = TASKS["mgsm"].asked("native", "target")
        rows = load_examples(task, data, folder.name, "train", SHARED)
        heading = native[folder.name].template.split("{")[0].strip()
        assert all(row.prompt.count(heading) == 1 for row in rows), folder.name
        assert not any(row.answer.startswith(row.prompt.splitlines()[-1][:6]) for row in rows)
        assert [task.parse(row.answer, row) for row in rows] == [row.gold[0] for row in rows], folder.name


def tasks_file(folder, more=MappingProxyType({}), **chosen):
    for language in ("en", "es"):
        for split in ("train", "test"):
            write_jsonl(folder / language / f"{split}.jsonl", shipped_rows("xnli", language))
    entry = {"task": "xnli", **chosen, "data": {"files": f"{folder}/{{language}}/{{split}}.jsonl"}}
    languages, scoring = {"source": "en", "targets": ["es"]}, {"max_length": 1024}
    raw = experiment(folder, tasks=[entry], languages=languages, scoring=scoring, **more)
    return write_experiment(folder / "experiment.yaml", raw)


def test_another_prompt_makes_other_steps_and_the_default_named_makes_the_same(tmp_path):
    def keys(**chosen):
        planned, _ = plan_of(tasks_file(tmp_path, **chosen), output=tmp_path / "run")
        return {step.key for step in planned.steps if step.kind == "adapter"}

    assert keys() == keys(prompt="adamergex", prompt_language="en")
    assert not keys() & keys(prompt="flare")
    assert not keys(prompt="flare") & keys(prompt="xlt")


@pytest.mark.parametrize(
    ("chosen", "where", "found", "mend"),
    [
        ({"prompt": "flair"}, "task 'xnli'", "'flair'", "flare"),
        ({"prompt_language": "target"}, "prompt 'adamergex' of task 'xnli'", "not there in 'es'", "another"),
        ({"prompt_language": "fr"}, "prompt 'adamergex' of task 'xnli'", "not there in 'fr'", "another"),
        ({"prompt_language": "frrr"}, "/experiment.yaml", "0.prompt_language: is no known language", "keys"),
    ],
)
def test_a_prompt_that_is_not_there_is_refused_before_anything_runs(tmp_path, chosen, where, found, mend):
    with refused(where, found, mend=mend):
        plan_of(tasks_file(tmp_path, **chosen), output=tmp_path / "run")


def test_a_task_with_one_prompt_has_none_to_choose(tmp_path):
    with refused("task 'mini-qa'", "no prompts", mend="leave `prompt`"):
        Examples("mini-qa", Data(files="x.jsonl"), tmp_path, prompt="flare").get_task()


def test_rows_that_do_not_ship_are_told():
    with refused("task 'xnli'", "'fr'", "de, en, es"):
        shipped_rows("xnli", "fr")
    with refused("task 'mini-qa'", "no rows"):
        shipped_rows("mini-qa", "en")
    assert shipped_languages("mini-qa") == ()
    assert shipped_rows("nusax", "jav") == shipped_rows("nusax", "jv")


@pytest.mark.parametrize("name", PROMPTED)
def test_a_task_is_trained_and_scored(bpe, tmp_path, name):
    """Two steps on eight rows, then eight answers of another language; its answers are what training learns."""
    from lingualift.config import Adapter

    learnt, scored = LANGUAGES[name][:2]
    task, rows = source(tmp_path, name, learnt).labelled(learnt, "test")
    _, tokenizer = load_backbone(bpe)
    longest = max(
        len(pair.prompt) + len(pair.answer)
        for pair in (encode_pair(tokenizer, row.prompt, row.answer, 512) for row in rows)
    )
    assert longest < 500
    initialise(bpe, Adapter(rank=2, alpha=4), 0, tmp_path / "start")
    train(
        bpe,
        task,
        rows,
        Training(steps=2, batch_size=8, max_length=512),
        start=tmp_path / "start",
        seed=0,
        output=tmp_path / "adapter",
        work=tmp_path / "work",
        language=learnt,
    )
    asked = source(tmp_path, name, scored).rows(scored, "test")
    short = type(task)()
    short.max_new_tokens = 4
    found = evaluate(bpe, tmp_path / "adapter", short, asked, Scoring())
    assert len(found.predictions) == 8
    assert list(found.scores) == list(task.metrics)
    assert found.truncated == 0
    perfect = [Example(row.id, row.prompt, row.gold) for row in asked]
    assert [one.gold for one in found.predictions] == [one.gold for one in perfect]
    if task.labels:
        assert found.malformed == 0
        assert score(task, found.predictions, len(task.labels), scored)["accuracy"]["chance"] == 100 / len(
            task.labels
        )


def test_the_experiment_keeps_the_prompt(tmp_path):
    chosen = load_experiment(tasks_file(tmp_path, prompt="xlt", prompt_language="target")).tasks[0]
    assert (chosen.prompt, chosen.prompt_language) == ("xlt", "target")


def test_an_answer_as_long_as_all_the_room_is_refused_before_training(tmp_path):
    for language in ("en", "es"):
        for split in ("train", "test"):
            write_jsonl(tmp_path / language / f"{split}.jsonl", shipped_rows("mgsm", language))
    entry = {"task": "mgsm", "data": {"files": f"{tmp_path}/{{language}}/{{split}}.jsonl"}}
    raw = experiment(tmp_path, tasks=[entry], languages={"source": "en", "targets": ["es"]})
    path = write_experiment(tmp_path / "experiment.yaml", raw)
    with refused("scoring.max_length", "512 tokens", mend="1024"):
        plan_of(path, output=tmp_path / "run")
    plan_of(path, overrides=["scoring.max_length=1024"], output=tmp_path / "run")


def test_xlt_asks_the_backbone_and_the_adapter_that_source_ft_has(tmp_path, bpe_folder):
    """The adapter is source-ft's own; the plain backbone is asked once for all seeds; what is malformed is told."""
    methods = ["vanilla", "source-ft", "xlt", {"method": "xlt", "ask": "source-ft"}]
    more = {"backbone": {"name": str(bpe_folder)}, "methods": methods, "seeds": [0, 1]}
    path = tasks_file(tmp_path, more)
    planned, _ = plan_of(path, output=tmp_path / "run")
    trained = [step for step in planned.steps if step.kind == "adapter"]
    assert len(trained) == 2  # one per seed, for source-ft and xlt alike
    asked = {}
    for cell in planned.cells:
        name = cell.cell.method.method, cell.cell.method.variant("lora")
        asked.setdefault(name, []).append(cell.evaluation)
        rows = cell.evaluation.dataset.rows(cell.cell.language, "test")
        assert ("step-by-step" in rows[0].prompt) == (name[0] == "xlt")
        assert cell.evaluation.adapter in (None, *trained)
    assert {name: len(found) for name, found in asked.items()} == {
        ("vanilla", ""): 2,
        ("source-ft", ""): 4,
        ("xlt", "vanilla"): 2,
        ("xlt", "source-ft"): 4,
    }


def test_xlt_needs_tasks_that_have_its_prompt(tmp_path):
    with refused("task 'nusax'", "'xlt'", mend="flare"):
        Examples("nusax", Data(files="x.jsonl"), tmp_path, prompt="xlt").get_task()


def test_a_run_with_xlt_tells_what_is_malformed(tmp_path, bpe_folder, monkeypatch):
    import lingualift

    monkeypatch.setattr(TASKS["xnli"].__class__, "max_new_tokens", 4)
    templates = {**prompts_of("xnli")}
    templates["xlt"] = replace(templates["xlt"], max_new_tokens=4)
    monkeypatch.setattr("lingualift.tasks.prompts.prompts_of", lambda task: templates)
    methods = ["source-ft", "xlt", {"method": "xlt", "ask": "source-ft"}]
    path = tasks_file(tmp_path, {"backbone": {"name": str(bpe_folder)}, "methods": methods})
    run = lingualift.run(path, output=tmp_path / "run")
    rows = {
        (row["method"], row["variant"], row["language"]): row
        for row in run.rows
        if row["metric"] == "accuracy"
    }
    assert rows["xlt", "vanilla", "es"]["malformed"] == 8
    assert rows["xlt", "vanilla", "es"]["score"] == 0
    assert rows["source-ft", "", "es"]["malformed"] == 0
    assert rows["xlt", "source-ft", "es"]["seed"] == 0
    assert rows["xlt", "vanilla", "es"]["seed"] is None
    assert len({row["chance"] for row in rows.values()}) == 1


@pytest.mark.parametrize("name", ["xnli", "xcopa", "nusax"])
def test_classes_are_generated_where_the_experiment_says_so(bpe, tmp_path, name):
    """As in the papers: the first line is a label word, or the answer is malformed."""
    code = LANGUAGES[name][0]
    asked = Examples(name, source(tmp_path, name, code).data, tmp_path, generated=True)
    task, rows = asked.labelled(code, "test")
    words = task.prompt_for(code).labels
    ranked = source(tmp_path, name, code).rows(code, "test")
    for row, other in zip(rows, ranked, strict=True):
        assert row.choices == {}
        assert (row.prompt, row.gold) == (other.prompt, other.gold)
        assert row.answer == other.answer == words[row.gold[0]]
        for label, word in words.items():
            for text in (word, f" {word}\nmore", f'"{word.upper()}".'):
                assert task.parse(text, row) == label
        for text in ("", "I think it is " + words[row.gold[0]], "none of these", row.prompt):
            assert task.parse(text, row) is None
    task.max_new_tokens = 4
    found = evaluate(bpe, None, task, rows, Scoring())
    assert found.malformed == sum(one.prediction is None for one in found.predictions)
    assert all(one.text is not None for one in found.predictions)
    assert found.scores[task.metrics[0]]["chance"] == pytest.approx(
        evaluate(bpe, None, TASKS[name], ranked, Scoring()).scores[task.metrics[0]]["chance"]
    )


def test_answers_of_a_task_without_classes_are_generated_anyway():
    with refused("task 'xquad'", "no classes", mend="`answers`"):
        labelled_task("xquad", generated=True)
    with refused("task 'mini-sentiment'", "no prompts", mend="leave `prompt`"):
        labelled_task("mini-sentiment", generated=True)
