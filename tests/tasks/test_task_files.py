"""Task files that raise or answer what no task may: one message each, with file, line, attribute and what is right."""

import json
import signal
from dataclasses import replace

import pytest

from builders import refusals
from builders.worlds import write_jsonl
from lingualift.config import Data
from lingualift.data.rows import load_examples, load_questions
from lingualift.encoding.heads import head_of
from lingualift.tasks import TASKS, Example, TaskError, get_task, task_code

ROWS = [
    {"id": "1", "text": "so good", "label": "positive", "answers": ["so", "so good"]},
    {"id": "2", "text": "so bad", "label": "negative", "answers": ["bad"]},
]
FILE = """from lingualift.tasks import TASKS, Example, RowError, Task, TextTask
WORDS = {"positive": "good", "negative": "bad"}
class Mine(Task):
    columns = ("id", "text")
    gold_column = "label"
    metrics = ("accuracy",)
    source = "a test"
    def example(self, row, language):
        return Example(row["id"], row["text"], choices=WORDS)
TASKS.register("NAME")(Mine())
"""
RANKED = '        return Example(row["id"], row["text"], choices=WORDS)'
FREE = "        return Example(row['id'], row['text'])"
_made = iter(range(10**6))


@pytest.fixture
def written(tmp_path):
    """Writes a task file under a name of its own; gives its path."""
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    before = set(TASKS)

    def write(text):
        name = f"mine_{next(_made)}"
        (tmp_path / f"{name}.py").write_bytes(
            text if isinstance(text, bytes) else text.replace("NAME", name).encode("utf-8", "surrogatepass")
        )
        return tmp_path / f"{name}.py"

    yield write
    for name in set(TASKS) - before:
        del TASKS[name]


def changed(old, new):
    assert FILE.count(old) == 1
    return FILE.replace(old, new)


def answering(line):
    return FILE.replace(RANKED, line)


def with_lines(*lines, free=False):
    text = answering(FREE) if free else FILE
    return text.replace("TASKS.register", "".join(f"    {line}\n" for line in lines) + "TASKS.register")


def load(path, language="en"):
    return load_examples(get_task(str(path)), Data(files="train.jsonl"), language, "train", path.parent)


def refused(path, line, *found, mend, ask=load):
    """What the file asks for is refused at its line, or as a whole, in one line beside the mend."""
    with refusals.refused(path.name, *found, mend=mend) as told:
        ask(path)
    assert told.value.where == f"{path}{line}"
    assert "\n" not in told.value.found + told.value.expected


NAMED, INSTANCE = "TASKS.register", "no instance of Task or TextTask"
CODE = [  # what is run, the line that is named, what is said and the mend
    ("def (", ":1", ("SyntaxError",), "correct"),
    (b"x = 1\ny = '\xff'\n", ":2", ("SyntaxError",), "correct"),
    (b"x = 1\0", "", ("SyntaxError",), "correct"),
    ("raise SystemExit", ":1", ("SystemExit",), "correct"),
    ("import sys\nsys.exit(0)", ":2", ("SystemExit: 0",), "correct"),
    ("import argparse\nargparse.ArgumentParser().parse_args(['x'])", ":2", ("SystemExit: 2",), "correct"),
    ("\nraise KeyboardInterrupt", ":2", ("KeyboardInterrupt",), "correct"),
    ("raise BaseException('x')", ":1", ("BaseException: x",), "correct"),
    ("raise GeneratorExit", ":1", ("GeneratorExit",), "correct"),
    ("raise StopIteration", ":1", ("StopIteration",), "correct"),
    ("def f():\n    f()\nf()", ":2", ("RecursionError",), "correct"),
    ("raise MemoryError", ":1", ("MemoryError",), "correct"),
    ("raise ValueError('a\\nb\\ud800')", ":1", (r"ValueError: a b\ud800",), "correct"),
    (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd",
        ":4",
        (": Odd",),
        "correct",
    ),
    ("import nowhere", ":1", ("ModuleNotFoundError",), "correct"),
    (FILE.replace('"NAME"', "None"), "", ("name None", "text"), NAMED),
    (FILE.replace('"NAME"', "7"), "", ("name 7, an int", "text"), NAMED),
    (FILE.replace('"NAME"', "' '"), "", ("name ' '", "text"), NAMED),
    (FILE.replace("Mine())", "42)"), "", ("registers 42, an int", INSTANCE), "register one"),
    (FILE.replace("Mine())", "Mine)"), "", ("registers Mine", INSTANCE), "register Mine()"),
    (
        FILE.replace("Mine())", "object.__new__(type('X', (), {'__repr__': None})))"),
        "",
        ("registers , a X", INSTANCE),
        "register one",
    ),
]


@pytest.mark.parametrize(("text", "line", "found", "mend"), CODE)
def test_a_file_that_cannot_be_run_is_one_message_and_leaves_nothing_registered(
    written, text, line, found, mend
):
    before, path = list(TASKS), written(text)
    for _ in range(2):  # the second time says the same
        refused(path, line, *found, mend=mend, ask=lambda path: get_task(path.name, path.parent))
    assert list(TASKS) == before


NAMES = "a tuple of names, each of them once"
ATTRIBUTES = [  # what is changed, into what, what is said, what is right and the mend
    ('columns = ("id", "text")', "columns = 'text'", "'text', a str", NAMES, "correct"),
    ('columns = ("id", "text")', "columns = None", "is None", NAMES, "correct"),
    ('columns = ("id", "text")', "columns = ()", "(), a tuple", NAMES, "correct"),
    ('columns = ("id", "text")', "columns = (1, 2)", "(1, 2), a tuple", NAMES, "correct"),
    ('columns = ("id", "text")', "columns = {'id', 'text'}", "a set", NAMES, "correct"),
    ('columns = ("id", "text")', "columns = ('text', 'text')", "('text', 'text')", NAMES, "correct"),
    ('columns = ("id", "text")', "columns = ('id', ' ')", "('id', ' ')", NAMES, "correct"),
    ('columns = ("id", "text")', "columns = ('id', '\\ud800')", r"('id', '\ud800')", NAMES, "correct"),
    ('gold_column = "label"', "gold_column = None", "is None", "the name of a column", "correct"),
    ('gold_column = "label"', "gold_column = ('label',)", "('label',), a tuple", "the name", "correct"),
    ('metrics = ("accuracy",)', "metrics = 'accuracy'", "'accuracy', a str", NAMES, "correct"),
    ('metrics = ("accuracy",)', "metrics = {'accuracy'}", "{'accuracy'}, a set", NAMES, "correct"),
    ('metrics = ("accuracy",)', "metrics = ('accuracy', 'accuracy')", "('accuracy', ", NAMES, "correct"),
    ('metrics = ("accuracy",)', "metrics = (1,)", "(1,), a tuple", NAMES, "correct"),
    ('metrics = ("accuracy",)', "metrics = ('acuracy',)", "metric 'acuracy'", "not known", "accuracy?"),
    ('source = "a test"', "source = 5", "5, an int", "a paper or a URL", "correct"),
]
NUMBER, HEADS = "a whole number from 1 to ", "classes, choices, span or None"
MORE = [  # what is added, and of what is said what, and what is right
    ("max_new_tokens = 0", "max_new_tokens", "is 0, an int", NUMBER),
    ("max_new_tokens = '5'", "max_new_tokens", "'5', a str", NUMBER),
    ("max_new_tokens = True", "max_new_tokens", "is True", NUMBER),
    ("max_new_tokens = 10**30", "max_new_tokens", f"{10**30}, an int", NUMBER),
    ("encoder_head = 'nope'", "encoder_head", "'nope', a str", HEADS),
    ("encoder_head = ['classes']", "encoder_head", "['classes'], a list", HEADS),
    ("labels = 'positive'", "labels", "'positive', a str", NAMES),
    ("labels = None", "labels", "is None", NAMES),
    ("text_columns = ('txt',)", "text_columns", "'txt'", "some of `columns`: id, text"),
    ("written_columns = 'why'", "written_columns", "'why', a str", NAMES),
    ("passage_column = 5", "passage_column", "5, an int", "the name of a column, or None"),
    ("example = 5", "example", "cannot be called", "def example(self, row, language)"),
    ("def parse(self, text): return text", "parse", "cannot be called", "def parse(self, text, example)"),
    ("gold = property(lambda self: 1 / 0)", "gold", "fails: ZeroDivisionError", ""),
    ("labels = property(lambda self: 1 / 0)", "labels", "fails: ZeroDivisionError", ""),
    ("__slots__ = ('a',)\n    def __init__(self): self.labels = 'x'", "labels", "'x', a str", NAMES),
]


@pytest.mark.parametrize(("old", "new", "found", "right", "mend"), ATTRIBUTES)
def test_an_attribute_that_is_wrong_is_told_with_its_line(written, old, new, found, right, mend):
    line = FILE[: FILE.index(old)].count("\n") + 1
    refused(written(changed(old, new)), f":{line}", f"`{old.split()[0]}` of Mine", found, right, mend=mend)


@pytest.mark.parametrize(("line", "name", "found", "right"), MORE)
def test_an_attribute_that_a_task_may_set_is_checked_too(written, line, name, found, right):
    place = ":3" if "__init__" in line else ":10"
    refused(written(with_lines(line)), place, f"`{name}` of Mine", found, right, mend="correct")


EITHER, TUPLE, WORDED = "the task or the row", "return a tuple", 'write {"yes": "yes", "no": "no"}'
EXAMPLES = [  # what is run, what is said and the mend
    ("raise ValueError('x')", "fails: ValueError: x", EITHER),
    ("import sys; sys.exit(0)", "fails: SystemExit: 0", EITHER),
    ("raise KeyboardInterrupt", "fails: KeyboardInterrupt", EITHER),
    ("raise StopIteration", "fails: StopIteration", EITHER),
    ("raise MemoryError", "fails: MemoryError", EITHER),
    ("return self.example(row, language)", "fails: RecursionError", EITHER),
    ("return row['nope']", "fails: KeyError: 'nope'", EITHER),
    ("return None", "gives None", "return Example"),
    ("yield None", "a generator", "return Example"),
    ("return ('1', 'x')", "gives ('1', 'x'), a tuple", "return Example"),
    ("return Example(5, 'x', choices=WORDS)", "gives id 5, an int", 'str(row["id"])'),
    ("return Example('', 'x', choices=WORDS)", "gives id ''", 'str(row["id"])'),
    ("return Example('\\ud800', 'x', choices=WORDS)", "which holds half of a character", 'str(row["id"])'),
    ("return Example('1', None, choices=WORDS)", "gives prompt None", "correct"),
    ("return Example('1', b'x', choices=WORDS)", "gives prompt b'x', a bytes", "correct"),
    ("return Example('1', ' ', choices=WORDS)", "gives prompt ' ', a str", "correct"),
    ("return Example('1', 'x', choices=['a', 'b'])", "gives choices ['a', 'b'], a list", WORDED),
    ("return Example('1', 'x', choices={'a', 'b'})", "a set", WORDED),
    ("return Example('1', 'x', choices={'a': 1, 'b': 2})", "choices {'a': 1, 'b': 2}, a dict", WORDED),
    ("return Example('1', 'x', choices={1: 'a', 0: 'b'})", "choices {1: 'a', 0: 'b'}", WORDED),
    ("return Example('1', 'x', choices={'a': 'x', 'b': ' '})", "choices {'a': 'x', 'b': ' '}", WORDED),
    ("return Example('1', 'x', choices={'a': 'x', 'b': 'x '})", "different words", "words of its own"),
    ("return Example('1', 'x', choices=None)", "gives choices None", WORDED),
    ("return Example('1', 'x', WORDS)", "gold {'positive': 'good', 'negative': 'bad'}, a dict", TUPLE),
    ("return Example('1', 'x', choices=WORDS, parts='x')", "gives parts 'x', a str", TUPLE),
    ("return Example('1', 'x', choices=WORDS, parts=(5,))", "gives parts (5,), a tuple", TUPLE),
    ("return Example('1', 'x', choices=WORDS, options='x')", "gives options 'x', a str", WORDED),
    ("return Example('1', 'x', choices=WORDS, completion=5)", "gives completion 5, an int", "correct"),
    ("return Example('1', 'x', choices=WORDS, starts=(1,))", "gives starts (1,), a tuple", "leave it out"),
    ("return Example('1', 'x', choices=WORDS, source=5)", "gives source 5, an int", "leave it out"),
]


@pytest.mark.parametrize(("line", "found", "mend"), EXAMPLES)
@pytest.mark.parametrize("ask", [load, "questions"])
def test_an_example_that_is_none_is_told_with_task_and_row(written, line, found, mend, ask):
    def questions(path):
        load_questions(get_task(str(path)), Data(files="train.jsonl"), "en", "train", path.parent)

    path, place = written(answering(f"        {line}")), ":9" if "fails" in found else ":8"
    ask = load if ask is load else questions
    refused(path, place, "`example` of Mine", found, "train.jsonl:1)", mend=mend, ask=ask)


GOLDS = [  # what is run, what is said, what is right and the mend
    ("return 'positive'", "'positive', a str", "a tuple of accepted answers, each of them text", TUPLE),
    ("return None", "gives None", "a tuple", TUPLE),
    ("return ()", "gives (), a tuple", "a tuple", TUPLE),
    ("return (1,)", "gives (1,), a tuple", "each of them text", TUPLE),
    ("return {'positive'}", "gives {'positive'}, a set", "a tuple", "sets and generators have no order"),
    ("yield 'positive'", "a generator", "a tuple", "sets and generators have no order"),
    ("return ('nope',)", "gives 'nope'", "some of positive, negative", "or the row"),
    ("return ('positive', 'good')", "gives 'good'", "some of positive, negative", "or the row"),
    ("raise KeyError('x')", "fails: KeyError: 'x'", "", EITHER),
]


@pytest.mark.parametrize(("line", "found", "right", "mend"), GOLDS)
def test_a_gold_that_is_no_tuple_of_answers_is_refused(written, line, found, right, mend):
    path = written(with_lines(f"def gold(self, row, example): {line}"))
    refused(path, ":10", "`gold` of Mine", found, right, "train.jsonl:1)", mend=mend)


def test_text_for_a_tuple_of_answers_does_not_score_by_its_letters(written):
    line = "def gold(self, row, example): return row['answers'][0]"
    refused(written(with_lines(line, free=True)), ":10", "gives 'so', a str", mend=TUPLE)


STARTS, PARSED = "a tuple of 1 whole numbers, or none", "text or None"
METHODS = [  # what is added, what is said, what is right and the mend
    ("def completion(self, row, example): raise ValueError('c')", "fails: ValueError: c", "", EITHER),
    ("def completion(self, row, example): return None", "gives None", "text", 'return ""'),
    ("def completion(self, row, example): return 5", "gives 5, an int", "text", 'return ""'),
    ("def starts(self, row, example): return 'x'", "gives 'x', a str", STARTS, "correct"),
    ("def starts(self, row, example): return (1, 2)", "gives (1, 2)", STARTS, "correct"),
    ("def starts(self, row, example): return (True,)", "gives (True,)", STARTS, "correct"),
    ("def parse(self, text, example): raise ValueError('p')", "fails: ValueError: p", "", "correct"),
    ("def parse(self, text, example): raise RowError('p')", "fails: RowError: p", "", "correct"),
    ("def parse(self, text, example): return text.splitlines()[0]", "fails: IndexError", "", "correct"),
    ("def parse(self, text, example): return 5", "5, an int (example '1', answer '')", PARSED, "return None"),
    ("def parse(self, text, example): return [text]", "gives [''], a list", PARSED, "return None"),
    ("def parse(self, text, example): return '\\ud800'", "half of a character", PARSED, "return None"),
    ("def parse(self, text, example): exit()", "fails: SystemExit", "", "correct"),
]


@pytest.mark.parametrize(("line", "found", "right", "mend"), METHODS)
def test_the_other_methods_are_checked_before_anything_is_trained(written, line, found, right, mend):
    name = line[len("def ") : line.index("(")]
    refused(written(with_lines(line, free=True)), ":10", f"`{name}` of Mine", found, right, mend=mend)


def test_an_answer_that_is_misread_later_is_told_with_its_example(written):
    line = "def parse(self, text, example): return int(text or 0) or None"
    task, example = get_task(str(written(with_lines(line, free=True)))), Example("7", "How many?")
    assert task.parse("", example) is None
    for text, found, mend in (("x", "fails: ValueError: ", "correct"), ("3", "3, an int ", "return None")):
        with refusals.refused("py:10", "`parse`", found, f"(example '7', answer '{text}')", mend=mend):
            task.parse(text, example)


def test_rows_are_ranked_all_or_none(written):
    line = "        return Example(row['id'], row['text'], choices=WORDS if row['id'] == '1' else {})"
    refused(written(answering(line)), ":8", "all rows or none", "train.jsonl:2)", mend="correct")
    path = written(with_lines("def gold(self, row, example): return ('positive',)"))
    path.write_text(path.read_text().replace(RANKED, line.replace("row['id'] == '1'", "language == 'en'")))
    assert load(path)[0].choices
    assert not load(path, "fr")[0].choices  # each language by itself


def test_labels_and_choices_are_the_same_classes(written):
    path = written(with_lines("labels = ('positive',)"))
    refused(path, ":8", "all of `labels`: positive", mend="leave `labels` out")


def test_what_an_encoder_reads_is_there(written):
    kinds = [
        ("span", "parts=('Who?',)", "('Who?',)", "a question and its passage"),
        ("span", "parts=('Who?', ' ')", "('Who?', ' ')", "a question and its passage"),
        ("choices", "choices=WORDS, parts=('a',)", "no options", "the texts to choose from"),
        ("classes", "choices=WORDS, parts=('a', 'b', 'c')", "3 parts", "one text, or two"),
    ]
    for kind, given, *found in kinds:
        text = answering(f"        return Example(row['id'], row['text'], {given})")
        path = written(text.replace("    source =", f"    encoder_head = '{kind}'\n    source ="))
        with refusals.refused("task 'mine', example '1'", *found, mend="decoder"):
            head_of("encoder", get_task(str(path)), load(path), "mine")
        assert head_of("decoder", get_task(str(path)), load(path), "mine").kind == "words"


def test_a_signal_is_not_taken_for_the_tasks_own_doing(written):
    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    line = "        import signal; signal.raise_signal(signal.{})"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            load(written(answering(line.format("SIGINT"))))
    finally:
        signal.signal(signal.SIGINT, before)
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stopped):
            load(written(answering(line.format("SIGUSR1"))))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_is_right_stays_as_it_was(written):
    found = load(written(FILE))
    assert [(one.id, one.prompt, one.gold, one.choices) for one in found] == [
        ("1", "so good", ("positive",), {"positive": "good", "negative": "bad"}),
        ("2", "so bad", ("negative",), {"positive": "good", "negative": "bad"}),
    ]
    lists = with_lines(
        "labels = ['positive', 'negative']", "def gold(self, row, example): return [row['label']]"
    )
    assert load(written(lists))[1].gold == ("negative",)
    several = with_lines("def gold(self, row, example): return tuple(row['answers'])", free=True)
    task = get_task(str(written(several)))
    assert (type(task).__name__, task.metrics, task.parse("a\nb", Example("1", "x"))) == (
        "Mine",
        ("accuracy",),
        "a",
    )
    assert load(written(several))[0].gold == ("so", "so good")


def test_a_subclass_of_a_shipped_task_keeps_its_prompts_and_is_checked(written):
    text = (
        FILE[: FILE.index("class")]
        + "from lingualift.tasks.xnli import XNLI\nclass Mine(XNLI):\n"
        + "    def gold(self, row, example): return 'neutral'\n"
    )
    task = get_task(str(written(text + "TASKS.register('NAME')(Mine())\n"))).asked("flare", "en")
    row = {"id": "1", "premise": "A", "hypothesis": "B", "label": "neutral"}
    assert task.prompt == "flare"
    with pytest.raises(TaskError, match="`gold` of Mine gives 'neutral', a str"):
        task.gold(row, replace(task.example(row, "en")))


def test_a_task_over_text_has_one_column(written):
    text = "from lingualift.tasks import TASKS, TextTask\nclass T(TextTask):\n    columns = ('a', 'b')\n"
    text += "    source = 'x'\n"
    path = written(text + "TASKS.register('NAME')(T())\n")
    refused(path, ":3", "`columns` of T is ('a', 'b')", "one column", mend="correct")
    odd = text.replace("('a', 'b')", "('a',)") + "    objective = 'nope'\nTASKS.register('NAME')(T())\n"
    refused(written(odd), ":5", "`objective` of T is 'nope'", mend="correct")


def test_a_task_that_a_script_registers_is_checked_too(tmp_path):
    scope = {}
    exec(
        compile(FILE.replace("NAME", "typed-in").replace('("accuracy",)', '"accuracy"'), "typed", "exec"),
        scope,
    )
    try:
        with pytest.raises(TaskError, match="task 'typed-in': `metrics` of Mine is 'accuracy', a str"):
            get_task("typed-in")
        del scope["Mine"].metrics
        scope["Mine"].metrics = ("accuracy",)
        assert get_task("typed-in").metrics == ("accuracy",)
        assert task_code("typed-in") == ""
    finally:
        del TASKS["typed-in"]


def test_a_name_that_no_file_can_have_is_not_there(tmp_path):
    for name in ("a" * 300 + ".py", "a\0b.py"):
        with refusals.refused(name, "not there", mend="check the path"):
            get_task(name, tmp_path)


def test_every_command_says_it_in_one_message(cli, inside, written):
    text = with_lines("def gold(self, row, example): return 'positive'")
    exits, text = written("import sys\nsys.exit(0)\n"), written(text)
    head = "backbone: {name: miniworld}\nlanguages: {source: en, targets: [sw]}\nmethods: [vanilla]\n"
    head += "training: {task: {steps: 1}}\nworkers: 1\n"

    for language in ("en", "sw"):
        write_jsonl(inside / language / "test.jsonl", ROWS)

    def commands(path):
        entry = {"task": str(path), "data": {"files": "{language}/{split}.jsonl"}}
        (inside / f"{path.stem}.yaml").write_text(f"{head}tasks: [{json.dumps(entry)}]\n")
        asked = ("--backbone", "miniworld", "--task", path, "--language", "sw")
        yield "evaluate", *asked, "--data", "{split}.jsonl", "--split", "train", "--output", "o.json"
        yield "train", *asked, "--data", "train.jsonl", "--steps", "1", "--output", "o"
        for command in ("plan", "check", "run"):
            yield command, f"{path.stem}.yaml", *(("--output", "o") if command == "run" else ())
        if path is exits:
            where = ("--task", path, "--data", "{split}.jsonl", "--output", "o")
            yield "translate", "--model", "miniworld", "--source", "en", "--target", "sw", *where
            yield "predict", *asked, "--input", "train.jsonl", "--output", "o.jsonl"
            yield "init", "--task", path

    for path, said in (
        (exits, ":2: the file fails when it is run: SystemExit: 0"),
        (text, ":10: `gold` of Mine gives"),
    ):
        for command in commands(path):
            done = cli(*command)
            assert f"{path}{said}" in done.message, command
            assert not list(inside.glob("o*")), command
