"""Rows in five formats."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing.ground import ROWS, SCORE, known
from fuzzing.trial import OK, Trial
from fuzzing.values import NUMBERS, WORDS, damaged, odd, spoiled


def rows(draw: random.Random, here: Path) -> Trial:
    """Rows in five formats."""
    kind = draw.choice(("jsonl", "jsonl", "jsonl.gz", "csv", "parquet", "txt", "txt.gz"))
    content, right, what = _FORMATS[kind.split(".")[0]](draw)
    if kind.endswith("gz"):
        content = _bomb(draw) if draw.random() < 0.003 else gzip.compress(content, 1, mtime=0)
        if draw.random() < 0.3:
            content, what = damaged(draw, content), "compressed"
            right = known(lambda: gzip.decompress(content).decode())
    name = f"rows.{kind}"
    (here / name).write_bytes(content)
    return Trial(f"{kind}: {what}", _reads(draw, name, kind), right)


def _reads(draw: random.Random, name: str, kind: str) -> tuple[str, ...]:
    """A command that reads rows."""
    if kind.startswith("txt"):
        learn = (
            f"--task causal-lm --language en --data {name} --steps 1 --max-length 32 --batch-size 1 --rank 1"
        )
        return ("train", "--backbone", "miniworld", *learn.split(), "--output", "out")
    if draw.random() < 0.4:
        return ("predict", *SCORE, "--input", name, "--output", "out.jsonl")
    return ("evaluate", *SCORE, "--data", name, "--split", "train", "--output", "out.json")


def _json_rows(draw: random.Random) -> tuple[bytes, frozenset[str], str]:
    lines = [json.dumps(row).encode() for row in ROWS]
    at = draw.randrange(len(lines))
    if draw.random() < 0.02:
        return b"\n".join(lines), OK, "as it is"
    if draw.random() < 0.2:
        content, what = damaged(draw, b"\n".join(lines)), "bytes"
    elif draw.random() < 0.3:
        row = {**ROWS[at], "note": odd(draw), "more": [1, {"a": 2}]}
        lines[at], what = spoiled(draw, row), "unread columns"
        content = b"\n".join(lines)
    else:
        lines[at], what = spoiled(draw, ROWS[at]), "values"
        content = b"\n".join(lines)
    return content, known(lambda: _read_json(content)), what


def _read_json(content: bytes) -> None:
    """Read rows as strictly as the docs have it: NaN in the text raises, and so do half characters."""
    text = content.decode("utf-8-sig")
    for line in re.split(r"\r\n|\r|\n", text):
        if line.strip():
            row = json.loads(line)
            if isinstance(row["text"], float) and row["text"] != row["text"]:
                raise ValueError("NaN")
            for value in (row["text"], row.get("id")):
                if isinstance(value, bool | list | dict):
                    raise ValueError("no text")
            str(row["text"]).encode()


def _csv_rows(draw: random.Random) -> tuple[bytes, frozenset[str], str]:
    mark = draw.choice((",", ",", ";", "\t"))
    lines = [list(ROWS[0])] + [[str(value) for value in row.values()] for row in ROWS]
    if draw.random() < 0.6:
        line = draw.choice(lines)
        line[draw.randrange(len(line))] = draw.choice(
            (*WORDS, *map(str, NUMBERS[:-4]), '"', 'a"b', '"a', "a,b", "a\0b")
        )
    content = "\n".join(mark.join(cells) for cells in lines).encode("utf-8", "surrogatepass")
    content = damaged(draw, content) if draw.random() < 0.5 else content
    return content, known(lambda: content.decode("utf-8-sig")), "text"


def _text_rows(draw: random.Random) -> tuple[bytes, frozenset[str], str]:
    lines = [str(row["text"]) for row in ROWS] + [str(draw.choice(WORDS))]
    draw.shuffle(lines)
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    content = damaged(draw, content) if draw.random() < 0.6 else content
    return content, known(lambda: content.decode("utf-8-sig")), "text"


def _parquet_rows(draw: random.Random) -> tuple[bytes, frozenset[str], str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {name: pa.array([row[name] for row in ROWS]) for name in ROWS[0]}
    kinds: dict[str, Callable[[], Any]] = {
        "null": lambda: pa.nulls(3),
        "numbers": lambda: pa.array([1.5, float("nan"), float("inf")]),
        "integers": lambda: pa.array([1, 2, 2**63 - 1]),
        "bytes": lambda: pa.array([b"\xff", b"a", b""]),
        "no text": lambda: pa.Array.from_buffers(
            pa.string(), 3, [None, *pa.array([b"\xff\xfe", b"a", b"\xed\xa0\xbd"]).buffers()[1:]]
        ),
        "lists": lambda: pa.array([["a"], [], None]),
        "structs": lambda: pa.array([{"a": 1}, {"a": None}, None]),
        "times": lambda: pa.array([2**62, -(2**62), 0], pa.timestamp("us")),
        "durations": lambda: pa.array([2**62, 1, 0], pa.duration("s")),
        "dates": lambda: pa.array([2**30, -(2**30), 0], pa.date32()),
        "words": lambda: pa.array(["a", "b", None]).dictionary_encode(),
        "truth": lambda: pa.array([True, False, None]),
        "maps": lambda: pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        "decimals": lambda: pa.array([1, 2, 3]).cast(pa.decimal128(38, 2)),
        "halves": lambda: pa.array([1.0, 2.0, 3.0], pa.float16()),
        "deep": lambda: _nested(pa, 40),
    }
    what = "bytes"
    if draw.random() < 0.6:
        what = draw.choice(list(kinds))
        columns[draw.choice((*columns, "note"))] = kinds[what]()
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression=draw.choice(("none", "snappy", "gzip")))
    content = buffer.getvalue()
    if what == "bytes" or draw.random() < 0.1:
        content = damaged(draw, content)
    table = known(lambda: pq.read_table(io.BytesIO(content)).validate(full=True))
    return content, table, what


def _nested(pa: Any, depth: int) -> Any:
    array = pa.array([1, 2, 3])
    for _ in range(depth):
        array = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), array)
    return array


_FORMATS = {"jsonl": _json_rows, "csv": _csv_rows, "txt": _text_rows, "parquet": _parquet_rows}


def _bomb(draw: random.Random) -> bytes:
    """Some hundred megabytes, in some hundred kilobytes."""
    line = draw.choice(
        (b"x" * 300_000_000, b'{"text": "x"}\n' * 20_000_000, b'{"text": "' + b" " * 300_000_000)
    )
    return gzip.compress(line, 1, mtime=0)
