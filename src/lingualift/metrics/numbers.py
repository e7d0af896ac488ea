"""Numbers in generated text, in all digits and with the separators of its language. Pure.

`.` and `,` are read by the pattern where it tells which one is the decimal mark (`1.234,5`, `1,234.5`, `12,34,567`,
`0,125`), and by the language where it does not: `1.234` is 1234 in German and 1.234 in English. What marks a language
has is CLDR's (https://cldr.unicode.org). Number words (`twelve`, `三十`, `1.2万`) are not read.
"""

from __future__ import annotations

import re
from decimal import Decimal

from lingualift.languages import language as find_language

_COMMA = (
    "af ast az be bg br bs ca cs da de el eo es et eu fi fo fr fy gl hr ht hu hy id is it jv ka kab kea kk kmr ky lb "
    "lij ln lo lt lv mk nb nl nn pl ps pt rn ro ru rw sc sg sk sl sq sr ss su sv tg tk tr ts tt tzm uk uz vec vi wo "
    "ace ban bjn btk bug mad min nij"  # not in CLDR: as Indonesian
)
"""Languages with a decimal comma."""
_SPACED = (
    "af be bg br cs eo et fi fr ht hu hy ka kab kea kk ky lt lv nb nn nso pl ru sk sq ss sv tg tk ts tt tzm uk uz vec "
    "xh"
)
"""Languages that group digits by spaces, so that an ordinary space may do it; a no-break or thin one does anywhere."""

_MARK = "####"  # GSM8K's before the answer (https://arxiv.org/abs/2110.14168): who is trained on it writes it
_THIN = "\u00a0\u2007\u2009\u202f"
_LITERAL = re.compile(
    rf"(?:(?<![\w)\]])[-+])?(?:(?<!\S)\.)?\d+(?:(?:[.,'/:{_THIN}٫٬]| (?=\d{{3}}(?!\d)))\d+)*"
)
_SPACES = re.compile(r"\d{1,3}(?: \d{3})+(?:[.,٫]\d+)?")
_WHOLE = re.compile(r"\d*|\d{1,3}(?:([_,.'])\d{3})(?:\1\d{3})*|\d{1,2}(?:,\d{2})+,\d{3}")
_SAME = str.maketrans({"，": ",", "．": ".", "−": "-", "－": "-", "＋": "+", "’": "'"})
_GROUPS = str.maketrans(dict.fromkeys(f"{_THIN}٬", "_"))
_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def find_number(text: str) -> str | None:
    """The number that a generated text answers with, as it stands there; None where there is none.

    It is the first one after the first `####`, where that stands, as a model may write on after its answer; else the
    last one. Signs and separators of full width are given as `-`, `,` and `.`.

    Args:
        text: What was generated, the prompt not in it.
    """
    _, mark, marked = text.partition(_MARK)
    found = find_numbers(marked if mark else text)
    if not found:
        return None
    return found[0 if mark else -1]


def find_numbers(text: str) -> list[str]:
    """All numbers of a text, in order; signs and separators as `find_number` gives them."""
    return _LITERAL.findall(text.translate(_SAME))


def parse_number(text: str, language: str) -> Decimal | None:
    """The value of the number that a generated text answers with.

    Args:
        text: What was generated, the prompt not in it.
        language: BCP-47, ISO 639-3 or NLLB code.

    Returns:
        The value, or None where no number stands, or one that cannot be read, such as `3/4`, `10:30` or `1.2.3`.

    Raises:
        UserError: unknown language.
    """
    code = find_language(language).code
    literal = find_number(text)
    if literal is None:
        return None
    sign, body = (literal[0], literal[1:]) if literal[0] in "-+" else ("", literal)
    body = "".join(str(int(char)) if char.isdecimal() else char for char in body)
    grouped = _SPACES.fullmatch(body) and (code in _SPACED.split() or " 0" in body)
    if " " in body and not grouped:
        sign, body = "", body.rpartition(" ")[2]  # several numbers
    return _value(sign, body.replace(" ", "_").translate(_GROUPS), code in _COMMA.split())


def number_match(prediction: str, gold: tuple[str, ...], language: str) -> float:
    """1 if the answer's number equals that of an accepted answer; else 0.

    A gold answer that is a number as programs write it (`1234.5`) is taken as such in every language.
    """
    given = parse_number(prediction, language)
    true = (Decimal(one) if _PLAIN.fullmatch(one) else parse_number(one, language) for one in gold)
    return float(given is not None and any(given == one for one in true))


def _value(sign: str, body: str, comma: bool) -> Decimal | None:
    """Value of digits with marks: `_` groups, `٫` is decimal, `.` and `,` are to be told apart."""
    mark = _decimal_mark(body, comma)
    whole, _, fraction = body.rpartition(mark) if mark else (body, "", "0")
    if not _WHOLE.fullmatch(whole) or not fraction.isdecimal():
        return None
    digits = re.sub(r"\D", "", whole)
    return Decimal(f"{sign}{digits or 0}.{fraction}")


def _decimal_mark(body: str, comma: bool) -> str:
    """The decimal mark of digits with marks, "" where they have none."""
    if "٫" in body:
        return "٫"
    marks = re.findall("[.,]", body)
    if len(marks) != 1:  # of two kinds the last one is decimal; one that stands twice is not
        return marks[-1] if len(set(marks)) == 2 else ""
    (mark,) = marks
    groups = re.fullmatch(
        r"[1-9]\d{0,2}[.,]\d{3}", body
    )  # one that could group does so if the language says so
    return "" if groups and mark == (".,"[not comma]) else mark
