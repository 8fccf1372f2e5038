"""What a run is doing right now: one live table on a terminal, plain single lines anywhere else.

The table has one column per arm in progress. It only shows numbers that it is given; the same numbers go to
``metrics.jsonl``, so nothing is known to the console alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Status:
    """One arm at one moment. Rates are per second, times in seconds, ``waits`` by cause, ``discards`` by reason."""

    phase: str
    arm: str
    update: int = 0
    updates: int = 0
    updates_per_s: float = 0.0
    trajectories_per_s: Mapping[str, float] = field(default_factory=dict)  # worker -> rate
    workers: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # role -> (up, total)
    replay_rows: int = 0
    replay_capacity: int = 0
    samples_per_insert: tuple[float | None, float | None] = (None, None)  # achieved, target
    lag: tuple[float, float] | None = None  # mean, max of the sampled batch
    waits: Mapping[str, float] = field(default_factory=dict)
    discards: Mapping[str, int] = field(default_factory=dict)
    score: tuple[float, float, float] | None = None  # normalised mean, low, high
    strength: float | None = None  # of the guidance, where it is automatic
    error: float | None = None  # of the last audit: one step in the simulator, over the data's variance
    note: str = ""
    elapsed_s: float = 0.0
    pretrain: tuple[int, int, float, float | None] | None = None  # step, steps, loss, held-out loss


def describe(status: Status) -> dict[str, str]:
    """The rows of one arm, label -> text, in the order shown; what does not apply is left out."""
    rows = {"phase": status.phase}
    if status.pretrain is not None:
        step, steps, loss, holdout = status.pretrain
        held = "" if holdout is None else f", held-out {holdout:.4g}"
        rows["pretraining"] = f"{_share(step, steps)}, loss {loss:.4g}{held}"
    if status.updates:
        rows["updates"] = _share(status.update, status.updates)
        rows["learner"] = f"{status.updates_per_s:,.1f} updates/s"
    if status.trajectories_per_s:
        rates = status.trajectories_per_s
        each = ", ".join(f"{worker} {rate:,.1f}" for worker, rate in rates.items())
        rows["trajectories/s"] = f"{sum(rates.values()):,.1f} ({each})" if len(rates) > 1 else each
    if status.workers:
        rows["workers"] = ", ".join(f"{role} {up}/{total}" for role, (up, total) in status.workers.items())
    if status.replay_capacity:
        rows["replay"] = _share(status.replay_rows, status.replay_capacity) + " rows"
    achieved, target = status.samples_per_insert
    if target is not None:
        rows["samples/insert"] = f"{'–' if achieved is None else f'{achieved:.2f}'} (target {target:g})"
    if status.lag is not None:
        rows["policy lag"] = f"mean {status.lag[0]:,.0f}, max {status.lag[1]:,.0f} updates"
    if status.strength is not None:
        rows["strength"] = f"{status.strength:.3g} (automatic)"
    if status.error is not None:
        rows["last audit"] = f"error {status.error:.3g} of the data's variance"
    if status.waits:
        rows["waits"] = ", ".join(f"{cause} {seconds:,.1f} s" for cause, seconds in status.waits.items())
    if status.discards:
        rows["discards"] = ", ".join(f"{reason} {count:,}" for reason, count in status.discards.items())
    if status.score is not None:
        mean, low, high = status.score
        rows["last score"] = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    if status.elapsed_s:
        rows["elapsed"] = _clock(status.elapsed_s)
    if status.note:
        rows["note"] = status.note
    return rows


def status_table(statuses: list[Status]) -> Table:
    """One table for all arms in progress: a row per figure, a column per arm."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    columns = [describe(status) for status in statuses]
    for status in statuses:
        table.add_column(Text(status.arm), overflow="fold")
    # The order in which `describe` lists labels, kept when the arms have different ones.
    full = {label: index for index, label in enumerate(_LABELS)}
    for label in sorted({label for rows in columns for label in rows}, key=full.__getitem__):
        table.add_row(Text(label, style="dim"), *(Text(rows.get(label, "–")) for rows in columns))
    return table


def status_line(status: Status) -> str:
    """The same figures in one line, for logs."""
    rows = describe(status)
    elapsed, phase = rows.pop("elapsed", "0:00"), rows.pop("phase")
    rest = " | ".join(f"{label} {text}" for label, text in rows.items())
    line = f"[{elapsed}] {status.arm} {phase}" + (f" | {rest}" if rest else "")
    return " ".join(line.split())


class StatusBoard:
    """Context manager that shows the latest statuses; ``message`` prints a line above the table.

    On a terminal the table is redrawn in place, at most four times a second. Elsewhere each arm gets one line every
    ``every`` seconds, and at once when an arm begins, ends or changes its phase.
    """

    def __init__(
        self, console: Console | None = None, every: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console()
        self._every = 0.25 if self.console.is_terminal else every
        self._clock = clock
        self._live: Live | None = None
        self._latest: list[Status] = []
        self._shown: tuple[tuple[str, str], ...] = ()
        self._last: float | None = None
        self._pending = False

    def __enter__(self) -> StatusBoard:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pending:
            self._show()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, statuses: list[Status]) -> None:
        """Take the newest statuses, one per arm in progress, and show them when it is time."""
        self._latest, self._pending = list(statuses), True
        phases = tuple((status.arm, status.phase) for status in statuses)
        if self._last is None or phases != self._shown or self._clock() - self._last >= self._every:
            self._shown = phases
            self._show()

    def message(self, text: str) -> None:
        """Print a line that stays: above the table on a terminal, in sequence elsewhere."""
        self._print(text)

    def _show(self) -> None:
        self._last, self._pending = self._clock(), False
        if self._live is not None:
            self._live.update(status_table(self._latest) if self._latest else Text(""), refresh=True)
        else:
            for status in self._latest:
                self._print(status_line(status))

    def _print(self, text: str) -> None:
        # Brackets in names and messages are text, not markup; long lines stay one line in a log.
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


_LABELS = (
    "phase", "pretraining", "updates", "learner", "trajectories/s", "workers", "replay", "samples/insert",
    "policy lag", "strength", "last audit", "waits", "discards", "last score", "elapsed", "note",
)  # fmt: skip


def _share(part: int, whole: int) -> str:
    return f"{part:,}/{whole:,} ({100 * part / max(whole, 1):.0f} %)"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
