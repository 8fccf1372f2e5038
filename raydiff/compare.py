"""``raydiff report``: the report of one run made again, or one page and its pictures that compare several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raydiff.book import Book, check_folder, is_report_folder
from raydiff.comparison.conditions import compare
from raydiff.comparison.runs import load_runs
from raydiff.comparison.sections import comparison_page
from raydiff.errors import UserError
from raydiff.report import write_report

DEFAULT = "comparison"  # the folder beside the first run


def report(run_folders: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Write a report and return its files, ``index.html`` last.

    One folder: that run's own report, in its ``report/`` or in ``out``. Several: a comparison in ``out``, by default
    the folder ``comparison`` beside the first run. Raises ``UserError`` for folders that cannot be compared, and for
    an ``out`` that cannot be written or holds something else than a report.
    """
    folders = [Path(folder) for folder in run_folders]
    if len(folders) > 1:  # a pattern such as runs/* may catch an earlier comparison
        folders = [folder for folder in folders if not is_report_folder(folder)]
    if not folders:
        raise UserError("No run was named. Name one run folder to report on it, or several to compare them.")
    runs = load_runs(folders) if len(folders) > 1 else []
    beside = folders[0] / "report" if len(folders) == 1 else folders[0].resolve().parent / DEFAULT
    folder = out if out is not None else beside
    if out is not None or runs:
        check_folder(folder)
    try:
        if not runs:
            return write_report(folders[0], out)
        book = Book(folder)
        return book.finish(comparison_page(compare(runs), book))
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {folder} ({error.strerror or error}). Choose another folder with --out."
        ) from None
