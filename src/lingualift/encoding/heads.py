"""How encoders read examples: texts and pairs for classes, one text per choice, windows of a passage for spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lingualift.backbone.architectures import WORDS, Family, Head
from lingualift.errors import UserError
from lingualift.tasks import Example, Task
from lingualift.tasks.base import labels_of

STRIDE = 128  # tokens that two windows of a passage share, at most a quarter of a window


def head_of(family: Family, task: Task, examples: Sequence[Example], name: str) -> Head:
    """What a backbone of a family answers a task with.

    Args:
        family: The backbone's.
        task: The task.
        examples: Its examples, at least one.
        name: What the user calls the task, for messages.

    Raises:
        UserError: the task cannot be answered by an encoder; rows whose classes, or number of choices, differ, or that
            lack what is read.
    """
    if family != "encoder":
        return WORDS
    kind = task.encoder_head
    labels = labels_of(task, examples[0])
    if kind is None or (kind == "classes" and not labels):
        raise UserError(
            f"task {name!r}",
            "asks for text of the model's own, which an encoder cannot write",
            "a task with classes, choices or spans",
            "take a decoder or an encoder-decoder, or another task",
        )
    for example in examples:
        _check_parts(kind, example, name)
        found = labels_of(task, example)
        if (kind == "classes" and found != labels) or (kind == "choices" and len(found) != len(labels)):
            raise UserError(
                f"task {name!r}, example {example.id!r}",
                f"has {', '.join(found)} to choose from, and example {examples[0].id!r} has {', '.join(labels)}",
                "the same classes in the same order" if kind == "classes" else "as many choices in every row",
                "mend the row, or take a decoder",
            )
    return Head(kind, len(labels) if kind == "classes" else 0)


def _check_parts(kind: str, example: Example, name: str) -> None:
    """Refuse an example that lacks what an encoder reads for its kind of answer."""
    where, mend = f"task {name!r}, example {example.id!r}", "give them in `example`, or take a decoder"
    if kind == "span" and (len(example.parts) != 2 or not all(part.strip() for part in example.parts)):
        raise UserError(where, f"has parts {example.parts!r:.80}", "a question and its passage", mend)
    if kind == "choices" and not example.options:
        raise UserError(where, "has no options", "the texts to choose from, in `options`", mend)
    if kind == "classes" and len(example.parts) > 2:
        raise UserError(where, f"has {len(example.parts)} parts", "one text, or two", mend)


@dataclass(frozen=True)
class Text:
    """What an encoder reads at once, as the tensors that it takes.

    Attributes:
        inputs: `input_ids`, `attention_mask` and, for some, `token_type_ids`.
        truncated: Whether the text was cut to fit.
    """

    inputs: dict[str, list[int]]
    truncated: bool


def encode_parts(tokenizer: Any, parts: Sequence[str], max_length: int) -> Text:
    """One text or a pair; where they are too long, the longer one loses its end."""
    whole = len(tokenizer(*parts)["input_ids"])
    found = tokenizer(*parts, truncation="longest_first", max_length=max_length)
    return Text(dict(found), whole > max_length)


def encode_classes(tokenizer: Any, example: Example, max_length: int) -> Text:
    """The parts of an example, or its prompt."""
    return encode_parts(tokenizer, example.parts or (example.prompt,), max_length)


def encode_choices(tokenizer: Any, example: Example, max_length: int) -> list[Text]:
    """The example's parts with each of its options, in their order."""
    asked = " ".join(example.parts)
    return [encode_parts(tokenizer, (asked, text), max_length) for text in example.options.values()]


@dataclass(frozen=True)
class Window:
    """A question with as much of its passage as fits.

    Attributes:
        inputs: What the encoder takes.
        places: For each token the characters of the passage that it stands for, None for others.
    """

    inputs: dict[str, list[int]]
    places: list[tuple[int, int] | None]


def encode_windows(tokenizer: Any, example: Example, max_length: int) -> list[Window]:
    """A question and its passage, in windows that overlap where the passage is long; a long question loses its end."""
    question, passage = example.parts
    asked = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(asked) > max_length // 2:
        question = question[: asked[max_length // 2 - 1][1]]
    found = tokenizer(
        question,
        passage,
        truncation="only_second",
        max_length=max_length,
        stride=min(STRIDE, max_length // 4),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in found]
    return [
        Window(
            {name: found[name][index] for name in names},
            [
                tuple(place) if part == 1 else None
                for part, place in zip(found.sequence_ids(index), offsets, strict=True)
            ],
        )
        for index, offsets in enumerate(found["offset_mapping"])
    ]


def span_row(window: Window, start: int, end: int) -> dict[str, Any]:
    """The window with the tokens of the answer; its first token where the answer is not whole in it.

    Args:
        window: The window.
        start: First character of the answer in the passage.
        end: The one after its last.
    """
    inside = [
        index for index, place in enumerate(window.places) if place and place[1] > start and place[0] < end
    ]
    there = [place for place in window.places if place]
    whole = bool(inside) and there[0][0] <= start and there[-1][1] >= end
    first, last = (inside[0], inside[-1]) if whole else (0, 0)
    return {**window.inputs, "start_positions": first, "end_positions": last}
