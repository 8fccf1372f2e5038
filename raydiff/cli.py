"""The command line. Bad input: one paragraph and exit code 2; a run that failed: 1; Ctrl-C: 130."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.exceptions import TyperException

from raydiff.cli_audit import audit
from raydiff.cli_data import data_app
from raydiff.cli_evaluate import evaluate
from raydiff.cli_export import export
from raydiff.cli_generate import generate
from raydiff.cli_study import study
from raydiff.errors import RunFailed, UserError
from raydiff.presets import describe, load_config
from raydiff.runtime.address import find_address

app = typer.Typer(
    add_completion=False,
    help="Offline RL with guided diffusion data, on Ray.",
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")


def _settings_help() -> str:
    """Every configuration key with its default and description, shown by ``raydiff train --help``."""
    return "Settings (key=value):\n\n\b\n" + "\n".join(
        f"{name} [{default}]  {description}" for name, default, description in describe()
    )


@app.command(epilog=_settings_help())
def train(
    preset: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML preset; without one: the defaults.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Overrides.")] = None,
    runtime: Annotated[Literal["ray", "local"], typer.Option(help="Ray, or everything in this process.")] = "ray",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join from one of its nodes: auto or HOST:PORT.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="D4RL id, minari:ID, or HDF5 file in D4RL's schema, instead of the preset's data."),
    ] = None,
    on_existing: Annotated[
        Literal["refuse", "overwrite"], typer.Option(help="What to do when the run folder exists.")
    ] = "refuse",
    replay_batch: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Repeat the update that a run saved as it stopped at a non-finite loss."),
    ] = None,
) -> None:
    """Generate, refine and learn at the same time.

    Example: raydiff train configs/demo.yaml learner.batch_size=512
    """
    if replay_batch is not None:
        if preset is not None:
            raise UserError(
                f"--replay-batch goes without a configuration or overrides ({preset}): the file holds the settings of its "
                "run."
            )
        from raydiff.cli_replay import show_bad_update

        show_bad_update(replay_batch)
        return
    path, rest = _preset_and_overrides(preset, overrides)
    if _asks_for_tasks(path, rest):
        return
    # Before the seconds that the imports take, so that a typo is answered at once:
    config = load_config(path, _with_options(rest, address, data))
    find_address(config.cluster.address, os.environ)
    from raydiff.report import score_table
    from raydiff.runtime.session import train as run
    from raydiff.status import StatusBoard
    from raydiff.summary import read_summary

    console = Console()
    with StatusBoard(console) as board:
        folder = run(config, runtime, on_existing, board)
    table = Console() if console.is_terminal else Console(width=110)  # a log has no width to fit
    table.print(score_table(read_summary(folder)))
    console.print(f"report: {folder / 'report' / 'index.html'}", soft_wrap=True, highlight=False)
    console.print(str(folder), soft_wrap=True, highlight=False)


@app.command()
def plan(
    preset: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML preset; without one: the defaults.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Overrides.")] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="JSON or YAML description of a cluster; without one: this machine.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Look at a running cluster: auto or HOST:PORT.")] = None,
) -> None:
    """Print which role goes to which node and GPU, or what is short; starts nothing.

    Example: raydiff plan configs/demo.yaml generator.count=8 --cluster cluster.json
    """
    path, rest = _preset_and_overrides(preset, overrides)
    if _asks_for_tasks(path, rest):
        return
    config = load_config(path, _with_options(rest, address, None))
    from raydiff.runtime.plan_command import plan_table

    Console().print(plan_table(config, cluster))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run folders; one or several.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of a comparison; default: comparison beside the runs.")
    ] = None,
) -> None:
    """Make the report of a run again, or compare several runs: pictures and one HTML page.

    Example: raydiff report runs/guided-0 runs/guided-1 runs/unguided-0 runs/unguided-1
    """
    from raydiff.compare import report as write

    for path in write(runs, out):
        Console().print(str(path), soft_wrap=True, highlight=False)


for _other in (evaluate, export, generate, audit, study):
    app.command()(_other)


def _with_options(overrides: list[str], address: str | None, data: str | None) -> list[str]:
    """Options that stand for a setting, after the settings themselves."""
    named = {"cluster.address": address, "data.dataset": data}
    # Other data than the preset's are scored where they come from, unless an override says otherwise.
    first = ["data.environment=null"] if data is not None else []
    return first + overrides + [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]


def _preset_and_overrides(preset: Path | None, overrides: list[str] | None) -> tuple[Path | None, list[str]]:
    """``raydiff train key=value`` names no preset: then the first argument is an override."""
    if preset is not None and "=" in str(preset) and not os.path.isfile(preset):
        return None, [str(preset), *(overrides or [])]
    return preset, overrides or []


def _asks_for_tasks(preset: Path | None, overrides: list[str]) -> bool:
    """``task=`` without a value lists the tasks of the preset and does nothing else."""
    if preset is None or "task=" not in [text.strip() for text in overrides]:
        return False
    from raydiff.cli_tasks import show_tasks

    show_tasks(preset)
    return True


def guarded(command: Callable[[], Any]) -> int:
    """Run a command and turn what it raises into an exit code and one paragraph on stderr."""
    errors = Console(stderr=True)
    try:
        command()
        return 0
    except UserError as error:
        errors.print(f"raydiff: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except RunFailed as error:
        errors.print(f"raydiff: the run failed: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("raydiff: stopped by Ctrl-C; a run folder keeps what was written so far.", highlight=False)
        return 130


def _usage_error(error: TyperException) -> UserError:
    """What Typer complains about, with the option it names and the help to look at."""
    text = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "raydiff"
    return UserError(f"{text}{'' if text[-1:] in '.?!' else '.'} See {path} --help.")


def main() -> None:
    """Entry point of the ``raydiff`` script."""

    def command() -> None:
        try:
            code = app(sys.argv[1:] or ["--help"], prog_name="raydiff", standalone_mode=False)
        except TyperException as error:  # an unknown command, a missing argument and the like
            raise _usage_error(error) from None
        if code == 130:  # how Typer tells of Ctrl-C when it leaves the exit to us
            raise KeyboardInterrupt

    sys.exit(guarded(command))


if __name__ == "__main__":
    main()
