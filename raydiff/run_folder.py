"""The folder of a run: made once, never mixed with another run's files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.files import probe_folder
from raydiff.presets import dump

OnExisting = Literal["refuse", "overwrite"]
FILES_OF_A_RUN = ("config.yaml", "metrics.jsonl")


def check_run_folder(config: Config, on_existing: OnExisting) -> Path:
    """Raise ``UserError`` where ``output/name`` exists (unless it is a run and may be overwritten) or cannot be
    written. Nothing is changed, so that it can be asked before the data are known to be good."""
    folder = Path(config.output) / config.name
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            _check_existing(folder, on_existing)
        _probe(folder)
    except OSError as error:
        raise _not_writable(folder, error) from None
    return folder


def create_run_folder(config: Config, on_existing: OnExisting) -> Path:
    """Make ``output/name``, empty but for the resolved ``config.yaml``. Raises what ``check_run_folder`` raises."""
    folder = check_run_folder(config, on_existing)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (folder / "config.yaml").write_text(dump(config))
    except OSError as error:
        raise _not_writable(folder, error) from None
    return folder


def _check_existing(folder: Path, on_existing: OnExisting) -> None:
    if on_existing == "refuse":
        raise UserError(
            f"The run folder {folder} exists. Keep it and choose another with name=NAME, or replace it with "
            "--on-existing overwrite."
        )
    missing = [name for name in FILES_OF_A_RUN if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} exists and is not a run of raydiff (it has no {' and no '.join(missing)}), so it is not "
            "overwritten. Choose another folder with output=FOLDER or name=NAME."
        )


def _probe(folder: Path) -> None:
    """Write a nameless file into the folder and remove what had to be made for that. Raises ``OSError``."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        probe_folder(folder)
    finally:
        for path in made:
            if path.is_dir():
                path.rmdir()


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"The run folder {folder} cannot be written ({error.strerror or error}). Choose another with "
        "output=FOLDER, or mend its permissions."
    )
