"""Finished and unfinished runs as they lie on disk: settings, records and summary of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.metrics import FILE, Record, read_metrics, select
from raydiff.report import read_settings, read_summary

SCALES = ("d4rl", "minari", "raw")
MINARI = "minari:"  # what the ids of Minari's datasets begin with in data.dataset


@dataclass(frozen=True)
class Run:
    """One run folder. ``settings`` are dotted keys without the arms; ``arms`` are all that it has records of.

    ``name`` is the folder's, with as much of its path as sets it apart from the other runs.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    changes: dict[str, dict[str, Any]]
    records: list[Record] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def arms(self) -> list[str]:
        """Arms with records, in the order in which they began."""
        return list(dict.fromkeys(str(r["arm"]) for r in self.records if r.get("arm")))

    @property
    def scale(self) -> str:
        """What the scores can be compared with: ``d4rl``, ``minari`` (never one table with D4RL's) or ``raw``."""
        if not any((r.get("normalized") or {}).get("mean") is not None for r in select(self.records, "evaluate")):
            return "raw"
        return "minari" if str(self.settings.get("data.dataset") or "").startswith(MINARI) else "d4rl"

    def dataset(self, key: str) -> str | None:
        """A fact about the data or the simulator from the summary, or None before the run has ended."""
        found = (self.summary.get("dataset") or {}).get(key)
        return None if found is None else str(found)

    def version(self, package: str) -> str | None:
        found = (self.summary.get("versions") or {}).get(package)
        return None if found is None else str(found)

    def seeds(self, arm: str) -> list[int]:
        """The seeds of an arm: those that its records name where several were trained at once, else that of its
        settings."""
        found = sorted({int(r["seed"]) for r in self.records if r.get("arm") == arm and r.get("seed") is not None})
        return found or [int(self.arm_settings(arm).get("seed") or 0)]

    def arm_settings(self, arm: str) -> dict[str, Any]:
        """Dotted settings of one arm: those of the run with the arm's own changes."""
        return self.settings | self.changes.get(arm, {})


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read every run, in the order given.

    Raises ``UserError`` for a folder that is missing, is no run, has no records or is named twice.
    """
    known: dict[Path, Path] = {}
    for folder in folders:
        real = folder.resolve()
        if real in known:
            raise UserError(
                f"{folder} and {known[real]} are the same run. Name every run once: counted twice it would look like "
                "two seeds."
            )
        known[real] = folder
    return [_load(folder, name) for folder, name in zip(folders, _names(list(known)), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as all need to be told apart."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _load(folder: Path, name: str) -> Run:
    if not folder.exists():
        raise UserError(f"There is no folder {folder}. Name folders of runs, such as runs/demo.")
    missing = [name for name in ("config.yaml", FILE) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is not a run of raydiff: it has no {' and no '.join(missing)}.{_inside(folder)}")
    settings = read_settings(folder)
    records = read_metrics(folder)
    if not any(record.get("arm") for record in records):
        raise UserError(
            f"The run {folder} has no records of any arm yet, so there is nothing to compare. Wait until it has begun "
            "to learn, or leave it out."
        )
    arms = settings.pop("arms", None) or {}
    changes = {name: _flat(values) for name, values in arms.items() if isinstance(values, Mapping)}
    # A setting that the run's version did not have yet is at its default: that is how older runs behave like new ones.
    known = _flat(Config().model_dump(mode="json", exclude={"arms"})) | _flat(settings)
    return Run(name, folder, known, changes, records, read_summary(folder))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _inside(folder: Path) -> str:
    """A hint where the folder holds runs."""
    if not folder.is_dir():
        return " Name the folder itself."
    runs = sorted(path.parent.name for path in folder.glob(f"*/{FILE}"))
    return f" It holds runs: name those, such as {folder / runs[0]} or {folder}/*." if runs else ""
