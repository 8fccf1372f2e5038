"""What every benchmark shares: its arguments, the description of the machine, and the report."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def arguments(description: str, more: Callable[[argparse.ArgumentParser], object] | None = None) -> argparse.Namespace:
    """``--quick`` and ``--json FILE``, and what ``more`` adds to the parser."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Fewer rounds: a minute or two on two cores.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write machine, figures and goals to this file.")
    if more is not None:
        more(parser)
    return parser.parse_args()


def machine(**more: object) -> dict[str, object]:
    """Processor, cores and versions; a figure means nothing without them."""
    return {"cpu": processor(), "cores": os.cpu_count(), "torch": torch.__version__, **more}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def report(
    description: Mapping[str, object],
    figures: Mapping[str, float],
    goals: Mapping[str, float],
    path: Path | None,
    shown: Callable[[str], bool] = lambda name: True,
) -> None:
    """Print figures (those that are ``shown``) beside their goals (all are minima); write all as JSON where asked."""
    judged = {
        name: {"value": figures[name], "goal": goal, "met": figures[name] >= goal} for name, goal in goals.items()
    }
    for key, value in description.items():
        print(f"{key:42s} {value}")
    for name, value in figures.items():
        if not shown(name):
            continue
        note = f"   goal {goals[name]:g}: {'met' if judged[name]['met'] else 'missed'}" if name in goals else ""
        print(f"{name:42s} {value:10.3f}{note}")
    if path is not None:
        content = {"machine": description, "figures": figures, "goals": judged}
        path.write_text(json.dumps(content, indent=2) + "\n")
