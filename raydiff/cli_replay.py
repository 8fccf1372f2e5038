"""``raydiff train --replay-batch``: one update of a run that stopped at a non-finite loss, done again and laid open."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from raydiff.cli_data import fit

if TYPE_CHECKING:
    from torch import Tensor

    from raydiff.roles.repeat_update import Repeated


def show_bad_update(path: Path) -> None:
    """Repeat the update in ``path`` and print its metrics, its batch, and the agent's state before and after."""
    from raydiff.roles.repeat_update import repeat

    found = repeat(path)
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    header = found.header
    algorithm = header["config"]["learner"]["algorithm"]
    console.print(
        f"{header['arm']}, {algorithm}, stage {header['stage']}, update {header['update']:,}: "
        f"{', '.join(header['non_finite'])} became non-finite.",
        highlight=False,
    )
    for table in (_metrics(found), _batch(found), _state(found)):
        fit(table, console)
        console.print(table)
    console.print(
        "The metrics are those of the run, bit by bit."
        if found.exact
        else "The metrics are not quite those of the run: another device, number of threads or version."
    )


def _metrics(found: Repeated) -> Table:
    table = _table("Metrics", "metric", "now", "in the run")
    for name, value in found.metrics.items():
        recorded = found.recorded.get(name)
        table.add_row(name, _number(value), "" if recorded is None else _number(recorded))
    return table


def _batch(found: Repeated) -> Table:
    table = _table("Batch", "field", "shape", "smallest", "largest", "not finite")
    for name, value in found.batch._asdict().items():
        if value is not None:
            table.add_row(name, _shape(value), *_extent(value))
    return table


def _state(found: Repeated) -> Table:
    """Only what is not whole before or after."""
    from raydiff.roles.bad_states import non_finite

    before, after = non_finite(found.before), non_finite(found.after)
    table = _table(
        "State of the agent: entries that are not finite", "tensor", "shape", "before", "after", "largest before"
    )
    for name, value in found.before.items():
        if name in before or name in after:
            counts = (f"{side.get(name, 0):,} of {value.numel():,}" for side in (before, after))
            table.add_row(name, _shape(value), *counts, _extent(value)[1])
    if not table.row_count:
        table.add_row("none", "", "", "", "")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _extent(value: Tensor) -> tuple[str, str, str]:
    whole = value[value.isfinite()]
    low, high = (_number(float(side)) for side in (whole.min(), whole.max())) if whole.numel() else ("–", "–")
    return low, high, f"{value.numel() - whole.numel():,}"


def _shape(value: Tensor) -> str:
    return " x ".join(str(size) for size in value.shape) or "1"


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else str(value)
