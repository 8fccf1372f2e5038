"""The parts of a synthetic dataset in the making: one file per shard, so that an interrupted generation goes on.

A part is written whole or not at all, and only after the generation that it belongs to is written down in
``generation.json``: parts of different policies, models or settings never mix.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from raydiff.errors import UserError
from raydiff.files import whole_file
from raydiff.replay.block import BlockReport

GENERATION = "generation.json"


class Parts:
    """The folder of the parts of one generation, which ``identity`` describes in JSON-able values."""

    def __init__(self, folder: Path, identity: dict[str, Any], restart: bool = False) -> None:
        """Opens the folder, or makes it. Raises ``UserError`` when it holds another generation (unless ``restart``
        empties it) or cannot be written."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if restart:
                self.remove()
                folder.mkdir()
            self._claim(json.loads(json.dumps(identity)))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}: the parts of the dataset cannot be kept there ({error}). Give --out in a folder with write "
                "permission and free space, or --restart."
            ) from None

    def _claim(self, identity: dict[str, Any]) -> None:
        note = self.folder / GENERATION
        if not note.is_file():
            if any(self.folder.iterdir()):
                raise UserError(f"{self.folder} holds other files. Move them, or give another --out.")
            with whole_file(note) as part:
                part.write_text(json.dumps(identity, indent=1), encoding="utf-8")
            return
        known = json.loads(note.read_text(encoding="utf-8"))
        differing = sorted(key for key in known.keys() | identity.keys() if known.get(key) != identity.get(key))
        if differing:
            raise UserError(
                f"{self.folder} holds parts of another generation (different: {', '.join(differing)}). Give another "
                "--out, or --restart to throw them away."
            )

    def write(self, shard: int, rows: np.ndarray, report: BlockReport) -> None:
        """Keep the trajectories ``rows [n, L, C]`` of a shard."""
        about = {"transitions": report.transitions, "provenance": asdict(report.provenance), "dropped": report.dropped}
        with whole_file(self._path(shard)) as part:
            save_file({"rows": np.ascontiguousarray(rows)}, part, metadata={"about": json.dumps(about)})

    def about(self, shard: int) -> dict[str, Any] | None:
        """What is known of a shard; None where it is missing or damaged, which means that it is made again."""
        from safetensors import safe_open

        try:
            with safe_open(str(self._path(shard)), "numpy") as file:
                return json.loads(file.metadata()["about"])
        except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def rows(self, shard: int) -> np.ndarray:
        """Its trajectories ``[n, L, C]``."""
        return load_file(self._path(shard))["rows"]

    def known(self) -> dict[int, int]:
        """Transitions of each shard that is there."""
        shards = (int(path.stem) for path in self.folder.glob("*.safetensors"))
        found = {shard: self.about(shard) for shard in sorted(shards)}
        return {shard: int(about["transitions"]) for shard, about in found.items() if about is not None}

    def remove(self) -> None:
        """Delete what ``Parts`` has written, and the folder if nothing else is in it."""
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(".*.part"), self.folder / GENERATION]:
            path.unlink(missing_ok=True)
        self.folder.rmdir()

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:08d}.safetensors"
