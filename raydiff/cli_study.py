"""``raydiff study``: the papers' studies, and those of our own, each one command."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from raydiff.cli_data import progress_bar
from raydiff.errors import RunFailed, UserError


def study(
    name: Annotated[str | None, typer.Argument(metavar="STUDY", help="Its name; without one: the list.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Overrides for every run; scale=tiny|small|paper."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every condition.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, one thread each (runtime local).")] = 1,
    runtime: Annotated[
        Literal["local", "ray"], typer.Option(help="Each run in one process, or one run after the other on Ray.")
    ] = "local",
    data: Annotated[
        str | None,
        typer.Option(help="D4RL id, minari:ID, or HDF5 file in D4RL's schema, instead of the study's data."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN,...", help="Only these conditions, such as guided*,real-*.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder; the study's own is made in it.")] = Path("runs/studies"),
    on_existing: Annotated[
        Literal["resume", "overwrite"], typer.Option(help="Keep the runs that have ended, or make them anew.")
    ] = "resume",
    read: Annotated[bool, typer.Option("--read", help="Run nothing: read what has ended, whatever made it.")] = False,
) -> None:
    """Run a study: conditions times seeds, a table, a figure and what they show. The same command goes on.

    Example: raydiff study where-it-pays scale=small --seeds 3 --jobs 2
    """
    from raydiff.studies.registry import STUDIES, find_study

    if name is None:
        _list(Console(), [(found.name, found.title) for found in STUDIES.values()])
        return
    chosen = find_study(name)
    from raydiff.studies.api import plan
    from raydiff.studies.collect import gather, publish
    from raydiff.studies.runner import check_jobs, execute

    scale, rest = _scale(overrides or [])
    given = ["data.environment=null", f"data.dataset={json.dumps(data)}"] if data is not None else []
    base, planned = plan(chosen, scale, [*given, *rest], seeds, out / name)
    work = [job for job in planned if only is None or _matches(job.condition.name, only)]
    if not work:
        names = ", ".join(dict.fromkeys(job.condition.name for job in planned))
        raise UserError(f"--only {only}: no condition of {name} is called so. On offer: {names}.")
    console, errors, failures = Console(), Console(stderr=True), dict[str, str]()
    try:
        if not read:
            check_jobs(work, on_existing)
            with progress_bar() as note:
                failures = execute(work, runtime, jobs, on_existing, note, lambda text: _say(errors, text))
    finally:  # Ctrl-C too leaves a table of what has ended
        if any(job.finished for job in work):
            files = publish(chosen, gather(chosen, base, work, failures), out / name)
            console.print(Markdown(files[0].read_text()))
            for path in files:
                console.print(str(path), soft_wrap=True, highlight=False)
    if read and not any(job.finished for job in work):
        raise UserError(f"{out / name} holds no run of {name} that has ended. Leave out --read to make them.")
    if failures:
        raise RunFailed(
            f"{len(failures)} of the {len(work)} runs of {name} failed; the first: {next(iter(failures.items()))[1]} "
            "The same command runs them again."
        )


def _list(console: Console, rows: list[tuple[str, str]]) -> None:
    table = Table("study", "question", box=None)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _scale(overrides: list[str]) -> tuple[str, list[str]]:
    """The study's scale, small where none is asked for, and the other overrides."""
    scales = [text.partition("=")[2] for text in overrides if text.startswith("scale=")]
    return (scales or ["small"])[-1], [text for text in overrides if not text.startswith("scale=")]


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatch(name, pattern.strip()) for pattern in patterns.split(","))


def _say(errors: Console, text: str) -> None:
    errors.print(text, markup=False, highlight=False, soft_wrap=True)
