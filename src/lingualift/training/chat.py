"""Chat templates: how a tokenizer writes the user's turn and the assistant's, found out by asking it.

A template is a program of its author's (https://huggingface.co/docs/transformers/chat_templating). What it writes
between the prompt and the answer, and after the answer, is read off one conversation that it renders.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from lingualift.errors import UserError

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
    """The user's turn and the beginning of the assistant's; models that can think first are told not to."""
    return _render(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)


def frame(tokenizer: Any) -> Frame:
    """What the tokenizer's template writes around an answer.

    Raises:
        UserError: the template cannot be used to ask and to learn from answers.
    """
    return _frame(tokenizer, str(tokenizer.chat_template))


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


def _render(tokenizer: Any, turns: list[dict[str, str]], **more: Any) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False, **more))
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise _refused(" ".join(str(error).split())[:200]) from error


def _refused(found: str) -> UserError:
    return UserError(
        "backbone.chat_template",
        f"the tokenizer's chat template cannot be used: {found}",
        "a template that takes a user's and an assistant's turn",
        "leave `chat_template` out",
    )
