"""What a run says: tables, words, and a page that holds everything."""

from __future__ import annotations

from pathlib import Path


def write_report(folder: Path) -> Path:
    """Write `report.html` and `table.md` of a finished run, from its folder alone.

    Args:
        folder: The run folder.

    Returns:
        The page.

    Raises:
        UserError: no run folder, an unfinished run, files that cannot be read or written.
    """
    from lingualift.report.page import render
    from lingualift.report.tables import Layout, to_markdown
    from lingualift.runs.claims import PAGE_FILE, TABLE_FILE, adopt, alone, files_of_older_run, place
    from lingualift.runs.folder import read_run

    run = read_run(folder)
    page = render(run)
    table = to_markdown(run.rows, run.comparisons, Layout.of(run.experiment, run.empty))
    with alone(folder):
        adopt(folder, files_of_older_run(folder))
        place(folder, {TABLE_FILE: table, PAGE_FILE: page})
    return folder / PAGE_FILE
