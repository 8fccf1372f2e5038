"""Files that appear whole or not at all, and folders that can be written to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raydiff.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place in the end, or vanishes when something fails.

    The folder is made where it is missing. Raises ``OSError``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.touch()  # a folder that cannot be written to is found now, not after the work
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def probe_folder(folder: Path) -> None:
    """Make the folder, and sure that a file can be made in it. Raises ``OSError``."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_writable(path: Path, advice: str) -> None:
    """Raise ``UserError`` unless a file can be made beside ``path``: before the work is done that it is to hold.
    ``advice`` says what to do."""
    try:
        probe_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}). {advice}") from None
