"""What a run says: tables, words, and a page that holds everything."""

from __future__ import annotations

from pathlib import Path

PAGE_FILE, TABLE_FILE = "report.html", "table.md"


def write_report(folder: Path) -> Path:
    """Write `report.html` and `table.md` of a finished run, from its folder alone.

    Args:
        folder: The run folder.

    Returns:
        The page.

    Raises:
        UserError: no run folder, an unfinished run, files that cannot be read or written.
    """
    from lingualift.provenance import write_text
    from lingualift.report.folder import read_run
    from lingualift.report.page import render
    from lingualift.report.tables import to_markdown

    run = read_run(folder)
    page = render(run)
    write_text(folder / TABLE_FILE, to_markdown(run.rows, run.comparisons, run.layout))
    write_text(folder / PAGE_FILE, page)
    return folder / PAGE_FILE
