"""Chat templates: how a tokenizer writes the user's turn and the assistant's, found out by asking it.

A template is a program of its author's (https://huggingface.co/docs/transformers/chat_templating). What it writes
between the prompt and the answer, and after the answer, is read off one conversation that it renders. Every one is
rendered in a process of its own, with bounds on time and memory (`lingualift.backbone.rendering`): a program may do to
one conversation what it does not to another.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingualift.errors import UserError
from lingualift.provenance import sha256_bytes

BOUNDS = {"seconds": 10, "bytes": 2**30, "characters": 2**22}
"""What a template may take for one conversation: time, memory of the whole process, and what it writes."""

_PROMPT, _ANSWER = "Höre, 7!\nHow?", "Só, 8.\nÉ."  # what no template writes by itself


@dataclass(frozen=True)
class Frame:
    """What a template writes around an answer.

    Attributes:
        before: White space between the beginning of the assistant's turn and the answer (Mistral has a space).
        end: Ids that end the assistant's turn, a special one first.
    """

    before: str
    end: list[int]


def user_turn(tokenizer: Any, prompt: str) -> str:
    """The user's turn and the beginning of the assistant's; models that can think first are told not to.

    Raises:
        UserError: the template fails, or goes beyond its bounds.
    """
    return _render(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)


def frame(tokenizer: Any) -> Frame:
    """What the tokenizer's template writes around an answer.

    Raises:
        UserError: the template cannot be used to ask and to learn from answers.
    """
    return _frame(tokenizer, str(tokenizer.chat_template))


def template_of(tokenizer: Any, name: str) -> str:
    """sha256 of the chat template that a backbone's prompts are asked by.

    Raises:
        UserError: it has none, or none that prompts could be asked by.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "backbone.chat_template",
            f"the tokenizer of {name!r} has no chat template",
            "a backbone that was tuned to chat",
            "leave `chat_template` out",
        )
    frame(tokenizer)
    return sha256_bytes(str(tokenizer.chat_template).encode())


@functools.lru_cache(maxsize=1)
def _frame(tokenizer: Any, template: str) -> Frame:
    asked = user_turn(tokenizer, _PROMPT)
    turns = [{"role": "user", "content": _PROMPT}, {"role": "assistant", "content": _ANSWER}]
    whole = _render(tokenizer, turns)
    if asked.count(_PROMPT) != 1:
        raise _refused("it does not write the user's turn as it is")
    if not whole.startswith(asked):
        raise _refused("the answered conversation does not begin as the question that it answers")
    before, answer, after = whole[len(asked) :].partition(_ANSWER)
    if before.strip() or not answer:
        raise _refused("it does not write the answer as it is, right after the assistant's turn begins")
    end = list(tokenizer(after.rstrip(), add_special_tokens=False)["input_ids"])
    if not end and tokenizer.eos_token_id is not None:
        end = [tokenizer.eos_token_id]
    if not end or end[0] not in {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}:
        raise _refused("no special token ends the assistant's turn")
    return Frame(before, end)


def ending(tokenizer: Any) -> list[int]:
    """Ids that end an answer: of the assistant's turn, if it is asked by the chat template, else of the text."""
    if tokenizer.chat_template:
        return frame(tokenizer).end
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def ends_of(tokenizer: Any) -> list[int]:
    """Ids that a generated answer stops at: the first of its ending, and the end of the text; none if it has none."""
    return sorted({end for end in (*ending(tokenizer)[:1], tokenizer.eos_token_id) if end is not None})


def _render(tokenizer: Any, turns: list[dict[str, str]], **more: bool) -> str:
    """What `apply_chat_template` of the tokenizer writes."""
    try:
        template = tokenizer.get_chat_template()
    except Exception as error:  # of several templates none is for chat, or they are no templates
        raise _refused(" ".join(str(error).split())[:200]) from error
    given = {"chat_template": template, "conversations": [turns], "enable_thinking": False, **more}
    return _renderer(os.getpid()).render({**tokenizer.special_tokens_map, **given})


class _Renderer:
    """A process that renders templates; it ends with this object, and with the process that made it."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("rendering.py")
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each thread would set memory aside
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **alone, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            encoding="utf-8",
            start_new_session=True,  # an interrupt is for those who ask
        )
        self._end = weakref.finalize(self, _end, self._process, os.getpid())
        self._one = threading.Lock()
        self._bounds: dict[str, int] | None = dict(BOUNDS)  # what is sent first

    def render(self, given: dict[str, Any]) -> str:
        """The text of a conversation.

        Raises:
            UserError: the template fails, or goes beyond its bounds.
        """
        try:
            with self._one:
                reply = self._ask(given)
        except (
            BaseException
        ):  # an interrupt too: the answer that still comes would be taken for the next one's
            _renderer.cache_clear()
            self._end()
            raise
        if "error" in reply:
            raise _refused(reply["error"])
        return reply["text"]

    def _ask(self, given: dict[str, Any]) -> dict[str, str]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        line, began = "", time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            for value in filter(None, (self._bounds, given)):
                stdin.write(json.dumps(value, default=str) + "\n")
            stdin.flush()
            self._bounds = None
            line = stdout.readline()
        if line:
            return dict(json.loads(line))
        late = self._process.wait() == 1 and time.monotonic() - began >= BOUNDS["seconds"]
        raise _refused(f"it takes longer than {BOUNDS['seconds']} seconds" if late else "its process ends")


@functools.lru_cache(maxsize=1)
def _renderer(process: int) -> _Renderer:
    """The one of this process: a fork has its own."""
    return _Renderer()


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() != owner:  # a fork's copy; it is not its child
        process.returncode = 0
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[union-attr]


def _refused(found: str) -> UserError:
    return UserError(
        "backbone.chat_template",
        f"the tokenizer's chat template cannot be used: {found}",
        "a template that takes a user's and an assistant's turn",
        "leave `chat_template` out",
    )
