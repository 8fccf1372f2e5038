"""``raydiff generate``: a synthetic dataset on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from raydiff.cli_data import progress_bar


def generate(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder, or checkpoints/ARM.policy.safetensors.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Overrides.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Transitions; whole trajectories, so a few more.")] = 100_000,
    out: Annotated[str, typer.Option(help="FILE.hdf5 (D4RL's schema), FILE.parquet, or minari:ID.")] = "synthetic.hdf5",
    arm: Annotated[str | None, typer.Option(help="Arm whose policy guides; default: guided, if there is one.")] = None,
    runtime: Annotated[Literal["ray", "local"], typer.Option(help="Ray, or one generator in this process.")] = "ray",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join from one of its nodes: auto or HOST:PORT.")
    ] = None,
    restart: Annotated[bool, typer.Option(help="Throw away the parts of an interrupted generation.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what exists.")] = False,
) -> None:
    """Write a synthetic dataset from a run's models and policy. The same command goes on where it was interrupted.

    Example: raydiff generate runs/demo --n 1000000 --out synthetic.hdf5 generator.count=4 guidance.strength=1
    """
    from raydiff.synthesis.generate import generate_dataset, open_source

    given = list(overrides or []) + ([f"cluster.address={address}"] if address is not None else [])
    opened = open_source(source, arm, given)
    errors = Console(stderr=True)
    with progress_bar() as note:
        path, written = generate_dataset(
            opened,
            n,
            out,
            runtime,
            restart=restart,
            overwrite=overwrite,
            note=note,
            say=lambda text: errors.print(text, highlight=False, soft_wrap=True),
        )
    errors.print(f"{written:,} transitions for the policy of {opened.arm}", highlight=False)
    Console().print(str(path), soft_wrap=True, highlight=False)
