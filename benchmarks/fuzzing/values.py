"""What a fuzzer puts in the place of what belongs there: in JSON, in YAML, in bytes, in words."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

CANARY = "../canary"
"""A file that only code which an input carries can make, from the folder of the input."""

CODE = f'm"\nopen("{CANARY}", "w")  #'
"""A word that is a statement of Python where somebody puts it between quotes."""

HOSTILE_PATTERNS = ("((.*)*)*!", "(([a-z0-9._]+)+)+!", "(.*.*)*(.*.*)*!", "(?:.?){60}.{60}!")
"""They match nothing here, and a backtracking engine tries for ever."""

# fmt: off
PATTERNS = (
    "[a-z]_proj|q_proj", "[/x]|q_proj", "(", "*", "(?P<a>", "\\", "[", "(?i", "x{99999999999}", ".*", "",
)
# fmt: on

# fmt: off
WORDS = (
    "", " ", "\0", "\ud83d", "a\ud800b", "\x1b[2J\x1b]0;owned\x07", "\x85\x9b31m", "\u202e", "[/x]",
    "[bold]a[/bold]", "[a-z]", "a | b\n| c <img src=x onerror=alert(1)>", "<script>alert(1)</script>", CODE,
    'main"); open("' + CANARY + '", "w"); ("', "../../../etc/passwd", "/dev/zero", "{language}", "{",
    "{0.__class__}", "%s%n", "nan", "1e30", "é" * 200, "x" * 300, "x" * 100_000, "a\nb\rc\td",
)
# fmt: on
NUMBERS = (0, -1, 1, 2, 2**31, 2**63, -(2**63) - 1, 10**12, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, [1, "a", None], {"a": {"b": [1]}})
# fmt: off
JSON_TEXTS = (
    "NaN", "-Infinity", "1e400", "-0", "01", "1" * 5000, "-" + "9" * 5000, "0." + "1" * 5000, '"\\ud83d"',
    '"\\ude00\\ud83d"', '"\\x41"', '"\\u12"', '"a\nb"', "'a'", "True", "", '{"a": 1, "a": 2}', '"unfinished',
    "[1, 2", *("[" * depth + "]" * depth for depth in (300, 600, 990, 5000, 100_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (300, 990, 5000)),
)
# fmt: on
"""Values that `json.dumps` does not write."""

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"
PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def spoiled(draw: random.Random, value: Any) -> bytes:
    """The JSON of a value with one to three things wrong."""
    value, texts = copy.deepcopy(value), list[str]()
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = _spoiled_once(draw, value, texts)
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
    for number, raw in enumerate(texts):
        text = text.replace(f'"@{number}@"', raw)
    content = text.encode("utf-8", "surrogatepass")
    return damaged(draw, content) if draw.random() < 0.1 else content


def odd(draw: random.Random, texts: list[str] | None = None) -> Any:
    """A value that nobody expects; of JSON that `json.dumps` does not write, a sign that `spoiled` replaces."""
    if texts is not None and draw.random() < 0.25:
        texts.append(draw.choice(JSON_TEXTS))
        return f"@{len(texts) - 1}@"
    return copy.deepcopy(draw.choice(draw.choice((WORDS, NUMBERS, OTHERS))))


def _spoiled_once(draw: random.Random, value: Any, texts: list[str]) -> Any:
    places = list(_places(value))
    if not places or draw.random() < 0.03:
        return odd(draw, texts)
    place, key = draw.choice(places)
    how = draw.random()
    if how < 0.6:
        place[key] = odd(draw, texts)
    elif how < 0.75:
        del place[key]
    elif how < 0.8:
        place[key] = [place[key]]
    elif how < 0.85:
        place[key] = str(place[key])
    elif how < 0.9:
        other, name = draw.choice(places)
        place[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(place[key])
    elif isinstance(place, dict):
        place[str(draw.choice(WORDS))] = place.pop(key) if how < 0.95 else odd(draw, texts)
    else:
        place.insert(key, odd(draw, texts))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a value, with every key or index of it."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def _somewhere(draw: random.Random, content: bytes) -> int:
    return draw.randrange(len(content) + 1)


def _flipped(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 8, 200)) if content else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _inserted(draw: random.Random, content: bytes) -> bytes:
    at = _somewhere(draw, content)
    new = (b"\0", b"\xff\xfe", b"\xed\xa0\xbd", b"\r", b"\x1b[2J", b"\x80", b'"', b"{", b"\\", b"," * 50)
    return content[:at] + draw.choice(new) + content[at:]


def _taken_out(draw: random.Random, content: bytes) -> bytes:
    first, last = sorted((_somewhere(draw, content), _somewhere(draw, content)))
    return content[:first] + content[last:]


def _encoded(draw: random.Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(draw.choice(("utf-16", "utf-16-le", "utf-8-sig", "cp1252", "utf-7")), "replace")


# fmt: off
_DAMAGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flipped, _flipped, lambda draw, content: content[: _somewhere(draw, content)], _inserted, _taken_out,
    lambda draw, content: content + content[_somewhere(draw, content) :], _encoded,
    lambda draw, content: draw.choice((b"", b"\0" * 64, POINTER, PAGE, b"null", b"[]", b"{}", b"\x80\x04.")),
)
# fmt: on


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Bytes of which some are others, are missing, or are too many."""
    return draw.choice(_DAMAGES)(draw, content)


# fmt: off
YAML_VALUES = (
    '!!int ""', '!!float ""', "!!bool nope", "!!timestamp nope", "2024-99-99", "2024-01-01",
    "2024-01-01T99:00:00Z", '"\\UFFFFFFFF"', '"\\ud83d"', '"\\xZZ"', "0x" + "f" * 6000, "1" * 6000, "0b", "0o8",
    "0x", "1e400", "1_000", "12:30:45", ".inf", "-.inf", ".nan", "yes", "on", "no", "~", "=", "<<", "!!null x",
    "!!binary x", "!!set {a}", "!!omap [a]", "!!pairs [a]", "!!seq {}", "!!map []", "!foo x", "!<tag:x> y",
    f'!!python/object/apply:os.system ["touch {CANARY}"]', f'!!python/object/new:open ["{CANARY}", "w"]',
    "&a [*a]", "&a {b: *a}", "*nobody", "{[]: 1}", "{{}: 1}", "{<<: 1}", "{<<: [1]}", "{? a}", "{a: 1, a: 2}",
    "|", "@", "`", "%", "- -", "[" * 600, "[" * 400 + "]" * 400, "{a: " * 400 + "1" + "}" * 400, '"\0"',
    "\u2028", "'", '"', "[,]", "-1", "0", "1e12", "9223372036854775808", "1" + "0" * 400, "0.1", "[]", "{}",
    '"[/x]"', '"\\e[2J"', "x" * 100_000,
)
# fmt: on
"""YAML of one line for what stands behind a colon."""

_BOMB = "".join(f"z{n}: &z{n} [{', '.join([f'*z{n - 1}'] * 9) if n else 'x'}]\n" for n in range(10))
_BOMBS = (_BOMB, f"{_BOMB}seeds: *z9\n", f"{_BOMB}backbone: *z9\n", f"{_BOMB}methods: *z9\n")
"""A few lines that name a billion words."""
# fmt: off
_YAML_LINES = (
    "---\n", "...\n", "%YAML 9.9\n---\n",
    "%TAG ! x\n---\n", "\t\n", "\ufeff", "? [a]\n: b\n", "<<: {backbone: 1}\n", "1: 2\n", "~: 1\n",
    "2024-01-01: 1\n", "? !!float nope\n: 1\n",
)
# fmt: on


def spoiled_yaml(draw: random.Random, text: str) -> bytes:
    """YAML of which a value, a line, or anything is another."""
    how = draw.random()
    lines = text.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    if how < 0.004:
        lines.append(draw.choice(_BOMBS))
    elif how < 0.6:
        head, colon, _ = lines[at].partition(":")
        lines[at] = f"{head}{colon} {draw.choice(YAML_VALUES)}\n"
    elif how < 0.75:
        lines.insert(draw.choice((0, at, len(lines))), draw.choice(_YAML_LINES))
    elif how < 0.85:
        lines[at] = draw.choice(
            ("", lines[at] * 2, " " + lines[at], lines[at].replace(":", " "), "#" + lines[at])
        )
    else:
        return damaged(draw, text.encode())
    return "".join(lines).encode("utf-8", "surrogatepass")
