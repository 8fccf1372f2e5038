"""Studies without runs: what is computed, kept, refused and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from matplotlib.figure import Figure
from pydantic import Field
from typer.testing import CliRunner

from raydiff.cli_study import study as command
from raydiff.errors import UserError
from raydiff.figures import new_figure
from raydiff.section import Section
from raydiff.studies import registry
from raydiff.studies.computed import Computed, Line, Piece, Told
from raydiff.studies.findings import named, sweep, tally
from raydiff.studies.measures import Column
from raydiff.studies.registry import COMPUTED, STUDIES, find_study
from raydiff.studies.results import Results, Row


class Options(Section):
    factor: float = Field(2.0, gt=0, description="What values are multiplied with.")
    parts: tuple[str, ...] = Field(("a", "b"), description="Parts.")


CALLS: list[tuple[str, int, int]] = []
MEASURES = {"value": Column("a value", 2, True), "list": Column("a list", 1, None)}


def compute(options: Options, part: str, seed: int, told: Told) -> Piece:
    """One line of the part's own, and one to which both parts add a measure."""
    CALLS.append((part, seed, torch.get_num_threads()))
    told(1, 2)
    if options.factor == 13:
        raise KeyboardInterrupt
    own = Line(f"own-{part}", f"own of {part}", part, {"value": options.factor * (seed + 1)}, x=float(ord(part)))
    shared = Line("shared", "shared", "both", {"value": 7.0} if part == "a" else {"list": [1.0, 2.0]}, x=0.0)
    return Piece(part, seed, [own, shared], {"numbers": np.arange(seed + 2)}, {f"fact of {part}": "so"})


def draw(results: Results, pieces: Sequence[Piece]) -> Figure | None:
    assert [len(piece.arrays["numbers"]) for piece in pieces] == [piece.seed + 2 for piece in pieces]
    return new_figure(1, 1)


def study(**more: object) -> Computed:
    scales = {"tiny": {"factor": 1.0}, "small": {}, "paper": {}}
    return Computed(
        "mine", "Mine.", Options, scales, lambda options: list(options.parts), compute, MEASURES,
        lambda results: [named(results.rows[0], "value", MEASURES)], **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(autouse=True)
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.COMPUTED, "mine", study())
    CALLS.clear()


def run(folder: Path, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, ["mine", *arguments, "--out", str(folder)], catch_exceptions=False)
    return done.output


def test_it_is_computed_once_and_shown(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        output = run(tmp_path, "--seeds", "2")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert CALLS == [("a", 0, 1), ("b", 0, 1), ("a", 1, 1), ("b", 1, 1)]
    folder = tmp_path / "mine"
    assert {path.name for path in folder.iterdir()} == {"a", "b", "table.md", "results.json", "figure.png"}
    assert {path.name for path in (folder / "a").iterdir()} == {
        f"seed-{s}.{kind}" for s in (0, 1) for kind in ("json", "npz")
    }
    assert str(folder / "table.md") in output

    lines = (folder / "table.md").read_text().splitlines()
    assert "- factor: 2.0" in lines
    assert "- parts: a, b" in lines
    assert "- seeds: 2" in lines
    assert "- fact of b: so" in lines
    half = 12.706204736432095 * 2**0.5 / 2**0.5  # Student's 97.5 % quantile with one degree of freedom
    assert f"| own of a | 2 | 3.00 [{3 - half:.2f}, {3 + half:.2f}] |" in lines
    assert "| shared | 2 | 7.00 [7.00, 7.00] |" in lines
    data = json.loads((folder / "results.json").read_text())
    shared = next(c for c in data["conditions"] if c["name"] == "shared")
    assert [run["value"] for run in shared["runs"]] == [7.0, 7.0]
    assert [entry["value"] for entry in shared["series"]["list"]] == [1.0, 2.0]

    CALLS.clear()
    run(tmp_path, "--seeds", "3")
    assert [(part, seed) for part, seed, _ in CALLS] == [("a", 2), ("b", 2)]


def test_other_settings_are_refused_unless_all_is_made_anew(tmp_path: Path) -> None:
    run(tmp_path, "--seeds", "1", "--only", "a")
    assert [part for part, *_ in CALLS] == ["a"]
    with pytest.raises(UserError, match=r"made with other settings \(factor is 2.0 there and 3.0 here\)"):
        run(tmp_path, "--seeds", "1", "factor=3")
    assert len(CALLS) == 1
    run(tmp_path, "--seeds", "1", "factor=3", "--on-existing", "overwrite")
    assert len(CALLS) == 3
    assert "- factor: 3.0" in (tmp_path / "mine" / "table.md").read_text()
    run(tmp_path, "--seeds", "1", "scale=tiny", "--read")
    assert len(CALLS) == 3
    assert "- factor: 3.0" in (tmp_path / "mine" / "table.md").read_text(), "the settings it was made with"


def test_what_has_ended_is_shown_when_it_is_stopped(tmp_path: Path) -> None:
    run(tmp_path, "--seeds", "1", "--only", "a")
    path = tmp_path / "mine" / "a" / "seed-0.json"
    path.write_text(path.read_text().replace('"factor": 2.0', '"factor": 13.0'))
    (tmp_path / "mine" / "table.md").unlink()
    app = typer.Typer()
    app.command()(command)
    stopped = CliRunner().invoke(app, ["mine", "factor=13", "--seeds", "1", "--out", str(tmp_path)])
    assert stopped.exit_code != 0
    assert "own of a" in (tmp_path / "mine" / "table.md").read_text()
    assert not (tmp_path / "mine" / "b").exists()


def test_its_own_figure_has_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.COMPUTED, "mine", study(draw=draw))
    run(tmp_path, "--seeds", "2")
    assert (tmp_path / "mine" / "figure.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scale=huge"], r"scale=huge.*On offer: tiny, small, paper"),
        (["factr=1"], r"factr: extra inputs.*Its settings: factor \(What values are multiplied with"),
        (["factor=-1"], r"factor: input should be greater than 0"),
        (["factor"], r"must read key=value"),
        (["--only", "x*"], r"no part of mine is called so. On offer: a, b"),
        (["--jobs", "2"], r"leave out --jobs"),
        (["--data", "x.hdf5"], r"leave out .*--data"),
        (["--read"], r"holds nothing of mine that has ended"),
    ],
)
def test_what_it_cannot_do_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, *arguments)
    assert not CALLS


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written"):
        run(tmp_path / "file")
    assert not CALLS


def test_sentences_know_the_columns_of_the_study() -> None:
    rows = [_row(x, [x, x + 0.5]) for x in (1.0, 2.0)]
    assert sweep(rows, "value", MEASURES) == "g: a value rises from 1.25 at 1 to 2.25 at 2; best at 2."
    assert tally(rows, rows[0], "value", MEASURES).startswith("A value against g, 1.0 at 1.25 [")


def _row(x: float, values: Sequence[float]) -> Row:
    return Row(str(x), str(x), "g", {}, x, {seed: {"value": value} for seed, value in enumerate(values)})


def test_all_of_them_can_be_found_and_have_the_usual_scales() -> None:
    assert not set(STUDIES) & set(COMPUTED)
    for name, found in COMPUTED.items():
        assert find_study(name) is found
        assert set(found.scales) == {"tiny", "small", "paper"}
        for scale in found.scales.values():
            assert found.parts(found.options(**scale))
    with pytest.raises(UserError, match=r"Did you mean swg-toy"):
        find_study("swg-toys")
