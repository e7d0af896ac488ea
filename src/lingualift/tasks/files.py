"""Which task is meant, by its name, file and prompt; what the code of users does is checked, where it enters."""

from __future__ import annotations

import ast
import contextlib
import dis
import importlib.util
import inspect
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from lingualift.errors import UserError, did_you_mean
from lingualift.metrics.scores import METRICS
from lingualift.provenance import sha256_bytes
from lingualift.tasks.base import TASKS, Example, RowError, Task, TextTask, source_file

MOST_NEW_TOKENS = 2**20
"""Tokens of an answer, at most: its room is set aside before it is written."""

_SHOWN = 80  # characters of a value, and five times as many of an error, in a message
_ORDER = "return a tuple: text is one answer only within one, and sets and generators have no order"
_METHODS = ("example", "gold", "completion", "starts", "parse", "parse_lenient")


class TaskError(UserError):
    """What a user's task does that no task may, with its file and line."""

    def at(self, row: str) -> UserError:
        """The error with the row that the task was given."""
        where, found, expected, mend = self._written
        return UserError(where, f"{found} ({row})", expected, mend)


def checked_task(name: str, base: Path) -> Task | TextTask:
    """A user's task by its registered name or its file, checked from then on; raises as `get_task`."""
    if name.endswith(".py"):
        return TASKS[_registered_by(_file(name, base))]
    task = TASKS[name]
    if not isinstance(task, _Checked):
        _enter(name, task, source_file(task) or f"task {name!r}")
    return task


def _file(name: str, base: Path) -> Path:
    """The file that a path means; raises a `UserError` where there is none."""
    path = base / name
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        path = path.resolve()
        if path.is_file():
            return path
    raise UserError(path, "is not there", "a Python file that registers a task", "check the path")


_files: dict[Path, str] = {}
"""What each file that was run has registered."""


def _registered_by(path: Path) -> str:
    if path not in _files:
        _files[path] = _load(path)
    return _files[path]


def _load(path: Path) -> str:
    before = set(TASKS)
    place = sha256_bytes(str(path).encode("utf-8", "surrogateescape"))[:12]  # two files may have one name
    spec = importlib.util.spec_from_file_location(f"lingualift_task_{path.stem}_{place}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with _running(str(path), "the file", "fails when it is run"):
            spec.loader.exec_module(module)
        name = _registered(path, before)
        _enter(name, TASKS[name], str(path))
    except BaseException:
        for name in set(TASKS) - before:
            del TASKS[name]
        del sys.modules[spec.name]
        raise
    return name


def _registered(path: Path, before: set[str]) -> str:
    """The name of the one task that was registered.

    Raises:
        UserError: none was, or several; the name is none.
    """
    added = [name for name in TASKS if name not in before]
    if len(added) != 1:
        raise UserError(path, f"registers {len(added)} tasks", "exactly one", "see docs/your-own-task.md")
    if not is_text(added[0]) or not added[0].strip():
        found = f"registers a task by the name {shown(added[0])}"
        raise UserError(path, found, "text", 'name it: TASKS.register("topics")')
    return added[0]


# What a user's code raises


@contextlib.contextmanager
def _running(file: str, what: str, fails: str = "fails", *, rows: bool = False) -> Iterator[None]:
    """Turn whatever a user's code raises into one error, whose place is the line of the file that it came from.

    Args:
        file: The user's.
        what: What of it runs.
        fails: What is said of it.
        rows: Whether it may refuse a row.

    Raises:
        TaskError: the code raised anything but a `UserError`, or ended the program. What the user does, an interrupt
            or another signal, passes.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, UserError) or (rows and isinstance(error, RowError)) or _from_a_signal(error):
            raise
        mend = "correct the task or the row" if rows else "correct it"
        raise TaskError(_place(error, file), f"{what} {fails}: {_said(error)}", mend=mend) from error


def _from_a_signal(error: BaseException) -> bool:
    """Whether a signal's handler raised it: one of Python code, or the interpreter's own for an interrupt."""
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    frames = list(traceback.walk_tb(error.__traceback__))
    if any(frame.f_code in handlers for frame, _ in frames):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not isinstance(error, KeyboardInterrupt):
        return False
    return last.tb_frame.f_code.co_code[last.tb_lasti] != dis.opmap["RAISE_VARARGS"]


def _place(error: BaseException, file: str) -> str:
    """The last line of the user's file that an error went through; the file where it went through none."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == file]
    if isinstance(error, SyntaxError) and error.filename == file and error.lineno:
        lines.append(error.lineno)
    return f"{file}:{lines[-1]}" if lines else file


def _said(error: BaseException) -> str:
    """Kind and words of an error on one line; an error of a user's may fail to say any."""
    try:
        words = " ".join(str(error).split())
    except Exception:
        words = ""
    words = words.encode("utf-8", "backslashreplace").decode()[: 5 * _SHOWN]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


# What a user's code answers


def is_text(value: object) -> bool:
    """Whether a value is text that can be written: no half of a character in it."""
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    with contextlib.suppress(UnicodeEncodeError):
        return bool(value.encode())
    return False


def shown(value: object) -> str:
    """A value for a message, with its kind; a user's may fail to show itself."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = ""
    if value is None or isinstance(value, bool):
        return text
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    if isinstance(value, str) and not is_text(value):
        return f"{short}, which holds half of a character"
    article = "an" if type(value).__name__[0] in "aeiou" else "a"
    return f"{short}, {article} {type(value).__name__}"


def _is_name(value: object) -> bool:
    return is_text(value) and bool(str(value).strip())


def _texts(value: object) -> tuple[str, ...] | None:
    """Texts in an order, as a tuple; None for anything else."""
    return tuple(value) if isinstance(value, list | tuple) and all(map(is_text, value)) else None


@dataclass
class _Entry:
    """What is known of a user's task.

    Attributes:
        file: Where its class stands.
        ranked: Language -> whether answers to its rows are ranked, as the first of them was.
    """

    file: str
    ranked: dict[str, bool] = field(default_factory=dict)


class _Checked(Task):
    """Stands before the class of a user's task: its methods run here, and what they answer is checked.

    Raises:
        TaskError: a method fails, or its answer is not as `Task` says.
    """

    entry: _Entry

    def example(self, row: Mapping[str, Any], language: str) -> Example:
        found = _example(self, _call(self, "example", row, language))
        ranked = self.entry.ranked.get(language)
        if ranked is None:
            self.entry.ranked[language] = bool(found.choices)
            if not found.choices:  # a model may answer nothing; told now, not after hours of training
                self.parse("", replace(found, language=language))
                self.parse_lenient("", replace(found, language=language))
        elif ranked != bool(found.choices):
            first = "the first row has choices" if ranked else "the first row has none"
            _wrong(self, "example", f"gives choices {shown(found.choices)}, and {first}", "all rows or none")
        return found

    def gold(self, row: Mapping[str, Any], example: Example) -> tuple[str, ...]:
        found = _call(self, "gold", row, example)
        answers = _texts(found)
        if not answers:
            _wrong(
                self,
                "gold",
                f"gives {shown(found)}",
                "a tuple of accepted answers, each of them text",
                _ORDER,
            )
        known = tuple(example.choices or example.options or self.labels)
        odd = [answer for answer in answers if known and answer not in known]
        if odd:
            _wrong(self, "gold", f"gives {odd[0]!r}", f"some of {', '.join(known)}", "correct it, or the row")
        return answers

    def completion(self, row: Mapping[str, Any], example: Example) -> str:
        found = _call(self, "completion", row, example)
        if not is_text(found):
            _wrong(self, "completion", f"gives {shown(found)}", "text", 'return "" where there is no more')
        return str(found)

    def starts(self, row: Mapping[str, Any], example: Example) -> tuple[int, ...]:
        found = _call(self, "starts", row, example)
        whole = isinstance(found, list | tuple) and all(type(place) is int for place in found)
        if not whole or len(found) not in (0, len(example.gold)):
            answers = len(example.gold)
            _wrong(self, "starts", f"gives {shown(found)}", f"a tuple of {answers} whole numbers, or none")
        return tuple(found)

    def parse(self, text: str, example: Example) -> str | None:
        return _parsed(self, "parse", text, example)

    def parse_lenient(self, text: str, example: Example) -> str | None:
        return _parsed(self, "parse_lenient", text, example)


def _parsed(task: _Checked, method: str, text: str, example: Example) -> str | None:
    """What a method of the user's class reads in a generated text."""
    try:
        found = _call(task, method, text, example)
        if found is not None and not is_text(found):
            mend = "return None where there is no answer"
            _wrong(task, method, f"gives {shown(found)}", "text or None", mend)
    except TaskError as error:
        raise error.at(f"example {example.id!r}, answer {text[:_SHOWN]!r}") from error
    return None if found is None else str(found)


def _call(task: _Checked, method: str, *given: Any) -> Any:
    """What a method of the user's class answers."""
    what = f"`{method}` of {type(task).__name__}"
    with _running(task.entry.file, what, rows=not method.startswith("parse")):
        return getattr(super(_Checked, task), method)(*given)


def _example(task: _Checked, found: object) -> Example:
    """The example that a user's task made, its parts of the kinds that `Example` says."""
    if not isinstance(found, Example):
        mend = 'return Example(str(row["id"]), prompt)'
        _wrong(task, "example", f"gives {shown(found)}", "an Example", mend)

    def refuse(part: str, expected: str, mend: str = "correct it") -> NoReturn:
        _wrong(task, "example", f"gives {part} {shown(getattr(found, part))}", expected, mend)

    if not _is_name(found.id):
        refuse("id", "text", 'write str(row["id"])')
    for part in ("prompt", "completion"):
        if not is_text(getattr(found, part)):
            refuse(part, "text")
    parts, gold = _texts(found.parts), _texts(found.gold)
    if parts is None or gold is None:
        refuse("parts" if parts is None else "gold", "a tuple of text", _ORDER)
    if not found.parts and not found.prompt.strip():
        refuse("prompt", "the question, or `parts` for an encoder")
    for part in ("choices", "options"):
        words = getattr(found, part)
        if not isinstance(words, Mapping) or not all(map(_is_name, (*words.keys(), *words.values()))):
            refuse(
                part, "label -> words, a dict of text that is not empty", 'write {"yes": "yes", "no": "no"}'
            )
    if len({words.strip() for words in found.choices.values()}) < len(found.choices):
        refuse("choices", "different words for each label", "give each label words of its own")
    if found.choices and task.labels and {*found.choices} != {*task.labels}:
        refuse("choices", f"all of `labels`: {', '.join(task.labels)}", "leave `labels` out")
    if found.source is not None or found.starts:
        refuse(
            "source" if found.source is not None else "starts", "none", "leave it out; the loader fills it in"
        )
    return replace(found, choices=dict(found.choices), options=dict(found.options), parts=parts, gold=gold)


def _wrong(task: _Checked, method: str, found: str, expected: str, mend: str = "correct it") -> NoReturn:
    """Refuse what a method of a user's task gives."""
    raise _fault(task, task.entry.file, method, found, expected, mend)


def _fault(
    task: object, file: str, attribute: str, found: str, expected: str = "", mend: str = "correct it"
) -> TaskError:
    """The error of an attribute or a method, with its line."""
    line = _line_of(type(task), attribute, file)
    where = file if line is None else f"{file}:{line}"
    return TaskError(where, f"`{attribute}` of {type(task).__name__} {found}", expected, mend)


def _line_of(kind: type, attribute: str, file: str) -> int | None:
    """The line of a file on which a class sets an attribute, or else begins; None where it does neither."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, ValueError, SyntaxError):
        return None
    names = [one.__name__ for one in kind.__mro__]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in names]
    classes.sort(key=lambda node: names.index(node.name))
    for node in classes:
        for line in reversed(node.body):
            targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", line)]
            if any(attribute in (getattr(one, "id", None), getattr(one, "name", None)) for one in targets):
                return line.lineno
    return classes[0].lineno if classes else None


# What a user's task is


Read = Callable[[object], object]
"""An attribute's value as it is used from here on; raises `ValueError` where it cannot be one."""


def _name(value: object) -> str:
    if not _is_name(value):
        raise ValueError
    return str(value)


def _names(value: object) -> tuple[str, ...]:
    names = _texts(value)
    if names is None or not all(map(_is_name, names)) or len({*names}) < len(names):
        raise ValueError
    return names


def _some_names(value: object) -> tuple[str, ...]:
    if not value:
        raise ValueError
    return _names(value)


def _one_name(value: object) -> tuple[str, ...]:
    (name,) = _names(value)
    return (name,)


def _tokens(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_NEW_TOKENS:
        raise ValueError
    return value


def _word(*words: str) -> Read:
    return lambda value: words[words.index(value)]


def _or_none(read: Read) -> Read:
    return lambda value: None if value is None else read(value)


_SEVERAL = "a tuple of names, each of them once"
_SOURCE: dict[str, tuple[Read, str]] = {"source": (_name, "a paper or a URL, as text")}
_LABELLED: dict[str, tuple[Read, str]] = {
    "columns": (_some_names, f'{_SEVERAL}, for example ("id", "text")'),
    "gold_column": (_name, "the name of a column"),
    "metrics": (_some_names, f'{_SEVERAL}, for example ("accuracy",)'),
    **_SOURCE,
    "labels": (_names, _SEVERAL),
    "encoder_head": (_or_none(_word("classes", "choices", "span")), "classes, choices, span or None"),
    "max_new_tokens": (_tokens, f"a whole number from 1 to {MOST_NEW_TOKENS}"),
    "text_columns": (_or_none(_names), f"{_SEVERAL}, or None"),
    "written_columns": (_names, _SEVERAL),
    "passage_column": (_or_none(_name), "the name of a column, or None"),
}
_TEXT: dict[str, tuple[Read, str]] = {
    "columns": (_one_name, 'the name of one column, in a tuple: ("text",)'),
    **_SOURCE,
    "objective": (
        _or_none(_word("causal", "masked", "span-corruption", "prefix")),
        "causal, masked, span-corruption, prefix or None",
    ),
}
"""The attributes of labelled tasks, and of those over text: how each is read, and what it is, in words."""


def _enter(name: str, task: object, file: str) -> None:
    """Check what a user registered, once; a labelled task's methods are checked from then on.

    Raises:
        TaskError: it is no task, or an attribute is not as `Task` says.
    """
    if not isinstance(task, Task | TextTask):
        known = task.__name__ if isinstance(task, type) else shown(task)
        found = f"registers {known} as {name!r}, which is no instance of Task or TextTask"
        mend = f"register {known}()" if isinstance(task, type) else "register one"
        raise TaskError(file, found, mend=mend)
    rules = _TEXT if isinstance(task, TextTask) else _LABELLED
    read = {attribute: _attribute(task, file, attribute, *rule) for attribute, rule in rules.items()}
    if isinstance(task, Task):
        _check_names(task, file, read)
        for method in _METHODS:
            _check_method(task, file, method)
        _stand_before(task, file, read)


def _stand_before(task: Task, file: str, read: Mapping[str, object]) -> None:
    """Put `_Checked`, and the attributes as they were read, before the class of a task."""
    kind: Any = type(task)
    about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    with _running(file, f"class {kind.__name__}"):
        checked = type(kind)(kind.__name__, (_Checked, kind), {**about, **read, "entry": _Entry(file)})
        for attribute in read:
            task.__dict__.pop(attribute, None)
        task.__class__ = checked


def _attribute(task: Task | TextTask, file: str, attribute: str, read: Read, expected: str) -> object:
    """An attribute's value, as it is used from here on."""
    missing = object()
    with _running(file, f"`{attribute}` of {type(task).__name__}"):
        value = getattr(task, attribute, missing)
    if value is missing:
        raise _fault(task, file, attribute, "is missing", expected, "set it in the class")
    try:
        return read(value)
    except ValueError:
        raise _fault(task, file, attribute, f"is {shown(value)}", expected) from None


def _check_names(task: Task, file: str, found: Mapping[str, Any]) -> None:
    """Refuse a metric that is not known, and text to translate that is in no column."""
    for metric in found["metrics"]:
        if metric not in METRICS:
            said = f"names metric {metric!r}, which is not known"
            raise _fault(task, file, "metrics", said, mend=did_you_mean(metric, METRICS))
    for column in found["text_columns"] or ():
        if column not in found["columns"]:
            said = f"names {column!r}"
            raise _fault(
                task, file, "text_columns", said, f"some of `columns`: {', '.join(found['columns'])}"
            )


def _check_method(task: Task, file: str, method: str) -> None:
    """Refuse what cannot be called as `Task` says."""
    names = [name for name in inspect.signature(getattr(Task, method)).parameters if name != "self"]
    with _running(file, f"`{method}` of {type(task).__name__}"):
        called = getattr(task, method)
    try:
        inspect.signature(called).bind(*names)
    except (TypeError, ValueError):
        expected = f"def {method}(self, {', '.join(names)})"
        raise _fault(task, file, method, "cannot be called as it is", expected) from None
