"""The record of a run: one JSON object per line in ``metrics.jsonl``, its numbers mirrored to TensorBoard.

Everything that depends on the clock lies under the one key ``time`` of a record, so that two runs can be compared
without it. There is one writer per run; a line that was cut by a sudden end is dropped, and said to be dropped.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from raydiff.errors import UserError

Record = dict[str, Any]

FILE = "metrics.jsonl"

log = logging.getLogger(__name__)

# Keys that say which thing a record is about; they are steps and names, not curves.
_IDENTITY = frozenset({"kind", "arm", "update", "step", "steps", "block", "parent_block", "policy_version", "seed",
                       "time"})  # fmt: skip


class MetricsWriter:
    """Appends records to ``folder/metrics.jsonl`` and their scalars to ``folder/tensorboard``.

    Opening an existing file continues it; a last line that was cut is removed first, with a warning.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / FILE
        _mend(path)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(logdir=str(self.folder / "tensorboard"), flush_secs=10)

    def write(self, record: Record) -> None:
        """Append one record (numpy scalars and arrays are accepted, non-finite numbers become null) and flush it."""
        plain = _plain(record)
        self._file.write(json.dumps(plain, sort_keys=True, allow_nan=False) + "\n")
        self._file.flush()
        step = plain.get("update", plain.get("step"))
        if step is None:
            return
        time = plain.get("time") or {}
        for tag, value in scalars(plain):
            self._board.add_scalar(tag, value, step, walltime=time.get("end", time.get("at")))

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[Record]:
    """All records of a metrics file (or of the run folder that holds one), in the order they were written.

    A last line that was cut is left out with a warning. Raises ``UserError`` for a missing file and for a broken
    line anywhere else.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise UserError(f"There is no metrics file {path}. Name the folder of a run that `raydiff train` has begun.")
    lines = path.read_bytes().split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number == len(lines):  # only a line without its newline can be one that was cut
            log.warning("%s: the last line (%d) was cut by a sudden end and is left out", path, number)
        else:
            raise UserError(f"{path}, line {number}, is not a JSON object. Remove that line and run the command again.")
    return records


def without_time(record: Record) -> Record:
    """The record without its clock, for comparing two runs."""
    return {key: value for key, value in record.items() if key != "time"}


def select(records: list[Record], kind: str, arm: str | None = None) -> list[Record]:
    """The records of one kind, and of one arm where it is named."""
    return [r for r in records if r.get("kind") == kind and (arm is None or r.get("arm") == arm)]


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """TensorBoard tags and finite values of a plain record: ``guided/train/critic_loss``, ``pretrain/loss``; of one seed
    of several ``guided/seed 1/train/critic_loss``."""
    about = {"arm": record.get("arm"), "seed": record.get("seed"), "kind": record.get("kind")}
    prefix = "/".join(
        f"seed {value}" if key == "seed" else str(value) for key, value in about.items() if value is not None
    )
    for key, value in record.items():
        if key in _IDENTITY:
            continue
        if isinstance(value, dict):
            for name, inner in value.items():
                if _is_number(inner):
                    yield f"{prefix}/{name if key == 'losses' else f'{key}_{name}'}", float(inner)
        elif _is_number(value):
            yield f"{prefix}/{key}", float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Only what JSON knows: numpy to Python, tuples to lists, non-finite numbers to null."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:  # covers bad JSON and a UTF-8 sequence cut in the middle
        return None
    return record if isinstance(record, dict) else None


def _mend(path: Path) -> None:
    """End the file with a newline, so that the next record starts its own line."""
    if not path.is_file():
        return
    data = path.read_bytes()
    if not data or data.endswith(b"\n"):
        return
    start = data.rfind(b"\n") + 1
    with path.open("rb+") as file:
        if _parse(data[start:]) is None:
            log.warning("%s: the last line was cut by a sudden end and is removed", path)
            file.truncate(start)
        else:  # whole, only its newline is missing
            file.seek(len(data))
            file.write(b"\n")
