"""Numbers in text: cases of our own, CLDR's formats by Babel, and every digit system of Unicode."""

import json
import unicodedata
from decimal import Decimal
from pathlib import Path

import pytest
from babel import Locale, UnknownLocaleError
from babel.numbers import format_decimal
from hypothesis import given
from hypothesis import strategies as st

from lingualift.languages import all_languages
from lingualift.metrics.numbers import find_number, number_match, parse_number
from lingualift.metrics.scores import METRICS

CASES = json.loads((Path(__file__).parent / "number_cases.json").read_text(encoding="utf-8"))
MGSM = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
ZEROS = [
    chr(code)
    for code in range(0x110000)
    if unicodedata.category(chr(code)) == "Nd" and unicodedata.decimal(chr(code)) == 0
]


def known_to_babel(code):
    try:
        return Locale.parse(code.replace("-", "_"))
    except (UnknownLocaleError, ValueError):
        return None


LOCALES = {entry.code: known_to_babel(entry.code) for entry in all_languages()}
FORMATTED = sorted(code for code, locale in LOCALES.items() if locale)
numbers = st.decimals(-(10**9), 10**9, allow_nan=False, places=2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['language']}-{case['text'][:20]}")
def test_a_text_has_the_value_read_by_hand(case):
    value = None if case["value"] is None else Decimal(case["value"])
    assert parse_number(case["text"], case["language"]) == value


def test_every_language_of_mgsm_has_cases():
    for code in MGSM:
        mine = [case for case in CASES if case["language"] == code]
        assert len(mine) >= 3
        assert any(case["value"] == "1234.5" for case in mine)


@given(numbers, st.sampled_from(FORMATTED))
def test_what_cldr_writes_in_a_language_is_read_in_it(number, code):
    """All languages of the registry that CLDR knows, with fraction, groups and sign."""
    locale = LOCALES[code]
    text = format_decimal(number, format="#,##0.00", locale=locale, numbering_system="latn")
    text = text.replace("\u200e", "").replace("،", ",")
    assert parse_number(f"x {text}", code) == number
    assert parse_number(f"x {text.replace(chr(0xA0), ' ').replace(chr(0x202F), ' ')}.", code) == number


@given(st.integers(0, 10**7), st.sampled_from(MGSM), st.booleans())
def test_whole_numbers_of_mgsm_as_its_languages_write_them(number, code, bare):
    text = str(number) if bare else format_decimal(number, locale=code)
    assert parse_number(text, code) == number
    assert number_match(f"= {text}.", (str(number),), code) == 1
    assert number_match(f"= {text}.", (str(number + 1),), code) == 0


@given(numbers, st.sampled_from(ZEROS), st.sampled_from(MGSM))
def test_every_digit_system_reads_as_ascii_does(number, zero, code):
    plain = format_decimal(number, format="#,##,##0.00", locale="en")
    written = "".join(chr(ord(zero) + int(char)) if char.isdigit() else char for char in plain)
    assert parse_number(plain, code) == parse_number(written, code)
    if abs(number) >= 1000:  # two kinds of marks: one reading
        assert parse_number(written, code) == number


def test_all_digit_systems_are_tried():
    assert len(ZEROS) >= 60
    for zero in ZEROS:
        assert parse_number(chr(ord(zero) + 1) + zero + chr(ord(zero) + 9), "en") == 109


@given(st.text("0123456789१๒৩.,:/' -+−#$x\u00a0\n", max_size=20), st.sampled_from(["en", "de", "fr", "bn"]))
def test_the_number_found_is_the_number_read(text, code):
    found = find_number(text)
    if found is None:
        assert parse_number(text, code) is None
        assert "####" in text or not any(char.isdecimal() for char in text)
    else:
        assert parse_number(found, code) == parse_number(text, code)


def test_a_gold_answer_that_programs_wrote_is_no_text_of_a_language():
    assert number_match("1,234", ("1.234",), "de") == 1
    assert number_match("1.234", ("1.234",), "de") == 0
    assert number_match("1.234", ("1234",), "de") == 1
    assert number_match("1,234", ("1.234,0",), "de") == 0


def test_values_are_compared_and_not_letters():
    assert number_match("$18.00", ("18",), "en") == 1
    assert number_match("১৮", ("18",), "bn") == 1
    assert number_match("12", ("3", "12"), "en") == 1
    assert number_match("118", ("18",), "en") == 0
    assert number_match("18", (), "en") == 0
    assert number_match("none", ("none",), "en") == 0


def test_malformed_answers_are_wrong():
    metric = METRICS["number_match"]
    assert metric.score([None, "18", "ten"], [("18",)] * 3, "en").value == pytest.approx(100 / 3)
    assert [metric.is_right(one, ("18",), "en") for one in (None, "18", "ten")] == [False, True, False]
