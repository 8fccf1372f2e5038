from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from raydiff.cli import guarded, main
from raydiff.cli_data import fit
from raydiff.data.d4rl import read_d4rl
from raydiff.errors import RunFailed, UserError
from raydiff.presets import describe

COMMANDS = {
    "train": "raydiff train configs/demo.yaml learner.batch_size=512",
    "plan": "raydiff plan configs/demo.yaml generator.count=8 --cluster cluster.json",
    "report": "raydiff report runs/guided-0 runs/guided-1 runs/unguided-0 runs/unguided-1",
    "evaluate": "raydiff evaluate runs/guided-0 runs/guided-1 runs/real-0 runs/real-1 --episodes 100 --json scores.json",
    "export": "raydiff export runs/demo --arm guided --out policy",
    "data list": "raydiff data list hopper",
    "data info": "raydiff data info hopper-random.hdf5 --picture hopper-random.png",
    "data collect": "raydiff data collect Pendulum-v1 --levels random,medium,expert --transitions 20000 --out pendulum",
    "data convert": "raydiff data convert hopper-random.hdf5 minari:mine/hopper/random-v0",
    "data download": "raydiff data download hopper-medium-v2",
}


class Raydiff:
    """``raydiff ARGUMENTS`` in this process: exit code, stdout, stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["raydiff", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = self.capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, captured.out, captured.err


@pytest.fixture
def raydiff(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Raydiff:
    return Raydiff(monkeypatch, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_every_option(raydiff: Raydiff, command: str) -> None:
    code, out, err = raydiff(*command.split(), "--help")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert f"Usage: raydiff {command} " in text
    assert f"Example: {COMMANDS[command]}" in text
    lines = [line.split() for line in [*out.splitlines(), ""]]
    for words, below in pairwise(lines):
        if words[:1] and words[0].startswith("--"):  # the description stands beside it or, after a long name, below
            assert len(words) > 2 or (below and not below[0].startswith("--")), f"no description: {words}"


def test_help_of_train_lists_every_key(raydiff: Raydiff) -> None:
    _, out, _ = raydiff("train", "--help")
    text = " ".join(out.split())
    rows = describe()
    assert len(rows) > 100
    for name, default, description in rows:
        assert description.endswith("."), f"{name} has no description"
        assert " ".join(f"{name} [{default}] {description}".split()) in text


def test_without_arguments_the_commands_are_listed(raydiff: Raydiff) -> None:
    code, out, err = raydiff()
    assert (code, err) == (0, "")
    assert out == raydiff("--help")[1]
    assert {"train", "plan", "report", "data"} <= set(out.split())
    assert {"list", "info", "collect", "convert", "download"} <= set(raydiff("data", "--help")[1].split())


def test_collect_then_info(raydiff: Raydiff, tmp_path: Path) -> None:
    path = tmp_path / "new" / "hopper.hdf5"
    code, out, err = raydiff("data", "collect", "hopper", "--transitions", "300", "--seed", "4", "--out", str(path))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(path)
    dataset = read_d4rl(path)
    assert (len(dataset), dataset.environment) == (300, "Hopper-v4")
    code, out, err = raydiff("data", "info", str(path), "--environment", "hopper")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "transitions 300" in text
    assert "observation, action 11, 3" in text
    assert f"sha256 of its contents {dataset.sha256[:16]}" in text
    assert f"{int(dataset.terminal.sum())} terminals, {int(dataset.timeout.sum())} timeouts" in text
    code, _, err = raydiff("data", "collect", "hopper", "--out", str(path))
    assert (code, "--overwrite" in err) == (2, True)
    again = tmp_path / "again.hdf5"
    raydiff("data", "collect", "hopper", "--transitions", "300", "--seed", "4", "--out", str(again))
    assert read_d4rl(again).sha256 == dataset.sha256
    raydiff("data", "collect", "hopper", "--transitions", "300", "--seed", "5", "--out", str(again), "--overwrite")
    assert read_d4rl(again).sha256 != dataset.sha256


@pytest.mark.parametrize(("error", "code", "text"), [
    (KeyboardInterrupt(), 130, "raydiff: stopped by Ctrl-C"),
    (UserError("[bold]no[/bold] such file."), 2, "raydiff: [bold]no[/bold] such file."),
    (RunFailed("every generator is gone"), 1, "raydiff: the run failed: every generator is gone"),
])  # fmt: skip
def test_exit_codes(capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str) -> None:
    def command() -> None:
        raise error

    assert guarded(command) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(text)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_success_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_while_collecting(raydiff: Raydiff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real SIGINT, sent from within the collection; the half-written file is gone."""
    import signal

    import raydiff.data.collect as module

    monkeypatch.setattr(module, "write_dataset", lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        code, _, err = raydiff("data", "collect", "hopper", "--transitions", "100", "--out", str(tmp_path / "x.hdf5"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "Ctrl-C" in err
    assert list(tmp_path.iterdir()) == []


def test_other_data_are_scored_where_they_come_from(raydiff: Raydiff, tmp_path: Path) -> None:
    """The preset names HalfCheetah; the file, Pendulum. An override still has the last word."""
    path = tmp_path / "own.hdf5"
    raydiff("data", "collect", "Pendulum-v1", "--transitions", "400", "--out", str(path))
    train = ("train", str(Path(__file__).parents[1] / "configs" / "demo.yaml"), "--data", str(path), "scale=tiny")
    code, _, err = raydiff(*train, f"output={tmp_path}", "--runtime", "local", "replay.max_lag=1")
    assert (code, "replay.max_lag=1" in err) == (2, True)  # the first that is refused; the data were not
    code, _, err = raydiff(*train, f"output={tmp_path}", "--runtime", "local", "data.environment=hopper")
    assert code == 2
    assert "the data belong to Pendulum-v1, but the configuration asks for Hopper-v4" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("collect", "Pendulum-v1", "--levels", "medium", "--out", "x.hdf5"), "Give a folder, such as --out x:"),
        (("collect", "Pendulum-v1", "--levels", "random,waypoint", "--out", "x.h5"), "Give a folder"),
        (("collect", "Pendulum-v1", "--out", "x.parquet"), "Give a folder"),
        (("collect", "CartPole-v1", "--out", "folder"), "CartPole-v1 has no flat continuous"),
        (("info", "any.hdf5", "--picture", "p.jpg"), "ends in .png"),
        (("info", "any.hdf5", "--picture", "occupied/p.png"), "occupied/p.png cannot be written"),
        (("convert", "hopper-medium-v2", "x.hdf5"), "hopper-medium-v2 cannot be converted to x.hdf5"),  # no download
        (("convert", "any.hdf5", "x.txt"), "any.hdf5 cannot be converted to x.txt"),
        (("convert", "any.parquet", "minari:a/bc-v0"), "raydiff data convert any.parquet FILE.hdf5"),
    ],
)
def test_bad_requests_for_data_are_refused_before_anything_is_made(
    raydiff: Raydiff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "occupied").write_text("a file where the folder should be")
    code, out, err = raydiff("data", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["occupied"]


@pytest.mark.parametrize("width", [30, 50, 80, 120])
def test_no_id_is_cut_however_narrow_the_terminal(width: int) -> None:
    table = Table("dataset", "environment", "rows", "random", "expert", "here", box=None)
    table.add_row("hopper-medium-replay-v2", "Hopper-v4", "402,000", "-20.3", "3,234.3", "yes")
    table.add_row("minari:D4RL/door/human-v2", "AdroitHandDoor-v1", "6,729", "", "", "yes")
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    fit(table, console, ("random", "expert"), ("environment",), ("rows", "here"))
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 3
    assert "minari:D4RL/door/human-v2" in lines[2]
    assert "…" not in "".join(lines)
    assert ("402,000" in lines[1]) == (width >= 50)
    assert ("AdroitHandDoor-v1" in lines[2]) == (width >= 80)
    assert ("3,234.3" in lines[1]) == (width >= 80)
