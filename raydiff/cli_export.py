"""``raydiff export``: the policy of a run for use without raydiff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from raydiff.errors import UserError


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")],
    arm: Annotated[str | None, typer.Option(help="Arm; default: the run's main one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to make; default: export/ARM in the run.")] = None,
    formats: Annotated[
        str, typer.Option(help="Any of pt2, onnx and safetensors, with commas.")
    ] = "pt2,onnx,safetensors",
    batch: Annotated[int, typer.Option(min=1, help="Observations per call; of diffusion policies only.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write a policy as a torch.export program, as ONNX, and as safetensors with a JSON specification.

    Each loads without raydiff, and gave the policy's own actions before it was put there.

    Example: raydiff export runs/demo --arm guided --out policy
    """
    from raydiff.envs.registry import environment_of
    from raydiff.evaluation.evaluate_runs import last_policies
    from raydiff.export import export_policy
    from raydiff.presets import load_config, main_arm

    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run of raydiff (it has no config.yaml). Name the folder of a run.")
    config = load_config(run / "config.yaml")
    found = last_policies(run, [arm] if arm else ())
    name = arm or (main_arm(config) if main_arm(config) in found else next(iter(found)))
    facts = {
        "run": config.name, "arm": name, "environment": environment_of(config.data),
        "data": config.data.dataset or f"{config.data.level}, {config.data.transitions:,} transitions collected",
        "seed": config.seed,
    }  # fmt: skip
    folder = out or run / "export" / name
    files = export_policy(
        found[name], folder, facts, [part.strip() for part in formats.split(",") if part.strip()],
        batch, overwrite,
    )  # fmt: skip
    table = Table("file", "bytes", "largest difference", box=box.SIMPLE_HEAD)
    for file in files:
        said = "" if file.difference is None else f"{file.difference:.1e}"
        table.add_row(file.path.name, f"{file.path.stat().st_size:,}", said)
    console = Console()
    console.print(table)
    console.print(str(folder), soft_wrap=True, highlight=False)
