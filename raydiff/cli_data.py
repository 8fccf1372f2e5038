"""``raydiff data``: find datasets, fetch or collect them, look at them, write them in another format."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from raydiff.errors import UserError
from raydiff.files import check_writable

data_app = typer.Typer(help="Find, fetch, collect, convert datasets and look at them.", rich_markup_mode=None)
NAME = "D4RL id, minari:ID, or HDF5 file in D4RL's schema."
LOG_EVERY_S = 10.0


@data_app.command("list")
def data_list(
    text: Annotated[str, typer.Argument(help="Only what contains this.")] = "",
) -> None:
    """List D4RL's datasets and Minari's local ones, with what is known of each and what is here already.

    Example: raydiff data list hopper
    """
    from raydiff.data.catalogue import catalogue
    from raydiff.data.download import dataset_path
    from raydiff.data.minari import list_minari

    table = Table("dataset", "environment", "rows", "random", "expert", "here", box=None)
    for column in table.columns[2:5]:
        column.justify = "right"
    for name, entry in catalogue().items():
        if text in name:
            scores = [f"{value:,.1f}" for value in entry.reference_scores]
            here = "yes" if dataset_path(name).is_file() else ""
            table.add_row(name, entry.environment or "none", f"{entry.rows:,}" if entry.rows else "", *scores, here)
    for found in list_minari():
        if text in f"minari:{found.id}":
            table.add_row(f"minari:{found.id}", found.environment or "none", f"{found.steps:,}", "", "", "yes")
    if not table.rows:
        raise UserError(f"No dataset contains {text!r}. raydiff data list shows all of them.")
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a pipe has no width to fit
    fit(table, console, ("random", "expert"), ("environment",), ("rows", "here"))
    console.print(table)


@data_app.command("info")
def data_info(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=NAME)],
    environment: Annotated[str | None, typer.Option(help="Check it against this environment.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw: returns, episode lengths, coverage.")] = None,
) -> None:
    """Say what a dataset holds.

    Example: raydiff data info hopper-random.hdf5 --picture hopper-random.png
    """
    from raydiff.data.info import describe_dataset
    from raydiff.data.source import open_dataset
    from raydiff.envs.registry import environment_spec

    if picture is not None:
        _check_picture(picture)
    spec = environment_spec(environment) if environment is not None else None
    with progress_bar() as note:
        opened = open_dataset(dataset, spec.max_episode_steps if spec else None, note)
    if spec is not None:
        opened.check_environment(spec)
    table = Table("", "", show_header=False, box=None)
    for label, text in describe_dataset(opened):
        table.add_row(label, text)
    console = Console()
    console.print(table)
    if picture is not None:
        from raydiff.data.picture import dataset_figure
        from raydiff.figures import save

        save(dataset_figure(opened), picture)
        console.print(str(picture), soft_wrap=True, highlight=False)


@data_app.command("collect")
def data_collect(
    environment: Annotated[str, typer.Argument(help="Gymnasium id such as Pendulum-v1, or a D4RL name: hopper...")],
    out: Annotated[Path, typer.Option(help="Folder for one file per level; or, for one level, the HDF5 file.")],
    levels: Annotated[
        str,
        typer.Option(
            help="random, medium, medium-replay, expert, medium-expert, full-replay; maze2d: waypoint[-noisy]."
        ),
    ] = "random",
    transitions: Annotated[int, typer.Option(min=100, help="Transitions of each dataset.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the collection.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1000, help="Steps that behaviour policies are trained for at most.")
    ] = None,
    expert_return: Annotated[float | None, typer.Option(help="Return at which a policy counts as expert.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
) -> None:
    """Collect datasets in the simulator; levels beyond random train their policies first (raydiff[collect]).

    Example: raydiff data collect Pendulum-v1 --levels random,medium,expert --transitions 20000 --out pendulum
    """
    from raydiff.data.collect import LEVELS, collect
    from raydiff.envs.registry import environment_spec

    wanted = list(dict.fromkeys(level.strip() for level in levels.split(",") if level.strip()))
    as_file, is_file = len(wanted) == 1 and wanted[0] in LEVELS, out.suffix.lower() in (".hdf5", ".h5", ".parquet")
    if is_file and (not as_file or out.suffix.lower() == ".parquet"):
        raise UserError(
            f"--out {out}: only one level that needs no training ({', '.join(LEVELS)}) is collected into one HDF5 file. "
            f"Give a folder, such as --out {out.with_suffix('')}: each level becomes an HDF5 file in it."
        )
    name = environment_spec(environment).id  # refuses what cannot be simulated here before a folder is made
    with progress_bar() as note:
        if is_file:
            if out.exists() and not overwrite:
                raise UserError(f"{out} exists. Give another --out, or --overwrite to replace it.")
            made = [collect(name, wanted[0], transitions, seed, out, lambda d, n: note("collecting", d, n))]
        else:
            from raydiff.data.levels import collect_levels

            made = collect_levels(name, wanted, transitions, seed, out, steps, expert_return, overwrite, note)
    for path in made:
        Console().print(str(path), soft_wrap=True, highlight=False)


@data_app.command("convert")
def data_convert(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=NAME + " Or a Parquet file made from one.")],
    out: Annotated[str, typer.Argument(help="FILE.hdf5 (D4RL's schema), FILE.parquet, or minari:ID.")],
    overwrite: Annotated[bool, typer.Option(help="Replace what exists.")] = False,
) -> None:
    """Write a dataset in another format: D4RL's HDF5, Parquet, or Minari's.

    Example: raydiff data convert hopper-random.hdf5 minari:mine/hopper/random-v0
    """
    from raydiff.data.convert import convert
    from raydiff.data.minari_export import export_minari
    from raydiff.data.source import dataset_file, open_dataset

    with progress_bar() as note:
        if out.startswith("minari:"):
            path = export_minari(open_dataset(dataset, None, note), out.removeprefix("minari:"), overwrite=overwrite)
        else:
            path = Path(out)
            if path.exists() and not overwrite:
                raise UserError(f"{out} exists. Give another name, or --overwrite to replace it.")
            if not dataset.startswith("minari:") and {_ending(dataset), _ending(out)} != {"hdf5", "parquet"}:
                raise UserError(
                    f"{dataset} cannot be converted to {out}. HDF5 in D4RL's schema (which D4RL's ids stand for) becomes "
                    "FILE.parquet or minari:ID, Parquet becomes FILE.hdf5."
                )
            source = dataset_file(dataset, note)
            path = convert(source, path, lambda done, total: note("converting", done, total))
    Console().print(str(path), soft_wrap=True, highlight=False)


@data_app.command("download")
def data_download(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="D4RL id or minari:ID.")],
) -> None:
    """Download a dataset; an interrupted transfer goes on where it ended.

    Example: raydiff data download hopper-medium-v2
    """
    from raydiff.data.catalogue import entry
    from raydiff.data.download import fetch
    from raydiff.data.minari import download_minari

    with progress_bar() as note:
        if dataset.startswith("minari:"):
            path = download_minari(dataset.removeprefix("minari:"))
        else:
            entry(dataset)
            path = fetch(dataset, lambda done, total: note(f"downloading {dataset}", done, total))
    Console().print(str(path), soft_wrap=True, highlight=False)


def _ending(name: str) -> str:
    """``hdf5`` or ``parquet``; a D4RL id has no ending and stands for HDF5."""
    ending = Path(name).suffix.lower()
    return {".hdf5": "hdf5", ".h5": "hdf5", ".parquet": "parquet"}.get(
        ending, "" if os.sep in name or ending else "hdf5"
    )


def _check_picture(path: Path) -> None:
    """Raise ``UserError`` unless a PNG can be written there, before the dataset is read for it."""
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: pictures are PNG files. Give a name that ends in .png.")
    check_writable(path, "Give the picture another file, in a folder with write permission and free space.")


def fit(table: Table, console: Console, *dispensable: tuple[str, ...]) -> None:
    """Drop groups of columns, the first first, until the rows fit the console whole: a cut id is of no use."""
    for column in table.columns:
        column.no_wrap, column.overflow = True, "fold"
    for names in dispensable:
        if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
            return
        table.columns = [column for column in table.columns if column.header not in names]


@contextmanager
def progress_bar() -> Iterator[Callable[..., None]]:
    """Progress on stderr while something takes long, driven by ``note(what, done, total, more="")``: a bar on a
    terminal, a line every ten seconds in a log."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    errors = Console(stderr=True)
    shown, tasks, told = errors.is_terminal, dict[str, TaskID](), time.monotonic()
    with Progress(*columns, TimeRemainingColumn(), console=errors, transient=True, disable=not shown) as progress:

        def note(what: str, done: int, total: int, more: str = "") -> None:
            nonlocal told
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total or None)
            progress.update(tasks[what], description=f"{what} {more}", completed=done, total=total or None)
            if not shown and time.monotonic() - told > LOG_EVERY_S:
                told = time.monotonic()
                errors.print(f"{what} {more} {done:,} of {total:,}", highlight=False, soft_wrap=True)

        yield note
