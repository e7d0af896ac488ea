"""The closed vocabulary of the mini-world and a word-level tokenizer over it."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

from lingualift.miniworld.data import LABEL_WORDS, QA_PROMPT, SENTIMENT_PROMPT
from lingualift.miniworld.grammar import Grammar
from lingualift.miniworld.languages import GRAMMARS
from lingualift.miniworld.lexicon import (
    COLOURS,
    NAMES,
    PLACES,
    QUALITIES,
    THINGS,
    VERBS,
    VERDICTS,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD: Final = "<pad>"
BOS: Final = "<bos>"
EOS: Final = "<eos>"
UNKNOWN: Final = "<unk>"
SPECIAL: Final = (PAD, BOS, EOS, UNKNOWN)
PUNCTUATION: Final = r"[.,:?¿=]"


def words(text: str) -> list[str]:
    """The words of a text: split at spaces, with each mark of punctuation on its own."""
    return re.sub(f"({PUNCTUATION})", r" \1 ", text).split()


def vocabulary() -> list[str]:
    """Every token, special ones first, then in the order in which the languages come."""
    prompts = (SENTIMENT_PROMPT, QA_PROMPT, *LABEL_WORDS.values(), ".,:?¿=")
    texts = [re.sub(r"\{\w+\}", " ", prompt) for prompt in prompts] + list(NAMES)
    for grammar in GRAMMARS.values():
        texts += _everything(grammar)
    return list(dict.fromkeys([*SPECIAL, *itertools.chain.from_iterable(map(words, texts))]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, as transformers sees it; decoding joins words by spaces."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Split(Regex(PUNCTUATION), "isolated")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def _everything(grammar: Grammar) -> list[str]:
    """Texts that between them hold every word a language can say."""
    pairs = list(itertools.product(THINGS, (False, True)))
    return [
        *grammar.conjunctions,
        grammar.now,
        *(grammar.verb(verb) for verb in VERBS),
        *(grammar.at(place) for place in PLACES),
        *(grammar.place_word(place) for place in PLACES),
        *(grammar.the(thing) for thing in THINGS),
        *(grammar.thing_word(thing) for thing in THINGS),
        *(grammar.is_at(thing) for thing in THINGS),
        *(grammar.ask_colour(thing, grammar.subject(thing)) for thing in THINGS),
        *(grammar.some(thing, colour) for thing in THINGS for colour in COLOURS),
        *(grammar.subject(thing, colour) for thing in THINGS for colour in COLOURS),
        *(grammar.colour_word(thing, colour) for thing in THINGS for colour in COLOURS),
        *(grammar.quality(thing, quality, denied) for thing, denied in pairs for quality in QUALITIES),
        *(
            grammar.verdict(name, thing, verdict, denied)
            for name in NAMES
            for thing, denied in pairs
            for verdict in VERDICTS
        ),
        *(grammar.ask_what("Ben", verb, "") for verb in VERBS),
        *(grammar.ask_where("Ben", verb, "") for verb in VERBS),
    ]
