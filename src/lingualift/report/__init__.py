"""What a run says: tables, words, and a page that holds everything; and what several say together."""

from __future__ import annotations

from pathlib import Path

from lingualift.errors import UserError, setting


def write_report(*runs: Path | str, output: Path | str | None = None) -> Path:
    """Write `report.html` and `table.md` of finished runs, from their folders alone.

    Args:
        runs: Run folders; several are joined on one page.
        output: Folder to write, made if it is not there; the run folder when left out, of a single run.

    Returns:
        The page.

    Raises:
        UserError: no run folder, an unfinished run, files that cannot be read or written, runs that cannot be joined.
    """
    from lingualift.languages import knowing
    from lingualift.report.joined import join
    from lingualift.report.markdown import to_markdown
    from lingualift.report.page import render, render_joined
    from lingualift.report.published import beside_papers, markdown_beside
    from lingualift.report.tables import Layout
    from lingualift.runs.folder import read_run

    folder = _place([Path(run) for run in runs], Path(output) if output else None)
    found = [read_run(Path(run)) for run in runs]
    if len(found) == 1:
        (run,) = found
        with knowing(run.experiment.languages.added()):
            page, papers = render(run), markdown_beside(beside_papers(run))
        layouts = Layout.of(run.experiment, run.empty)
        return _write(folder, page, to_markdown(run.rows, run.comparisons, layouts, papers))
    joined = join(found)
    own = {added.code: added for run in found for added in run.experiment.languages.added()}
    with knowing(tuple(own.values())):
        return _write(folder, render_joined(joined), joined.to_markdown())


def _place(runs: list[Path], output: Path | None) -> Path:
    """Where the page goes.

    Raises:
        UserError: no run is named, nowhere to write, or the folder of a run.
    """
    from lingualift.runs.claims import EXPERIMENT_FILE

    if not runs:
        raise UserError("report", "names no run", "one run folder or several", "name the --output of a run")
    if output is None and len(runs) > 1:
        mend = f"name one: {setting('output', 'joined')}"
        raise UserError(
            setting("output"), f"is missing, and {len(runs)} runs are joined", "a new folder", mend
        )
    if output is None or (len(runs) == 1 and output.resolve() == runs[0].resolve()):
        return runs[0]
    if (output / EXPERIMENT_FILE).exists():
        raise UserError(
            output, "is a run folder, whose own report stands there", "a new folder", "choose another"
        )
    return output


def _write(folder: Path, page: str, table: str) -> Path:
    from lingualift.runs.claims import PAGE_FILE, TABLE_FILE, adopt, alone, files_of_older_run, place

    with alone(folder):
        adopt(folder, files_of_older_run(folder))
        place(folder, {TABLE_FILE: table, PAGE_FILE: page})
    return folder / PAGE_FILE
