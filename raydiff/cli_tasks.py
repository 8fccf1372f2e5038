"""The tasks of a preset, as ``raydiff train PRESET task=`` lists them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raydiff.errors import UserError
from raydiff.presets import read_tasks
from raydiff.tasks import GENERAL, as_overrides, groups, markdown, offered


def show_tasks(preset: Path) -> None:
    """Print the tasks of a preset, those with the same settings together. Raises ``UserError`` where it has none."""
    tasks = read_tasks(preset)
    names = offered(tasks)
    if not names:
        raise UserError(f"{preset} has no tasks to list. The presets configs/LEARNER/d4rl.yaml have.")
    table = Table("task", "settings (the learner's without learner.)", "note", box=None)
    for named, settings, note in groups(tasks):
        table.add_row(named.replace("; ", "\n"), as_overrides(settings) or GENERAL, note)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a pipe has no width to fit
    console.print(table, highlight=False)
    example = f"raydiff train {preset} task={names[0]}"
    console.print(f"\n{len(names)} tasks, for example: {example}", soft_wrap=True, highlight=False)


def refreshed(text: str, configs: Path) -> str:
    """A document with the table of each learner, which stands behind a line ``<!-- tasks: LEARNER -->``, made anew."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{markdown(read_tasks(configs / found[2] / 'd4rl.yaml'))}\n\n"

    return re.sub(r"(<!-- tasks: (\w+) -->)\n(?:\|.*\n)*\n?", table, text)


if __name__ == "__main__":  # python -m raydiff.cli_tasks docs/tasks.md configs
    _path, _configs = map(Path, sys.argv[1:])
    _path.write_text(refreshed(_path.read_text(), _configs))
