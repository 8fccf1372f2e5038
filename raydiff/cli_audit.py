"""``raydiff audit``: how true synthetic data are, beside the same of real data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from raydiff.cli_data import fit, progress_bar
from raydiff.errors import UserError
from raydiff.files import check_writable

FLOOR = "real data (floor)"
_SOURCE = "Run folder; ARM_sample.npz of a run; or a dataset: HDF5 in D4RL's schema, D4RL id, minari:ID."
Format = Callable[[Any], str]


def audit(
    source: Annotated[str, typer.Argument(metavar="FILE_OR_RUN", help=_SOURCE)],
    n: Annotated[
        int, typer.Option("--n", min=1, help="Trajectories to replay; four times as many single steps.")
    ] = 1000,
    policy: Annotated[
        Path | None,
        typer.Option(help="Run or ARM.policy.safetensors to hold actions against; default: each arm's own."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--json", help="File for all figures; the picture lies beside it as PNG.")
    ] = None,
    environment: Annotated[
        str | None, typer.Option(help="Where to replay; default: what the run or file says.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Real data to hold a file against; default: the run's own.")] = None,
    horizon: Annotated[
        int | None, typer.Option(min=1, help="Steps replayed; default: whole trajectories, of long episodes 16.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is looked at.")] = 0,
) -> None:
    """Replay trajectories in MuJoCo from their first state and actions, and say how true, how wide and how new they are.

    A run's figures are written to report/audit.json and report/audit.png in it. A dataset without --data is taken as
    real: what comes out is the floor.

    Example: raydiff audit synthetic.hdf5 --data hopper-medium.hdf5 --json audit.json
    """
    from raydiff.evaluation.audit_run import run_audit
    from raydiff.evaluation.audit_sources import Options, open_job

    if out is not None:
        _check_writable(out)
    with progress_bar() as note:
        job = open_job(source, Options(n, seed, environment, data, policy, horizon), note)
        target = out or (job.run / "report" / "audit.json" if job.run is not None else None)
        if target is not None:
            _check_writable(target)
        found = {"source": source, **run_audit(job, n, seed, note)}
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a pipe has no width to fit
    for table, *dispensable in (error_table(found), data_table(found)):
        fit(table, console, *dispensable)
        console.print(table)
    if target is not None:
        for path in _write(found, target):
            console.print(str(path), soft_wrap=True, highlight=False)


def error_table(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """How far one step and several are from the simulator's; and which columns may be dropped, in order."""
    last = found["horizon"]
    table = _table(
        f"Error in {found['environment']}, over the variance of {found['real']} (trimmed: without the largest 5 %)",
        ["1 step", "median", "mean", "raw", "/ no change", f"{last} steps", f"median {last}", f"mean {last}",
         "left out", "replayed"],
    )  # fmt: skip
    for name, record in _rows(found):
        steps = [_last(record, f"error_by_step{kind}", last) for kind in ("", "_median", "_mean")]
        one = [record[f"dynamics_error{kind}"] for kind in ("", "_median", "_mean")]
        change = record["persistence_error"]
        ratio = record["dynamics_error"] / change if change and record["dynamics_error"] is not None else None
        left_out = record["not_invertible"] + record["unstable"]
        figures = [*one, record["raw_error"], ratio, *steps]
        table.add_row(name, *map(_short, figures), _share(left_out), f"{record['transitions']:,}")
    numerical = found["numerical_floor"]
    steps = [_last(numerical, f"error_by_step{kind}", last) for kind in ("", "_median", "_mean")]
    table.add_row("simulator, in float32", *[""] * 5, *map(_short, steps), "", "")
    return table, ("replayed",), ("raw",), (f"mean {last}", "mean"), (f"median {last}", "median")


def data_table(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """What else was measured; and which columns may be dropped, in order."""
    columns: dict[str, tuple[str, Format]] = {
        "reward error": ("reward_error", _short),
        "ends: precision": ("terminal_precision", _share),
        "recall": ("terminal_recall", _share),
        "deviation": ("deviation", _short),
        "log-lik.": ("log_likelihood", _short),
        "coverage": ("coverage", _share),
        "inside": ("precision", _share),
        "copies": ("near_copies", _share),
        "repeats": ("near_repeats", _share),
        "legal": ("legal", _share),
    }
    rows = _rows(found)
    shown = {name: entry for name, entry in columns.items()
             if any(record.get(entry[0]) is not None for _, record in rows)}  # fmt: skip
    table = _table("Rewards, ends, actions under the policy, coverage, duplicates", [*shown, "action std"])
    for name, record in rows:
        _add(table, name, record, shown)
        if (found["arms"].get(name) or {}).get("floor"):
            _add(table, "  real data, same policy", found["arms"][name]["floor"], shown)
    return table, ("action std",), ("repeats",), ("recall", "ends: precision"), ("log-lik.",), ("reward error",)


def _add(table: Table, name: str, record: Mapping[str, Any], shown: Mapping[str, tuple[str, Format]]) -> None:
    spread = [value for value in (record.get("action_std") or {}).values() if value is not None]
    cells = [form(record.get(key)) for key, form in shown.values()]
    table.add_row(name, *cells, f"{min(spread):.2f} - {max(spread):.2f}" if spread else "")


def _rows(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(FLOOR, found["floor"]), *found["arms"].items()]


def _table(title: str, columns: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _last(record: Mapping[str, Any], key: str, step: int) -> float | None:
    errors = record.get(key) or []
    return errors[step - 1] if len(errors) >= step else None


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _check_writable(path: Path) -> None:
    if path.suffix.lower() != ".json" or path.is_dir():
        raise UserError(f"--json {path}: give a file that ends in .json; its picture is named after it.")
    check_writable(path, "Give another --json, in a folder with write permission and free space.")


def _write(found: Mapping[str, Any], path: Path) -> list[Path]:
    from raydiff.audit_figure import error_by_step
    from raydiff.figures import save
    from raydiff.files import whole_file

    with whole_file(path) as part:
        part.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    figure, picture = error_by_step(found), path.with_suffix(".png")
    if figure is None:
        return [path]
    save(figure, picture)
    return [path, picture]
