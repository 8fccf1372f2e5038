"""The tasks of a preset: one table of settings for many datasets of D4RL, one of which ``task=NAME`` chooses.

A key of the table is a D4RL id, or a pattern such as ``hopper-*-v2`` that stands for all that can be scored here. The
entries that a task fits are put over each other from the first to the last. Each is a mapping of settings; ``note``
in it says what the numbers are not, for instance that nothing was published for this task.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from raydiff.data.catalogue import UNSUPPORTED, catalogue
from raydiff.errors import UserError

Table = Mapping[str, Mapping[str, Any]]
NOTE = "note"
GENERAL = "the general setting"


def offered(table: Table) -> list[str]:
    """The D4RL ids of a table, in D4RL's order: those that fit one of its keys and have an environment here."""
    return [name for name, entry in catalogue().items() if entry.environment and entries(table, name)]


def entries(table: Table, name: str) -> list[Mapping[str, Any]]:
    """What the table says of a task, the general first."""
    return [settings for pattern, settings in table.items() if fnmatchcase(name, pattern)]


def check_table(table: Any, where: str) -> None:
    """Raise ``UserError`` for what is no table of tasks, and for a key that no dataset fits."""
    if not isinstance(table, Mapping) or not all(isinstance(settings, Mapping) for settings in table.values()):
        raise UserError(f"In {where}, tasks must map D4RL ids, or patterns such as hopper-*-v2, to keys and values.")
    for pattern in table:
        if not offered({str(pattern): {}}):
            raise UserError(
                f"In {where}, tasks has the key {pattern}, which is no dataset of D4RL that can be scored here."
            )


def choose(table: Table, name: str | None, where: str) -> tuple[str, list[Mapping[str, Any]]]:
    """The task that was asked for, and its entries. Raises ``UserError`` where there is none, naming the nearest."""
    names = offered(table)
    if not names:
        raise UserError(f"task={name}: {where} has no tasks. The presets configs/LEARNER/d4rl.yaml have.")
    if name is None:
        raise UserError(
            f"{where} holds settings for {len(names)} datasets of D4RL. Choose one, for example task={names[0]}; "
            f"`raydiff train {where} task=` lists them."
        )
    if name in names:
        return name, entries(table, name)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    rest = f"{f'The nearest is task={near[0]}; ' if near else ''}`raydiff train {where} task=` lists all."
    if name in UNSUPPORTED:
        raise UserError(f"task={name} cannot be learnt here: {UNSUPPORTED[name]}. {rest}")
    if name in catalogue() and not catalogue()[name].environment:
        raise UserError(f"task={name} cannot be scored here: raydiff has no simulator of its environment. {rest}")
    raise UserError(f"task={name}: {where} has no settings for it. {rest}")


def task_base(name: str) -> dict[str, Any]:
    """What follows from the task alone: its dataset, where it is scored, and its size, for data that are collected."""
    found = catalogue()[name]
    data: dict[str, Any] = {"dataset": name, "environment": found.environment}
    collected: dict[str, Any] = {"transitions": found.rows} if found.rows else {}
    if found.family == "maze2d":
        collected["level"] = "waypoint"
    return {"data": data | collected}


def note_of(found: Iterable[Mapping[str, Any]]) -> str:
    """The note of the last entry that has one."""
    notes = [str(settings[NOTE] or "") for settings in found if NOTE in settings]
    return notes[-1] if notes else ""


def settings_of(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of all entries with dotted keys; later ones win."""
    return {key: value for settings in found for key, value in _dotted(settings) if key != NOTE}


def groups(table: Table) -> list[tuple[str, dict[str, Any], str]]:
    """Tasks with the same settings together: their names in short, the settings, and the note."""
    found: dict[str, tuple[list[str], dict[str, Any], str]] = {}
    for name in offered(table):
        settings, note = settings_of(entries(table, name)), note_of(entries(table, name))
        found.setdefault(f"{sorted(settings.items())} {note}", ([], settings, note))[0].append(name)
    return [(short(names), settings, note) for names, settings, note in found.values()]


def short(names: Iterable[str]) -> str:
    """``hopper-{medium, expert}-v2`` for two ids, and ``{hopper, walker2d}-...`` where others go the same way."""
    levels: dict[tuple[str, str], list[str]] = {}
    for name in names:
        head, _, rest = name.partition("-")
        level, _, version = rest.rpartition("-")
        levels.setdefault((head, version), []).append(level)
    alike: dict[tuple[str, str], list[str]] = {}
    for (head, version), middle in levels.items():
        alike.setdefault((_braces(middle), version), []).append(head)
    return "; ".join(f"{_braces(heads)}-{middle}-{version}" for (middle, version), heads in alike.items())


def markdown(table: Table) -> str:
    """The table as it stands in docs/tasks.md."""
    lines = ["| tasks | settings | note |", "|---|---|---|"]
    for names, settings, note in groups(table):
        lines.append(f"| `{names}` | {f'`{as_overrides(settings)}`' if settings else GENERAL} | {note} |")
    return "\n".join(lines)


def as_overrides(settings: Mapping[str, Any]) -> str:
    """``key=value`` of each, as on the command line; those of the learner without ``learner.``."""
    return " ".join(f"{key.removeprefix('learner.')}={_text(value)}" for key, value in settings.items())


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "null"
    return f"[{','.join(map(_text, value))}]" if isinstance(value, list) else str(value)


def _braces(words: list[str]) -> str:
    return words[0] if len(words) == 1 else "{" + ", ".join(words) + "}"


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
