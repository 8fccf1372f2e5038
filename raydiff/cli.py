"""The command line. Bad input: one paragraph and exit code 2; a run that failed: 1; Ctrl-C: 130."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from raydiff.errors import RunFailed, UserError
from raydiff.presets import describe, load_config

app = typer.Typer(
    add_completion=False,
    help="Offline RL with guided diffusion data, on Ray.",
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Collect datasets and look at them.", rich_markup_mode=None)
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
    on_existing: Annotated[
        Literal["refuse", "overwrite"], typer.Option(help="What to do when the run folder exists.")
    ] = "refuse",
) -> None:
    """Generate, refine and learn at the same time.

    Example: raydiff train configs/demo.yaml learner.batch_size=512
    """
    path, rest = _preset_and_overrides(preset, overrides)
    config = load_config(path, rest)  # before the seconds that the imports take: a typo is answered at once
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


@data_app.command("collect")
def data_collect(
    environment: Annotated[str, typer.Argument(help="hopper, halfcheetah or walker2d.")],
    out: Annotated[Path, typer.Option(help="HDF5 file to write, in D4RL's schema.")],
    transitions: Annotated[int, typer.Option(min=100, help="Transitions to collect.")] = 100_000,
    level: Annotated[str, typer.Option(help="Behaviour: random.")] = "random",
    version: Annotated[str, typer.Option(help="Gymnasium version: v4 (D4RL's dynamics) or v5.")] = "v4",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the collection.")] = 0,
) -> None:
    """Collect a dataset in the simulator.

    Example: raydiff data collect halfcheetah --transitions 100000 --out halfcheetah-random.hdf5
    """
    from raydiff.data.collect import collect
    from raydiff.presets import validate

    values = {"environment": environment, "level": level, "version": version, "transitions": transitions, "seed": seed}
    data = validate({"data": values}, "the command line").data
    console = Console()
    with console.status("collecting") as status:
        collect(
            data.environment,
            data.version,
            data.level,
            data.transitions,
            data.seed,
            out,
            lambda done, total: status.update(f"collecting: {done:,} of {total:,} transitions"),
        )
    console.print(str(out), soft_wrap=True, highlight=False)


@data_app.command("info")
def data_info(
    file: Annotated[Path, typer.Argument(help="HDF5 file in D4RL's schema.")],
    environment: Annotated[str | None, typer.Option(help="Check it against this environment.")] = None,
    version: Annotated[str, typer.Option(help="Gymnasium version: v4 or v5.")] = "v4",
) -> None:
    """Say what a dataset holds.

    Example: raydiff data info halfcheetah-random.hdf5
    """
    from raydiff.data.d4rl import read_d4rl
    from raydiff.data.info import describe_dataset
    from raydiff.evaluation.envs import environment_spec
    from raydiff.presets import validate

    dataset = read_d4rl(file)
    if environment is not None:
        data = validate({"data": {"environment": environment, "version": version}}, "the command line").data
        dataset.check_environment(environment_spec(data.environment, data.version))
    table = Table("", "", show_header=False, box=None)
    for label, text in describe_dataset(dataset):
        table.add_row(label, text)
    Console().print(table)


def _preset_and_overrides(preset: Path | None, overrides: list[str] | None) -> tuple[Path | None, list[str]]:
    """``raydiff train key=value`` names no preset: then the first argument is an override."""
    if preset is not None and "=" in str(preset) and not os.path.isfile(preset):
        return None, [str(preset), *(overrides or [])]
    return preset, overrides or []


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
