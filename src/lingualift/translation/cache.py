"""Translations of sentences on disk: what was translated once is not translated again."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lingualift.errors import UserError
from lingualift.evaluation.likelihood import Progress, in_batches
from lingualift.provenance import fingerprint, writing

_WAIT = 60.0  # seconds for another process to write its batch, which takes milliseconds


class Sentence(NamedTuple):
    """A translated sentence.

    Attributes:
        text: The translation.
        complete: Whether the model ended it; else it ran into the limit of its length.
    """

    text: str
    complete: bool


class Translator(Protocol):
    """What translates sentences from one language into another."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What determines a translation, beside the sentence."""

    @property
    def script(self) -> str:
        """ISO 15924 code of the target language's script."""

    def fits(self, text: str) -> bool:
        """Whether a text can be translated at once."""

    def knows(self, text: str) -> bool:
        """Whether the model can read and write every character of a text."""

    def translate(self, sentences: Sequence[str]) -> list[Sentence]:
        """One translation per sentence, all in one batch."""


class Cache:
    """A file of translations, safe against a kill at any time and for several processes at once (SQLite).

    Args:
        path: The file; it and its folder are made if they are not there.

    Raises:
        UserError: it is another kind of file, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._telling():
            self._file = sqlite3.connect(path, timeout=_WAIT, isolation_level=None)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS sentences"
                " (key TEXT PRIMARY KEY, text TEXT NOT NULL, complete INTEGER NOT NULL) WITHOUT ROWID"
            )

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, keys: Sequence[str]) -> dict[str, Sentence]:
        """Those that are there."""
        marks = ",".join("?" * len(keys))
        with self._telling():
            rows = self._file.execute(f"SELECT * FROM sentences WHERE key IN ({marks})", keys).fetchall()
        return {key: Sentence(text, bool(complete)) for key, text, complete in rows}

    def put(self, found: Mapping[str, Sentence]) -> None:
        """Keep translations, all of them or none; one that is there already stays."""
        with self._telling():
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany(
                "INSERT OR IGNORE INTO sentences VALUES (?, ?, ?)",
                [(key, *one) for key, one in found.items()],
            )
            self._file.execute("COMMIT")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                self.path,
                f"cannot be used as a cache of translations ({error})",
                "a file of `lingualift translate`, on a disk with space",
                "name another --cache, or remove the file",
            ) from error


class Desk:
    """Translates sentences in batches of like length, each sentence once.

    Args:
        translator: Translates what the cache does not have.
        cache: Takes every batch as soon as it is translated.
        batch_size: Sentences per batch.
        progress: Called with characters done and characters in all.
    """

    def __init__(self, translator: Translator, cache: Cache, batch_size: int, progress: Progress) -> None:
        self.translator, self.cache = translator, cache
        self.batch_size, self.progress = batch_size, progress
        self.found: dict[str, Sentence] = {}
        self.new = 0
        self._done = self._total = 0

    def translate(self, sentences: Sequence[str]) -> None:
        """See to it that `found` has a translation of each sentence.

        The batches are the same whatever the cache holds, so that a command that was killed writes what it would
        have written.
        """
        wanted = sorted(set(sentences) - self.found.keys(), key=lambda text: (-len(text), text))
        self._total += sum(map(len, wanted))
        for batch, found in in_batches(wanted, self.batch_size, self._batch):
            self.found.update(zip(batch, found, strict=True))
            self._done += sum(map(len, batch))
            self.progress(self._done, self._total)

    def _batch(self, sentences: Sequence[str]) -> list[Sentence]:
        keys = {text: fingerprint([dict(self.translator.identity), text]) for text in sentences}
        known = self.cache.get(list(keys.values()))
        missing = [text for text in sentences if keys[text] not in known]
        if missing:
            translated = self.translator.translate(missing)
            self.new += len(missing)
            self.cache.put({keys[text]: one for text, one in zip(missing, translated, strict=True)})
            known = self.cache.get(list(keys.values()))  # of two processes the first to write counts
        return [known[key] for key in keys.values()]
