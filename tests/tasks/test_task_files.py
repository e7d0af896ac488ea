"""Task files that raise or answer what no task may: one message each, with file, line, attribute and what is right."""

import json
import signal
from dataclasses import replace

import pytest

from builders.worlds import write_jsonl
from lingualift.config import Data
from lingualift.data.rows import load_examples, load_questions
from lingualift.encoding.heads import head_of
from lingualift.errors import UserError
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


def refused(path, ask=load):
    with pytest.raises(UserError) as caught:
        ask(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert caught.value.mend
    assert "\n" not in message.removesuffix(f"\n  mend: {caught.value.mend}")
    return message.removeprefix(str(path))


CODE = [  # what is run, the line that is named, what is said
    ("def (", ":1:", "SyntaxError"),
    (b"x = 1\ny = '\xff'\n", ":2:", "SyntaxError"),
    (b"x = 1\0", ":", "SyntaxError"),
    ("raise SystemExit", ":1:", "SystemExit"),
    ("import sys\nsys.exit(0)", ":2:", "SystemExit: 0"),
    ("import argparse\nargparse.ArgumentParser().parse_args(['x'])", ":2:", "SystemExit: 2"),
    ("\nraise KeyboardInterrupt", ":2:", "KeyboardInterrupt"),
    ("raise BaseException('x')", ":1:", "BaseException: x"),
    ("raise GeneratorExit", ":1:", "GeneratorExit"),
    ("raise StopIteration", ":1:", "StopIteration"),
    ("def f():\n    f()\nf()", ":2:", "RecursionError"),
    ("raise MemoryError", ":1:", "MemoryError"),
    ("raise ValueError('a\\nb\\ud800')", ":1:", r"ValueError: a b\ud800"),
    ("class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd", ":4:", "run: Odd"),
    ("import nowhere", ":1:", "ModuleNotFoundError"),
    (FILE.replace('"NAME"', "None"), ":", "registers a task by the name None; expected text"),
    (FILE.replace('"NAME"', "7"), ":", "name 7, an int"),
    (FILE.replace('"NAME"', "' '"), ":", "by the name ' '"),
    (FILE.replace("Mine())", "42)"), ":", "registers 42, an int as"),
    (FILE.replace("Mine())", "Mine)"), ":", "no instance of Task or TextTask"),
    (FILE.replace("Mine())", "object.__new__(type('X', (), {'__repr__': None})))"), ":", "registers , a"),
]


@pytest.mark.parametrize(("text", "line", "said"), CODE)
def test_a_file_that_cannot_be_run_is_one_message_and_leaves_nothing_registered(written, text, line, said):
    before, path = list(TASKS), written(text)
    for _ in range(2):  # the second time says the same
        message = refused(path, lambda path: get_task(path.name, path.parent))
        assert message.startswith(line)
        assert said in message
    assert list(TASKS) == before


ATTRIBUTES = [
    (
        'columns = ("id", "text")',
        "columns = 'text'",
        "`columns` of Mine is 'text', a str; expected a tuple of names",
    ),
    ('columns = ("id", "text")', "columns = None", "`columns` of Mine is None; expected"),
    ('columns = ("id", "text")', "columns = ()", "is (), a tuple; expected"),
    ('columns = ("id", "text")', "columns = (1, 2)", "is (1, 2), a tuple; expected"),
    ('columns = ("id", "text")', "columns = {'id', 'text'}", "a set; expected a tuple"),
    ('columns = ("id", "text")', "columns = ('text', 'text')", "each of them once"),
    ('columns = ("id", "text")', "columns = ('id', ' ')", "`columns` of Mine"),
    ('columns = ("id", "text")', "columns = ('id', '\\ud800')", "`columns` of Mine"),
    (
        'gold_column = "label"',
        "gold_column = None",
        "`gold_column` of Mine is None; expected the name of a column",
    ),
    ('gold_column = "label"', "gold_column = ('label',)", "`gold_column` of Mine is ('label',), a tuple"),
    ('metrics = ("accuracy",)', "metrics = 'accuracy'", "`metrics` of Mine is 'accuracy', a str"),
    ('metrics = ("accuracy",)', "metrics = {'accuracy'}", "`metrics` of Mine is {'accuracy'}, a set"),
    ('metrics = ("accuracy",)', "metrics = ('accuracy', 'accuracy')", "each of them once"),
    ('metrics = ("accuracy",)', "metrics = (1,)", "`metrics` of Mine is (1,), a tuple"),
    ('metrics = ("accuracy",)', "metrics = ('acuracy',)", "metric 'acuracy', which is not known"),
    ('source = "a test"', "source = 5", "`source` of Mine is 5, an int; expected a paper or a URL"),
]
MORE = [
    ("max_new_tokens = 0", "`max_new_tokens` of Mine is 0, an int; expected a whole number from 1 to"),
    ("max_new_tokens = '5'", "`max_new_tokens` of Mine is '5', a str"),
    ("max_new_tokens = True", "`max_new_tokens` of Mine is True; expected"),
    ("max_new_tokens = 10**30", "`max_new_tokens` of Mine"),
    (
        "encoder_head = 'nope'",
        "`encoder_head` of Mine is 'nope', a str; expected classes, choices, span or None",
    ),
    ("encoder_head = ['classes']", "`encoder_head` of Mine"),
    ("labels = 'positive'", "`labels` of Mine is 'positive', a str"),
    ("labels = None", "`labels` of Mine is None"),
    ("text_columns = ('txt',)", "`text_columns` of Mine names 'txt'; expected some of `columns`: id, text"),
    ("written_columns = 'why'", "`written_columns` of Mine is 'why', a str"),
    ("passage_column = 5", "`passage_column` of Mine is 5, an int"),
    ("example = 5", "`example` of Mine cannot be called as it is; expected def example(self, row, language)"),
    ("def parse(self, text): return text", "expected def parse(self, text, example)"),
    ("gold = property(lambda self: 1 / 0)", "`gold` of Mine"),
    ("labels = property(lambda self: 1 / 0)", "`labels` of Mine fails: ZeroDivisionError"),
    ("__slots__ = ('a',)\n    def __init__(self): self.labels = 'x'", "`labels` of Mine is 'x', a str"),
]


@pytest.mark.parametrize(("old", "new", "said"), ATTRIBUTES)
def test_an_attribute_that_is_wrong_is_told_with_its_line(written, old, new, said):
    message = refused(written(changed(old, new)))
    assert said in message
    assert message.startswith(f":{FILE[: FILE.index(old)].count(chr(10)) + 1}:")


@pytest.mark.parametrize(("line", "said"), MORE)
def test_an_attribute_that_a_task_may_set_is_checked_too(written, line, said):
    message = refused(written(with_lines(line)))
    assert said in message
    assert message.startswith((":10:", ":3:"))


EXAMPLES = [
    ("raise ValueError('x')", "`example` of Mine fails: ValueError: x"),
    ("import sys; sys.exit(0)", "`example` of Mine fails: SystemExit: 0"),
    ("raise KeyboardInterrupt", "`example` of Mine fails: KeyboardInterrupt"),
    ("raise StopIteration", "fails: StopIteration"),
    ("raise MemoryError", "fails: MemoryError"),
    ("return self.example(row, language)", "fails: RecursionError"),
    ("return row['nope']", "fails: KeyError: 'nope'"),
    ("return None", "gives None"),
    ("yield None", "a generator"),
    ("return ('1', 'x')", "gives ('1', 'x'), a tuple"),
    ("return Example(5, 'x', choices=WORDS)", "gives id 5, an int"),
    ("return Example('', 'x', choices=WORDS)", "gives id ''"),
    ("return Example('\\ud800', 'x', choices=WORDS)", "which holds half of a character"),
    ("return Example('1', None, choices=WORDS)", "gives prompt None"),
    ("return Example('1', b'x', choices=WORDS)", "gives prompt b'x', a bytes"),
    ("return Example('1', ' ', choices=WORDS)", "gives prompt ' ', a str"),
    ("return Example('1', 'x', choices=['a', 'b'])", "gives choices ['a', 'b'], a list"),
    ("return Example('1', 'x', choices={'a', 'b'})", "a set"),
    ("return Example('1', 'x', choices={'a': 1, 'b': 2})", "gives choices {'a': 1, 'b': 2}, a dict"),
    ("return Example('1', 'x', choices={1: 'a', 0: 'b'})", "gives choices"),
    ("return Example('1', 'x', choices={'a': 'x', 'b': ' '})", "gives choices"),
    ("return Example('1', 'x', choices={'a': 'x', 'b': 'x '})", "expected different words for each label"),
    ("return Example('1', 'x', choices=None)", "gives choices None"),
    ("return Example('1', 'x', WORDS)", "gives gold {'positive': 'good', 'negative': 'bad'}, a dict"),
    ("return Example('1', 'x', choices=WORDS, parts='x')", "gives parts 'x', a str"),
    ("return Example('1', 'x', choices=WORDS, parts=(5,))", "gives parts (5,), a tuple"),
    ("return Example('1', 'x', choices=WORDS, options='x')", "gives options 'x', a str"),
    ("return Example('1', 'x', choices=WORDS, completion=5)", "gives completion 5, an int"),
    ("return Example('1', 'x', choices=WORDS, starts=(1,))", "gives starts (1,), a tuple"),
    ("return Example('1', 'x', choices=WORDS, source=5)", "gives source 5, an int"),
]


@pytest.mark.parametrize(("line", "said"), EXAMPLES)
@pytest.mark.parametrize("ask", [load, "questions"])
def test_an_example_that_is_none_is_told_with_task_and_row(written, line, said, ask):
    def questions(path):
        load_questions(get_task(str(path)), Data(files="train.jsonl"), "en", "train", path.parent)

    message = refused(written(answering(f"        {line}")), load if ask is load else questions)
    assert said in message
    assert message.startswith((":8:", ":9:"))
    assert "train.jsonl:1)" in message


GOLDS = [
    ("return 'positive'", "gives 'positive', a str", "a tuple of accepted answers, each of them text"),
    ("return None", "gives None", "a tuple"),
    ("return ()", "gives (), a tuple", "a tuple"),
    ("return (1,)", "gives (1,), a tuple", "text"),
    ("return {'positive'}", "gives {'positive'}, a set", "sets and generators have no order"),
    ("yield 'positive'", "a generator", "sets and generators have no order"),
    ("return ('nope',)", "gives 'nope'", "some of positive, negative"),
    ("return ('positive', 'good')", "gives 'good'", "some of positive, negative"),
    ("raise KeyError('x')", "fails: KeyError: 'x'", "correct the task or the row"),
]


@pytest.mark.parametrize(("line", "said", "right"), GOLDS)
def test_a_gold_that_is_no_tuple_of_answers_is_refused(written, line, said, right):
    message = refused(written(with_lines(f"def gold(self, row, example): {line}")))
    assert message.startswith(":10: `gold` of Mine")
    assert said in message
    assert right in message
    assert "train.jsonl:1)" in message


def test_text_for_a_tuple_of_answers_does_not_score_by_its_letters(written):
    line = "def gold(self, row, example): return row['answers'][0]"
    assert "gives 'so', a str" in refused(written(with_lines(line, free=True)))


METHODS = [
    (
        "def completion(self, row, example): raise ValueError('c')",
        "`completion` of Mine fails: ValueError: c",
    ),
    ("def completion(self, row, example): return None", "`completion` of Mine gives None"),
    ("def completion(self, row, example): return 5", "gives 5, an int"),
    (
        "def starts(self, row, example): return 'x'",
        "`starts` of Mine gives 'x', a str",
    ),
    ("def starts(self, row, example): return (1, 2)", "expected a tuple of 1 whole numbers, or none"),
    ("def starts(self, row, example): return (True,)", "gives (True,)"),
    ("def parse(self, text, example): raise ValueError('p')", "`parse` of Mine fails: ValueError: p"),
    ("def parse(self, text, example): raise RowError('p')", "`parse` of Mine fails: RowError: p"),
    ("def parse(self, text, example): return text.splitlines()[0]", "fails: IndexError"),
    ("def parse(self, text, example): return 5", "`parse` of Mine gives 5, an int (example '1', answer '')"),
    ("def parse(self, text, example): return [text]", "gives [''], a list"),
    ("def parse(self, text, example): return '\\ud800'", "half of a character"),
    ("def parse(self, text, example): exit()", "fails: SystemExit"),
]


@pytest.mark.parametrize(("line", "said"), METHODS)
def test_the_other_methods_are_checked_before_anything_is_trained(written, line, said):
    message = refused(written(with_lines(line, free=True)))
    assert message.startswith(":10:")
    assert said in message


def test_an_answer_that_is_misread_later_is_told_with_its_example(written):
    line = "def parse(self, text, example): return int(text or 0) or None"
    task, example = get_task(str(written(with_lines(line, free=True)))), Example("7", "How many?")
    assert task.parse("", example) is None
    for text, said in (("x", "fails: ValueError: .*"), ("3", "gives 3, an int ")):
        with pytest.raises(
            UserError, match=rf"py:10: `parse` of Mine {said}\(example '7', answer '{text}'\)"
        ):
            task.parse(text, example)


def test_rows_are_ranked_all_or_none(written):
    line = "        return Example(row['id'], row['text'], choices=WORDS if row['id'] == '1' else {})"
    assert "expected all rows or none" in refused(written(answering(line)))
    path = written(with_lines("def gold(self, row, example): return ('positive',)"))
    path.write_text(path.read_text().replace(RANKED, line.replace("row['id'] == '1'", "language == 'en'")))
    assert load(path)[0].choices
    assert not load(path, "fr")[0].choices  # each language by itself


def test_labels_and_choices_are_the_same_classes(written):
    assert "expected all of `labels`: positive" in refused(written(with_lines("labels = ('positive',)")))


def test_what_an_encoder_reads_is_there(written):
    kinds = [
        ("span", "parts=('Who?',)", "a question and its passage"),
        ("span", "parts=('Who?', ' ')", "a question and its passage"),
        ("choices", "choices=WORDS, parts=('a',)", "has no options; expected the texts to choose from"),
        ("classes", "choices=WORDS, parts=('a', 'b', 'c')", "has 3 parts; expected one text, or two"),
    ]
    for kind, given, said in kinds:
        text = answering(f"        return Example(row['id'], row['text'], {given})")
        path = written(text.replace("    source =", f"    encoder_head = '{kind}'\n    source ="))
        with pytest.raises(UserError, match=f"task 'mine', example '1'.*{said}"):
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
    assert ":3: `columns` of T is ('a', 'b')" in refused(written(text + "TASKS.register('NAME')(T())\n"))
    odd = text.replace("('a', 'b')", "('a',)") + "    objective = 'nope'\nTASKS.register('NAME')(T())\n"
    assert ":5: `objective` of T is 'nope'" in refused(written(odd))


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
        with pytest.raises(UserError, match="is not there"):
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
