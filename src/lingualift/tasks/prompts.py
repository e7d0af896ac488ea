"""Prompts of the papers, one file per task in `prompts/`: templates by name, in the languages that have a source."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, ClassVar, Self

import yaml

from lingualift.errors import UserError, did_you_mean
from lingualift.languages import language as find_language
from lingualift.tasks.base import Example, RowError, Task, class_of, text_of
from lingualift.tasks.reading import Names, read_label, read_text


@dataclass(frozen=True)
class Prompt:
    """A template in one language.

    Attributes:
        template: What the model reads; `{column}` is filled in from the row, `{language}` with its language's name.
        labels: Class -> the words that stand for it (verbalizer); empty for a task without classes.
        labels_source: Where these words are from.
        answer: What the answer stands behind in a generated text; "" where the text is the answer.
        also: Class -> other words that the template has for it, which the lenient reading takes for it too.
        subject: What the template says these words of, such as `hypothesis`; "" where it does not.
    """

    template: str
    labels: Mapping[str, str] = field(default_factory=dict)
    labels_source: str = ""
    answer: str = ""
    also: Mapping[str, Sequence[str]] = field(default_factory=dict)
    subject: str = ""

    @property
    def nouns(self) -> tuple[str, ...]:
        """The word by which it asks for the answer, `Label` or `Step-by-Step Answer`, if it ends in one."""
        last = self.answer or self.template.splitlines()[-1]
        return (last.strip(" :：'"),) if last.endswith((":", "：")) else ()


@dataclass(frozen=True)
class Template:
    """A prompt by its name.

    Attributes:
        source: Where it is from.
        languages: BCP-47 code -> the prompt in that language.
        max_new_tokens: Longest generated answer, in tokens; None for the task's own.
    """

    source: str
    languages: Mapping[str, Prompt]
    max_new_tokens: int | None = None


@functools.cache
def prompts_of(task: str) -> Mapping[str, Template]:
    """The templates of a task that ships with the package, by name; the first is its default."""
    text = resources.files("lingualift").joinpath("prompts", f"{task}.yaml").read_text(encoding="utf-8")
    return {
        name: Template(
            **{**raw, "languages": {code: Prompt(**one) for code, one in raw["languages"].items()}}
        )
        for name, raw in yaml.safe_load(text).items()
    }


class PromptedTask(Task):
    """A task whose prompts stand in `prompts/<name>.yaml`.

    A template that asks for its answer in a format (XLT) is generated and read by that format; what does not keep to
    it is malformed. Other templates are ranked where the task has classes, and generated where it has none.

    Attributes:
        name: Of the task and of its file.
        labels: Classes, in the order of their numbers on the hub.
        texts: The columns that an encoder reads, one or two.

    Args:
        prompt: Name of a template; the first of the file if left out.
        prompt_language: Code of the prompt's language, or `target` for that of each row; English if left out.
        generated: Whether classes are generated and read by their words, as in the papers, and not ranked.

    Raises:
        UserError: no such template.
    """

    name: ClassVar[str]
    texts: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, prompt: str | None = None, prompt_language: str | None = None, generated: bool = False
    ) -> None:
        templates = prompts_of(self.name)
        self.prompt = prompt or next(iter(templates))
        self.prompt_language = prompt_language or "en"
        self.generated = generated
        if self.prompt not in templates:
            mend = did_you_mean(self.prompt, templates)
            raise UserError(f"task {self.name!r}", f"has no prompt {self.prompt!r}", mend=mend)
        self.max_new_tokens = templates[self.prompt].max_new_tokens or type(self).max_new_tokens

    def asked(self, prompt: str | None, prompt_language: str | None, generated: bool = False) -> Self:
        """The same task by another prompt; arguments and errors as for the class."""
        return type(self)(prompt, prompt_language, generated)

    def prompt_for(self, language: str) -> Prompt:
        """The prompt that rows of a language are asked by.

        Raises:
            UserError: the template does not exist in the prompt's language.
        """
        wanted = find_language(language if self.prompt_language == "target" else self.prompt_language).code
        known = prompts_of(self.name)[self.prompt].languages
        if wanted not in known:
            raise UserError(
                f"prompt {self.prompt!r} of task {self.name!r}",
                f"is not there in {wanted!r}",
                f"one of {', '.join(known)}",
                "name another `prompt_language`",
            )
        return known[wanted]

    def values(self, row: Mapping[str, Any], language: str) -> dict[str, str]:
        """What the template is filled in with; by default every column, as text."""
        return {column: text_of(row, column).strip() for column in self.columns if column != "id"}

    def example(self, row: Mapping[str, Any], language: str) -> Example:
        """The filled template; classes are ranked by their words, unless the template asks for a format."""
        prompt = self.prompt_for(language)
        values = {**self.values(row, language), "language": find_language(language).name}
        choices = {} if prompt.answer or self.generated else dict(prompt.labels)
        return Example(
            text_of(row, "id"),
            prompt.template.format(**values),
            choices=choices,
            language=language,
            parts=tuple(values[column] for column in self.texts),
        )

    def gold(self, row: Mapping[str, Any], example: Example) -> tuple[str, ...]:
        """The class by its name, or the text of the gold column."""
        if self.labels:
            return (class_of(row, self.gold_column, self.labels),)
        return super().gold(row, example)

    def completion(self, row: Mapping[str, Any], example: Example) -> str:
        """The answer in the format that the template asks for, if it asks for one; a class by its words."""
        prompt = self.prompt_for(example.language)
        words = prompt.labels.get(example.gold[0], example.gold[0])
        if prompt.answer:
            return f"{prompt.answer} {words}"
        return words if prompt.labels and self.generated else ""

    def parse(self, text: str, example: Example) -> str | None:
        """The first line of the text, or of what stands behind the last place where the format puts an answer.

        A class is told by its words alone: a sentence that holds them is malformed, but for letter case, quotation
        marks and a full stop.
        """
        prompt = self.prompt_for(example.language)
        behind, found = text, True
        if prompt.answer:
            _, mark, behind = text.rpartition(prompt.answer)
            found = bool(mark)
        line = super().parse(behind, example) if found else None
        if line is None or not self.labels:
            return line
        words = {word.casefold(): label for label, word in prompt.labels.items()}
        return words.get(line.strip("'\"“”.。 ").casefold())

    def parse_lenient(self, text: str, example: Example) -> str | None:
        """The class, by its words, its name or the text of its option; else the text that the answer is said to be."""
        prompt = self.prompt_for(example.language)
        if not self.labels:
            return read_text(text, prompt.nouns)
        words = {label: (label, word, *prompt.also.get(label, ())) for label, word in prompt.labels.items()}
        subjects = (prompt.subject,) if prompt.subject else ()
        return read_label(text, Names.of(words, example.options), prompt.nouns, subjects)


def starts_of(row: Mapping[str, Any], column: str, gold: Sequence[str], context: str) -> tuple[int, ...]:
    """Where accepted answers begin in a passage whose white space at the ends is stripped.

    `answer_start` counts characters of the context as it stands in the row. If the answer is not there, it may count
    from where the context's words begin, or UTF-8 bytes, or UTF-16 units; else an answer that stands in the passage
    once is where it stands.

    Args:
        row: Of SQuAD's form.
        column: The one that holds the answers.
        gold: The answers, stripped.
        context: The passage as it stands in the row.

    Returns:
        One place for each answer in the stripped passage, -1 for one that is no part of it, or that stands there more
        than once while `answer_start` does not say where.
    """
    told = row[column].get("answer_start")
    given: dict[str, tuple[str, Any]] = {}
    for text, place in zip(row[column]["text"], told if isinstance(told, list) else [], strict=False):
        given.setdefault(text.strip(), (text, place))
    passage = context.strip()
    lead = context.index(passage)
    starts = []
    for answer in gold:
        text, place = given.get(answer, (answer, None))
        found = _place(context, text, place, lead) if type(place) is int and place >= 0 else None
        if found is not None:
            starts.append(found + text.index(answer) - lead)
        else:
            first = passage.find(answer)
            starts.append(first if first == passage.rfind(answer) else -1)
    return tuple(starts)


def _place(context: str, text: str, told: int, lead: int) -> int | None:
    """The character of a context at which a text stands, by a place that counts characters, or something else."""
    if context.startswith(text, told):
        return told
    in_bytes, in_units = _characters(context, told, "utf-8"), _characters(context, 2 * told, "utf-16-le")
    places = (place for place in (lead + told, in_bytes, in_units) if place is not None)
    found = {place for place in places if context.startswith(text, place)}
    return found.pop() if len(found) == 1 else None


def _characters(context: str, told: int, encoding: str) -> int | None:
    """How many characters so many bytes of an encoding are; None if they end within one."""
    before = context.encode(encoding, "replace")[:told].decode(encoding, "ignore")
    return len(before) if len(before.encode(encoding, "replace")) == told else None


def answers_of(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """Accepted answers of a row of SQuAD's form, `{"text": [...], "answer_start": [...]}`, each once.

    Raises:
        RowError: another form, or no answer.
    """
    value = row[column]
    texts = value.get("text") if isinstance(value, Mapping) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RowError(f'column {column!r} is not {{"text": [...], "answer_start": [...]}}')
    if not texts:
        raise RowError(f"column {column!r} holds no answer")
    return tuple(dict.fromkeys(text.strip() for text in texts))
