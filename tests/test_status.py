from __future__ import annotations

import io
from dataclasses import FrozenInstanceError, replace

import pytest
from rich.console import Console

from raydiff.status import Status, StatusBoard, describe, status_line, status_table

FULL = Status(
    phase="training",
    arm="guided",
    update=3400,
    updates=10_000,
    updates_per_s=212.34,
    trajectories_per_s={"generator/0": 150.0, "generator/1": 160.5},
    workers={"generator": (1, 2), "refiner": (1, 1)},
    replay_rows=12_288,
    replay_capacity=20_480,
    samples_per_insert=(31.8, 32.0),
    lag=(240.2, 610),
    waits={"learner: no chunk": 1.25},
    discards={"stale": 1024},
    score=(13.1, 11.9, 14.2),
    note="generator/1 restarts",
    elapsed_s=3725.0,
    pretrain=(16_000, 16_000, 0.2134, 0.2219),
)
EXPECTED = (
    "3,400/10,000 (34 %)", "212.3 updates/s", "310.5 (generator/0 150.0, generator/1 160.5)",
    "generator 1/2, refiner 1/1", "12,288/20,480 (60 %) rows", "31.80 (target 32)", "mean 240, max 610 updates",
    "learner: no chunk 1.2 s", "stale 1,024", "13.1 [11.9, 14.2]", "generator/1 restarts", "1:02:05",
    "16,000/16,000 (100 %), loss 0.2134, held-out 0.2219",
)  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def console(terminal: bool, width: int = 200) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None, legacy_windows=False)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_status_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        FULL.update = 1  # type: ignore[misc]


def test_line_and_table_say_everything() -> None:
    to = console(terminal=False)
    to.print(status_table([FULL]))
    for piece in EXPECTED:
        assert piece in status_line(FULL)
        assert piece in text(to)
    assert "\n" not in status_line(replace(FULL, note="two\nlines"))


def test_only_what_applies_is_shown() -> None:
    assert set(describe(Status(phase="pretraining", arm="shared", pretrain=(1, 10, 0.5, None)))) == {
        "phase",
        "pretraining",
    }
    assert describe(replace(FULL, samples_per_insert=(None, 32.0)))["samples/insert"] == "– (target 32)"


def test_table_has_a_column_per_arm() -> None:
    to = console(terminal=False)
    to.print(status_table([FULL, Status(phase="training", arm="real_only", update=5, updates=10)]))
    head = next(line for line in text(to).splitlines() if "guided" in line)
    assert head.index("guided") < head.index("real_only")
    lag = next(line for line in text(to).splitlines() if "policy lag" in line)
    assert lag.rstrip().endswith("–")  # real_only has none


def test_lines_come_at_the_interval_and_when_the_phase_changes() -> None:
    to, clock = console(terminal=False, width=40), Clock()
    with StatusBoard(to, every=5.0, clock=clock) as board:
        for clock.now in (0.0, 1.0, 4.9, 5.0, 6.0):
            board.update([replace(FULL, update=int(clock.now * 10))])
        board.update([replace(FULL, phase="final evaluation", update=61)])
        board.update([replace(FULL, phase="final evaluation", update=62)])
    lines = text(to).splitlines()
    assert [line.split("updates ")[1].split("/")[0] for line in lines] == ["0", "50", "61", "62"]
    assert all(line.startswith("[1:02:05] guided ") for line in lines)  # brackets survive, and no line is folded


def test_messages_are_plain_text_in_order() -> None:
    to = console(terminal=False, width=20)
    with StatusBoard(to, clock=Clock()) as board:
        board.update([FULL])
        board.message("generator/1 [pid 12] was lost: [bold]killed[/bold] and is started again")
    assert text(to).splitlines()[1] == "generator/1 [pid 12] was lost: [bold]killed[/bold] and is started again"


def test_terminal_shows_one_live_table_with_messages_above() -> None:
    to, clock = console(terminal=True), Clock()
    with StatusBoard(to, clock=clock) as board:
        board.update([FULL])
        clock.now = 0.1
        board.update([replace(FULL, update=3401)])  # too soon to be drawn
        assert "3,401/" not in text(to)
        board.message("checkpoint written")
        clock.now = 1.0
        board.update([replace(FULL, update=3402)])
        clock.now = 1.1
        board.update([replace(FULL, update=3403)])
    written = text(to)
    assert written.index("3,400/") < written.index("checkpoint written") < written.index("3,402/")
    assert "\x1b[" in written  # redrawn in place
    assert written.rstrip().rfind("3,403/") > written.rfind("3,402/")  # the last state stays on the screen
