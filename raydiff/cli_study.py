"""``raydiff study``: the papers' studies, and those of our own, each one command."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from raydiff.cli_data import progress_bar
from raydiff.errors import RunFailed, UserError

if TYPE_CHECKING:
    from raydiff.studies.api import Study
    from raydiff.studies.computed import Computed


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
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="D4RL id, minari:ID, or HDF5 file in D4RL's schema, instead of the study's data; learners: beside "
            "them, and as often as wanted.",
        ),
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
    from raydiff.studies.registry import COMPUTED, STUDIES, find_study

    if name is None:
        everything: list[Study | Computed] = [*STUDIES.values(), *COMPUTED.values()]
        _list(Console(), [(found.name, found.title) for found in everything])
        return
    chosen, (scale, rest) = find_study(name), _scale(overrides or [])
    from raydiff.studies.api import Study, plan
    from raydiff.studies.collect import gather, publish
    from raydiff.studies.played import play_conditions, played_conditions
    from raydiff.studies.runner import check_jobs, execute

    if not isinstance(chosen, Study):
        if jobs != 1 or runtime != "local" or data:
            raise UserError(
                f"{name} is computed in this process, without runs: leave out --jobs, --runtime and --data."
            )
        _compute(chosen, scale, rest, seeds, only, out / name, None if read else on_existing)
        return
    base, planned = plan(chosen, scale, rest, seeds, out / name, data or [])
    work = [job for job in planned if only is None or _matches(job.condition.name, only)]
    if not work:
        names = ", ".join(dict.fromkeys(job.condition.name for job in planned))
        raise UserError(f"--only {only}: no condition of {name} is called so. On offer: {names}.")
    errors, failures = Console(stderr=True), dict[str, str]()
    try:
        if not read:
            check_jobs(work, on_existing)
            with progress_bar() as note:
                failures = execute(work, runtime, jobs, on_existing, note, lambda text: _say(errors, text))
                play_conditions(played_conditions(chosen, base, work), work, note)
    finally:  # Ctrl-C too leaves a table of what has ended
        if any(job.finished for job in work):
            _show(publish(chosen, gather(chosen, base, work, failures), out / name))
    if read and not any(job.finished for job in work):
        raise UserError(f"{out / name} holds no run of {name} that has ended. Leave out --read to make them.")
    if failures:
        raise RunFailed(
            f"{len(failures)} of the {len(work)} runs of {name} failed; the first: {next(iter(failures.items()))[1]} "
            "The same command runs them again."
        )


def _compute(
    study: Computed,
    scale: str,
    given: list[str],
    seeds: int,
    only: str | None,
    folder: Path,
    on_existing: Literal["resume", "overwrite"] | None,
) -> None:
    """A study without runs; with ``on_existing`` None only what is there is read."""
    from raydiff.studies.computed import chosen_parts, compute, pieces, publish, read_options

    options = read_options(study, scale, given)
    parts = chosen_parts(study, options, only)
    try:
        if on_existing is not None:
            with progress_bar() as note:
                compute(study, options, parts, seeds, folder, on_existing, note)
    finally:  # Ctrl-C too leaves a table of what has ended
        found = pieces(study, parts, seeds, folder)
        if found:
            _show(publish(study, found, folder))
    if not found:
        raise UserError(f"{folder} holds nothing of {study.name} that has ended. Leave out --read to compute it.")


def _show(files: list[Path]) -> None:
    """The table, which is the first of the files, and where they lie."""
    console = Console()
    console.print(Markdown(files[0].read_text()))
    for path in files:
        console.print(str(path), soft_wrap=True, highlight=False)


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
