"""Text to token ids: prompt and answer as one sequence, documents packed into segments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lingualift.backbone.chat import frame, user_turn
from lingualift.backbone.loading import ending
from lingualift.errors import UserError, setting
from lingualift.languages import Language
from lingualift.languages import language as find_language

IGNORED = -100  # the label that carries no loss
_TOGETHER = 1000  # texts in a call, which holds their words and offsets too


@dataclass(frozen=True)
class Pair:
    """A prompt and what follows it, as token ids.

    Attributes:
        prompt: Ids of the prompt, the beginning-of-text id first where the tokenizer has one.
        answer: Ids of the answer.
        truncated: Prompt tokens that were cut off at the left to fit.
    """

    prompt: list[int]
    answer: list[int]
    truncated: int = 0


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text, with the beginning-of-text id where the tokenizer has one."""
    return _begun(tokenizer, [text])[0]


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a prompt, as the user's turn where the tokenizer has kept its chat template."""
    if not tokenizer.chat_template:
        return encode_text(tokenizer, prompt)
    return _bare(tokenizer, [user_turn(tokenizer, prompt)])[0]


def _begun(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [start + ids for ids in _bare(tokenizer, texts)]


def _bare(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, nothing added: many in one call, which is several times faster than one for each."""
    found: list[list[int]] = []
    for start in range(0, len(texts), _TOGETHER):
        part = list(texts[start : start + _TOGETHER])
        found.extend(map(list, tokenizer(part, add_special_tokens=False)["input_ids"]))
    return found


def set_language(tokenizer: Any, language: str) -> None:
    """Tell a tokenizer that tags its texts (NLLB, M2M100, mBART) which language they are in; others need no telling.

    Raises:
        UserError: it has no tag for the language.
    """
    if hasattr(tokenizer, "src_lang"):
        tokenizer.src_lang = tokenizer.tgt_lang = language_tag(tokenizer, language)[1]


def language_tag(tokenizer: Any, language: str) -> tuple[str, str]:
    """The token that tags texts of a language, and what the tokenizer calls the language.

    NLLB has `swh_Latn` for both, mBART `sw_KE`, M2M100 `__sw__` and `sw`. A language that NLLB lacks is tagged in its
    manner, `mad_Latn`, by a translator that was given it; by others as the near language that a user chooses.

    Raises:
        UserError: the tokenizer has no tag for the language.
    """
    known = find_language(language)
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    found = _tag_of(known, special)
    if found is None and known.near:
        found = _tag_of(find_language(known.near), special)
    if found is None:
        raise UserError(
            f"language {language!r}",
            "has no tag in the backbone's tokenizer",
            f"one of {', '.join(sorted(tag for tag in special if tag)[:5])} …",
            "choose another model, or tell it a near language's tag, `nllb`: languages.own in an experiment file, "
            f"{setting('languages')} elsewhere",
        )
    return found


def _tag_of(known: Language, special: set[str]) -> tuple[str, str] | None:
    """Of a tokenizer's special tokens the one that tags a language, and its name of it; None where there is none."""
    nllb = known.nllb or f"{known.iso639_3}_{known.script}"
    tags = {nllb: nllb, **{f"__{code}__": code for code in (known.code, *known.aliases)}}
    tags |= {token: token for token in sorted(special) if re.fullmatch(rf"{known.code}_[A-Z]{{2}}", token)}
    return next(((token, code) for token, code in tags.items() if token in special), None)


def encoder_ids(tokenizer: Any, text: str, max_length: int) -> tuple[list[int], bool]:
    """Ids of what an encoder-decoder reads, with its special tokens, and whether its beginning was cut to fit."""
    ids = list(tokenizer(text)["input_ids"])
    if len(ids) <= max_length:
        return ids, False
    tokenizer.truncation_side = "left"
    return list(tokenizer(text, truncation=True, max_length=max_length)["input_ids"]), True


def decoder_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of what an encoder-decoder writes, with its special tokens."""
    return list(tokenizer(text_target=text)["input_ids"])


def encode_pair(tokenizer: Any, prompt: str, answer: str, max_length: int) -> Pair:
    """Encode one prompt with its answer; see `encode_pairs`."""
    return encode_pairs(tokenizer, [(prompt, answer)], max_length)[0]


def encode_pairs(tokenizer: Any, asked: Sequence[tuple[str, str]], max_length: int) -> list[Pair]:
    """Encode each `prompt`, a space and `answer` together, and split where the prompt's own ids end.

    Encoding the two apart would tokenize the answer as if it began a text; encoding them together is what
    lm-evaluation-harness does (https://github.com/EleutherAI/lm-evaluation-harness, `_encode_pair`). In a chat
    template's turns the answer stands where the template puts it, without white space around it.

    Args:
        tokenizer: The tokenizer.
        asked: (prompt, answer) of each.
        max_length: Tokens that both may have.

    Raises:
        UserError: an answer alone does not fit.
    """
    if tokenizer.chat_template:
        turns = {prompt: user_turn(tokenizer, prompt) for prompt, _ in asked}
        wholes = [turns[prompt] + frame(tokenizer).before + answer.strip() for prompt, answer in asked]
        encode = _bare
    else:
        turns = {prompt: prompt for prompt, _ in asked}
        wholes = [f"{prompt} {answer}" for prompt, answer in asked]
        encode = _begun
    heads = dict(zip(turns, encode(tokenizer, list(turns.values())), strict=True))
    both = zip(asked, encode(tokenizer, wholes), strict=True)
    return [
        fit(tokenizer, heads[prompt], whole[len(heads[prompt]) :], max_length) for (prompt, _), whole in both
    ]


def fit(tokenizer: Any, prompt: list[int], answer: list[int], max_length: int) -> Pair:
    """Cut the beginning of the prompt's own words until both fit into `max_length` tokens.

    The beginning-of-text id stays, and of a chat template all that it writes around the prompt.

    Raises:
        UserError: the answer leaves no room for the prompt.
    """
    excess = len(prompt) + len(answer) - max_length
    if excess <= 0:
        return Pair(prompt, answer)
    first, last = _around(tokenizer)
    if len(prompt) - first - last <= excess:
        raise UserError(
            "max_length",
            f"{max_length} tokens hold no prompt beside an answer of {len(answer)} tokens",
            mend="raise `max_length` or shorten the answers",
        )
    return Pair(prompt[:first] + prompt[first + excess :], answer, excess)


def _around(tokenizer: Any) -> tuple[int, int]:
    """How many ids stand before and after the words of every prompt."""
    if not tokenizer.chat_template:
        return (0 if tokenizer.bos_token_id is None else 1), 0
    one, other = (encode_prompt(tokenizer, words) for words in ("A", "0"))
    return _alike(one, other), _alike(one[::-1], other[::-1])


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids are the same from the beginning on."""
    return next(i for i, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs)


def training_row(tokenizer: Any, pair: Pair) -> dict[str, list[int]]:
    """Ids and labels of one example: only the answer and what ends it carry loss."""
    answer = pair.answer + ending(tokenizer)
    return {
        "input_ids": pair.prompt + answer,
        "attention_mask": [1] * (len(pair.prompt) + len(answer)),
        "labels": [IGNORED] * len(pair.prompt) + answer,
    }


def pack(documents: Iterable[Sequence[int]], segment_tokens: int) -> list[dict[str, list[int]]]:
    """Lay documents end to end and cut the tape into segments.

    Positions restart at every document, by which transformers keeps attention within a document
    (`transformers.masking_utils.find_packed_sequence_indices`); a document's first token is never predicted, since
    what stands before it is another document.

    Returns:
        Segments with `input_ids`, `position_ids` and `labels`; all of `segment_tokens` tokens but the last.
    """
    ids: list[int] = []
    positions: list[int] = []
    for document in documents:
        for start in range(
            0, len(document), segment_tokens
        ):  # the cut is a fresh start for a long document too
            part = document[start : start + segment_tokens]
            ids.extend(part)
            positions.extend(range(len(part)))
    segments = []
    for start in range(0, len(ids), segment_tokens):
        cut = slice(start, start + segment_tokens)
        first, places = positions[start], positions[cut]
        if first:  # a document that the cut runs through begins anew
            rest = next((i for i, place in enumerate(places) if place == 0), len(places))
            places = [*range(rest), *places[rest:]]
        labels = [IGNORED if place == 0 else token for token, place in zip(ids[cut], places, strict=True)]
        segments.append({"input_ids": ids[cut], "position_ids": places, "labels": labels})
    return segments


def encode_texts(
    tokenizer: Any, texts: Sequence[str], segment_tokens: int, *, packed: bool
) -> list[dict[str, list[int]]]:
    """Texts as segments, each text between the beginning-of-text and the end-of-text id.

    Args:
        tokenizer: The tokenizer.
        texts: At least one.
        segment_tokens: Tokens per segment, at most.
        packed: Whether segments hold several texts, which the model must keep apart by their positions
            (`lingualift.backbone.loading.keeps_apart`); else each holds one, or a part of one.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    documents = [ids + end for ids in _begun(tokenizer, texts)]
    if packed:
        return pack(documents, segment_tokens)
    starts = ((ids, start) for ids in documents for start in range(0, len(ids), segment_tokens))
    pieces = [ids[start : start + segment_tokens] for ids, start in starts]
    pieces = [ids for ids in pieces if len(ids) > 1] or pieces  # in one token nothing is predicted
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED, *ids[1:]]} for ids in pieces
    ]
