"""Data sets on the hub: the commit of a branch, the files of a split, and the rows in them. No script is ever run."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingualift.data.tables import ArrowTable, Table, read_table
from lingualift.errors import UserError, did_you_mean, setting

CONVERTED = "refs/convert/parquet"
"""The branch that the hub itself fills with parquet, where the main branch holds a script."""
DRAWN = 10  # a sample's rows come from parts of the files that hold so many times as many


@dataclass(frozen=True)
class Snapshot:
    """A data set on the hub at a commit.

    Attributes:
        hub: Its id.
        branch: What was asked for.
        commit: The full commit that it means.
        licence: As its card says it, if it does.
        sizes: Its files -> bytes.
    """

    hub: str
    branch: str
    commit: str
    licence: str | None
    sizes: Mapping[str, int]

    def files(self, config: str, split: str) -> list[str]:
        """The files of a split, in order; none where there are none that can be read."""
        for layout in _LAYOUTS:
            for suffix in _SUFFIXES:
                parts = layout.format(config=re.escape(config), split=re.escape(split)) + re.escape(suffix)
                if found := [name for name in self.sizes if re.fullmatch(parts, name)]:
                    return sorted(found)
        return []


_SUFFIXES = (".parquet", ".jsonl.gz", ".jsonl", ".csv")
_LAYOUTS = (
    r"(?:data/)?{config}/{split}(?:-\d+-of-\d+(?:-\w+)?)?",  # what `datasets` pushes
    r"{config}/{split}/\d+",  # what the hub converts
    r"{config}/\w[\w-]*-{split}(?:-\d+-of-\d+)?",  # what it converted before August 2023
)
"""How files of a split are called, without their suffix; the first that there are hold it, in one format."""


class Hub:
    """What the hub has, asked once: each data set is read at one commit of a branch.

    Args:
        revision: Branch, tag or commit; the main branch, or that of the converted files, where None.
        known: Data set -> commits at which it was read before, where it is read again.
    """

    def __init__(self, revision: str | None, known: Mapping[str, Sequence[str]]) -> None:
        self._revision, self._known = revision, known
        self._snapshots: dict[tuple[str, str], Snapshot] = {}

    def find(self, hub: str, config: str, split: str) -> tuple[Snapshot, list[str]]:
        """A data set at the commit to read, and the files of a split.

        Raises:
            UserError: the hub does not answer, does not let one in, or has no such files.
        """
        branches = self._branches(hub)
        looked: list[Snapshot] = []
        for branch in branches:
            with contextlib.suppress(_NoBranch):
                looked.append(self._snapshot(hub, branch, spare=branch == CONVERTED))
                if found := looked[-1].files(config, split):
                    return looked[-1], found
        folders = {name.split("/")[0] for one in looked for name in one.sizes if "/" in name}
        raise UserError(
            f"{hub} {config} {split}",
            f"has no files at {' or '.join(branches)}",
            f"parquet, CSV or JSON Lines, in a folder {config}",
            did_you_mean(config, folders - {config}) if folders else f"name another {setting('revision')}",
        )

    def _branches(self, hub: str) -> Sequence[str]:
        known = self._known.get(hub, ())
        if self._revision is None:
            return known or ("main", CONVERTED)
        commit = self._snapshot(hub, self._revision).commit
        if known and commit not in known:
            found = f"is {commit} at {self._revision}, and files of {known[0]} are there already"
            raise UserError(hub, found, "one commit in a folder", f"choose another {setting('output')}")
        return (self._revision,)

    def _snapshot(self, hub: str, branch: str, spare: bool = False) -> Snapshot:
        """A data set at a branch; one that it lacks raises `_NoBranch` where it is `spare`."""
        if (hub, branch) not in self._snapshots:
            from huggingface_hub import HfApi
            from huggingface_hub.errors import RevisionNotFoundError

            with asking(hub, branch):
                try:
                    info = HfApi().dataset_info(hub, revision=branch, files_metadata=True)
                except RevisionNotFoundError:
                    if spare:
                        raise _NoBranch from None
                    raise
            sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
            licence = _licence(info.card_data)
            if licence is None and branch != "main":  # converted files come without a card
                licence = self._snapshot(hub, "main").licence
            self._snapshots[hub, branch] = Snapshot(hub, branch, str(info.sha), licence, sizes)
        return self._snapshots[hub, branch]


class _NoBranch(Exception):
    """A branch that a data set need not have is not there."""


def _licence(card: Any) -> str | None:
    said = getattr(card, "license", None)
    return ", ".join(map(str, said)) if isinstance(said, list) else said and str(said)


@contextlib.contextmanager
def asking(hub: str, revision: str) -> Iterator[None]:
    """Turn what the hub's client raises into an error that says what to do.

    Raises:
        UserError: no such data set or revision, no access, no network.
    """
    from huggingface_hub import errors

    try:
        yield
    except (UserError, _NoBranch):
        raise
    except errors.GatedRepoError:
        mend = f"ask for access at https://huggingface.co/datasets/{hub}, and log in with `hf auth login`"
        raise UserError(hub, "is open only to those whom its owner let in", mend=mend) from None
    except errors.RevisionNotFoundError:
        mend = f"name a branch, a tag or a commit that it has, or leave {setting('revision')} out"
        raise UserError(hub, f"has no revision {revision!r}", mend=mend) from None
    except errors.RepositoryNotFoundError:
        mend = "log in with `hf auth login` if it is private by now, or export from a copy of your own"
        raise UserError(hub, "is not on the hub, or not to be seen without a login", mend=mend) from None
    except Exception as error:  # the client raises many kinds, and those of what it asks the network by
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            hub,
            f"cannot be read from the hub ({reason})",
            mend="check the network and HF_HUB_OFFLINE, and run it again: it goes on where it stopped. Or run it "
            "where there is a network, and copy the folder",
        ) from error


def fetched(snapshot: Snapshot, file: str, columns: Sequence[str]) -> Table:
    """The rows of a file, which is fetched into the hub's own cache if need be.

    Raises:
        UserError: as `asking`; as `read_table`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    with asking(snapshot.hub, snapshot.commit):
        path = hf_hub_download(snapshot.hub, file, repo_type="dataset", revision=snapshot.commit)
    return read_table(Path(path), columns, None)[0]


@dataclass(frozen=True)
class Part:
    """A row group of a parquet file on the hub, and which of its rows are drawn.

    Attributes:
        file: Name of the file.
        group: Its place in the file.
        rows: How many it has.
        size: Bytes to fetch.
        chosen: Places of the rows that are drawn, in order.
    """

    file: str
    group: int
    rows: int
    size: int
    chosen: tuple[int, ...] = ()


def parts_of(snapshot: Snapshot, files: Sequence[str], columns: Sequence[str]) -> list[Part]:
    """The row groups of parquet files, of which the ends alone are fetched; raises as `asking`."""
    found = []
    for file in files:
        with asking(snapshot.hub, snapshot.commit), _remote(snapshot, file) as opened:
            metadata = opened.metadata
            for group in range(metadata.num_row_groups):
                about = metadata.row_group(group)
                cells = (about.column(place) for place in range(about.num_columns))
                size = sum(one.total_compressed_size for one in cells if one.path_in_schema in columns)
                found.append(Part(file, group, about.num_rows, size))
    return found


def drawn(parts: Sequence[Part], rows: int, seed: int) -> list[Part]:
    """A sample of rows: parts are drawn that hold `DRAWN` times as many, and of their rows as many as are wanted."""
    order = random.Random(seed).sample(range(len(parts)), len(parts))
    taken, held = [], 0
    for place in order:
        if held >= DRAWN * rows:
            break
        taken.append(place)
        held += parts[place].rows
    chosen = set(random.Random(seed).sample(range(held), min(rows, held)))
    found, begin = [], 0
    for part in (parts[place] for place in sorted(taken)):
        places = tuple(place for place in range(part.rows) if begin + place in chosen)
        begin += part.rows
        if places:
            found.append(Part(part.file, part.group, part.rows, part.size, places))
    return found


def part_rows(snapshot: Snapshot, part: Part, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a part that are drawn; raises as `asking`."""
    with asking(snapshot.hub, snapshot.commit), _remote(snapshot, part.file) as opened:
        content = opened.read_row_group(part.group, columns=list(columns)).take(list(part.chosen))
    yield from ArrowTable(content, content.num_rows, None, {}).each(columns)


@contextlib.contextmanager
def _remote(snapshot: Snapshot, file: str) -> Iterator[Any]:
    """A parquet file on the hub, of which no more is fetched than is read."""
    from huggingface_hub import HfFileSystem
    from pyarrow.parquet import ParquetFile

    place = f"datasets/{snapshot.hub}@{snapshot.commit}/{file}"
    with HfFileSystem().open(place, "rb", block_size=1 << 16) as opened:
        yield ParquetFile(opened)
