"""The folder of a run: made once, never mixed with another run's files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.presets import dump

OnExisting = Literal["refuse", "overwrite"]


def create_run_folder(config: Config, on_existing: OnExisting) -> Path:
    """Make ``output/name`` and write the resolved ``config.yaml`` into it.

    Raises ``UserError`` when it exists (unless it is a run and may be overwritten) or cannot be written.
    """
    folder = Path(config.output) / config.name
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            _clear(folder, on_existing)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump(config))
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be written ({error.strerror or error}). Choose another with "
            "output=FOLDER, or mend its permissions."
        ) from None
    return folder


def _clear(folder: Path, on_existing: OnExisting) -> None:
    if on_existing == "refuse":
        raise UserError(
            f"The run folder {folder} exists. Keep it and choose another with name=NAME, or replace it with "
            "--on-existing overwrite."
        )
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} exists and is not a run of raydiff (it has no config.yaml), so it is not overwritten. Choose "
            "another folder with output=FOLDER or name=NAME."
        )
    shutil.rmtree(folder)
