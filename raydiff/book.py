"""The folder of a report: pictures as they are drawn, then the page, all written atomically."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.figure import Figure

from raydiff.errors import UserError
from raydiff.figures import save
from raydiff.files import whole_file
from raydiff.metrics import FILE
from raydiff.page import Page, Picture, is_report, render

INDEX = "index.html"
# Pictures that reports make; those that an earlier one left behind belong to other records and are removed.
_PICTURES = re.compile(
    r"(learning_curves|synthetic_data|maze|timeline|final_scores|improvement|data_quality|throughput|timelines)"
    r"(_[\w-]+)?\.png"
)


class Book:
    """A report in the making in ``folder``, which is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.written: list[Path] = []

    def picture(
        self, name: str, title: str, caption: str, figure: Figure | None, shows: str = "", missing: str = ""
    ) -> Picture:
        """Save ``figure`` as ``name.png`` and return it for the page; without a figure: why it is ``missing``."""
        if figure is None:
            return Picture(title, caption, None, missing)
        path = self.folder / f"{name}.png"
        save(figure, path)
        self.written.append(path)
        return Picture(title, caption, path.read_bytes(), shows=shows)

    def finish(self, page: Page) -> list[Path]:
        """Write the page, remove the pictures of an earlier report, and return all files."""
        index = self.folder / INDEX
        with whole_file(index) as part:
            part.write_text(render(page), encoding="utf-8")
        for path in self.folder.iterdir():
            if _PICTURES.fullmatch(path.name) and path not in self.written:
                path.unlink()
        return [*self.written, index]


def is_report_folder(folder: Path) -> bool:
    """Whether the folder holds a report of its own, and no run."""
    index = folder / INDEX
    return not (folder / FILE).is_file() and index.is_file() and is_report(index.read_text(errors="replace"))


def check_folder(folder: Path) -> None:
    """Raise ``UserError`` unless ``folder`` is missing, empty, or holds an earlier report."""
    if not folder.exists():
        return
    advice = "Choose another folder with --out, or remove what is there."
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, so no report can be written there. {advice}")
    if (folder / FILE).is_file():
        raise UserError(f"{folder} is the folder of a run. Choose another folder for the report with --out.")
    if any(folder.iterdir()) and not is_report_folder(folder):
        raise UserError(
            f"{folder} holds something else than a report of raydiff, so nothing is written there. {advice}"
        )
