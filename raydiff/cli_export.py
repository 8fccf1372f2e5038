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
    seed: Annotated[
        int | None, typer.Option(help="Seed, of an arm that has trained several; default: the first.")
    ] = None,
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
    from raydiff.checkpoint import arm_and_seed
    from raydiff.envs.registry import environment_of
    from raydiff.evaluation.evaluate_runs import last_policies
    from raydiff.export import export_policy
    from raydiff.presets import load_config, main_arm

    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run of raydiff (it has no config.yaml). Name the folder of a run.")
    config = load_config(run / "config.yaml")
    found = last_policies(run, [arm] if arm else ())
    name = _chosen(list(found), arm or main_arm(config), seed, config.seed)
    facts = {
        "run": config.name, "arm": arm_and_seed(name)[0], "environment": environment_of(config.data),
        "data": config.data.dataset or f"{config.data.level}, {config.data.transitions:,} transitions collected",
        "seed": config.seed if arm_and_seed(name)[1] is None else arm_and_seed(name)[1],
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


def _chosen(names: list[str], arm: str, seed: int | None, own: int) -> str:
    """The policy that is meant: of the arm, or of the run's first where it has not that one, and of the seed; ``own``
    is the seed of arms that have trained one."""
    from raydiff.checkpoint import arm_and_seed

    alike = [name for name in names if arm in (name, arm_and_seed(name)[0])] or names[:1]
    seeds = {own if (found := arm_and_seed(name)[1]) is None else found: name for name in alike}
    if seed is not None and seed not in seeds:
        raise UserError(
            f"--seed {seed}: {arm_and_seed(alike[0])[0]} has trained {', '.join(map(str, seeds))}. Name one of these, or "
            "leave it out."
        )
    return alike[0] if seed is None else seeds[seed]
