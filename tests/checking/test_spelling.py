"""What a tokenizer makes of a language, counted by hand and by other means."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from lingualift.backbone.loading import load_backbone
from lingualift.checking.spelling import UNSPACED, is_spaced, spell
from lingualift.languages import all_languages

AMHARIC = "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።"
THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน"


@pytest.fixture(scope="module")
def words(mini):
    """The mini-world's tokenizer of whole words."""
    return load_backbone(mini)[1]


def byte_fallback():
    """A tokenizer of `a` and `b`, and bytes for all else."""
    every = ["<unk>", "a", "b", *(f"<0x{value:02X}>" for value in range(256))]
    tokenizer = Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(every)}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_a_known_language_is_spelled_word_by_word(words):
    found = spell(words, ["the book is good .", "the book is bad ."])
    assert (found.texts, found.tokens, found.words, found.unknown, found.lost) == (2, 10, 10, 0, 0)
    assert found.characters == found.bytes - 8 == 14 + 13
    assert found.letters == 13 + 12
    assert (found.per_word, found.per_character) == (1, 10 / 27)


def test_letter_case_and_compatibility_forms_are_no_loss(words):
    assert spell(words, ["ﬁne the book"]).letters == len("finethebook")
    assert spell(words, ["the book"]).lost == 0


@pytest.mark.parametrize("text", [AMHARIC, THAI])
def test_a_script_that_is_not_in_the_vocabulary_is_lost(words, text):
    found = spell(words, [text])
    assert found.lost_share == 1
    assert found.unknown_share == pytest.approx(1, abs=0.2)  # the full stop is a word of its own


def test_letters_of_the_unknown_token_are_no_letters_of_the_text(words):
    assert spell(words, ["kun"]).lost == 3


def test_a_tokenizer_without_capitals_loses_none():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "straße": 1, "strasse": 2}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert (spell(fast, ["STRASSE"]).unknown, spell(fast, ["STRASSE", "Straße"]).lost) == (0, 0)


def test_half_a_text_is_half_lost(words):
    found = spell(words, ["the book qqqqqqq"])
    assert (found.unknown, found.lost, found.letters) == (1, 7, 14)


def test_bytes_lose_nothing_and_are_counted(bpe):
    tokenizer = byte_fallback()
    found = spell(tokenizer, ["ab", "é", "!"])
    assert (found.tokens, found.pieces, found.unknown, found.lost) == (
        5,
        2,
        0,
        0,
    )  # `!` is one byte, and whole
    assert found.piece_share == 0.4
    byte_level = load_backbone(bpe)[1]
    assert spell(byte_level, ["the red book"]).pieces == 0
    found = spell(byte_level, [THAI])
    assert (found.pieces, found.lost) == (len(THAI.encode()), 0)


@given(text=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip))
def test_a_byte_level_tokenizer_gives_every_letter_back(bpe, text):
    tokenizer = load_backbone(bpe)[1]
    found = spell(tokenizer, [text])
    special = any(mark in text for mark in ("<s>", "</s>", "<pad>"))
    assert special or found.lost == 0
    assert found.bytes == len(text.encode())
    folded = unicodedata.normalize("NFKC", text).casefold()
    assert found.letters == sum(unicodedata.category(mark)[0] in "LMN" for mark in folded)


def test_counts_add_up_over_texts(words):
    texts = ["the book is good .", AMHARIC, "kitabu kiko jikoni"]
    whole, parts = spell(words, texts), [spell(words, [text]) for text in texts]
    for name in ("tokens", "words", "characters", "bytes", "unknown", "letters", "lost"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)


def test_scripts_without_spaces_are_known():
    assert not any(map(is_spaced, ("th", "zh", "ja", "km", "lo", "my", "yue")))
    assert all(map(is_spaced, ("en", "am", "ko", "hi", "vi")))
    assert {entry.script for entry in all_languages()} >= UNSPACED
