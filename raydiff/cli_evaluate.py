"""``raydiff evaluate``: the last policies of runs, scored by one protocol and compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from raydiff.cli_data import fit, progress_bar
from raydiff.errors import UserError
from raydiff.files import check_writable

if TYPE_CHECKING:
    from raydiff.comparison.runs import Run
    from raydiff.evaluation.evaluate_runs import Played, Protocol

_ADVICE = "Give another --json, in a folder with write permission and free space."


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of finished runs; one or several.")],
    arm: Annotated[
        list[str] | None, typer.Option(metavar="ARM", help="Only this arm; can be given several times. Default: all.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of every policy.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode; the same seeds for all policies.")] = (
        10_000
    ),
    sampled: Annotated[
        bool, typer.Option("--sampled", help="One plain draw per step; without it: the method's evaluation action.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of diffusion policies in evaluation, instead of their own.")
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(min=1, help="Actions that diffusion policies choose from, instead of their own number."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="File for all figures, every return included.")] = None,
) -> None:
    """Score the last policies of runs in the simulator: returns and D4RL scores, over seeds and over tasks, in pairs.

    Runs that differ in nothing but their seed are one condition. Intervals are 95 % bootstrap intervals over seeds
    within each task (50,000 resamples); with one seed they run over its episodes.

    Example: raydiff evaluate runs/guided-0 runs/guided-1 runs/real-0 runs/real-1 --episodes 100 --json scores.json
    """
    if out is not None:
        if out.is_dir():
            raise UserError(f"--json {out} is a folder. {_ADVICE}")
        check_writable(out, _ADVICE)
    from raydiff.comparison.rescored import tabulate
    from raydiff.comparison.runs import load_runs
    from raydiff.evaluation.evaluate_runs import Protocol

    protocol = Protocol(episodes, seed, sampled, temperature, candidates)
    if sampled and protocol.tricks:
        raise UserError(
            "--sampled takes one plain draw per step: leave it out, or leave out --temperature and --candidates."
        )
    loaded = load_runs(runs)
    with progress_bar() as note:
        played = _play(loaded, arm or [], protocol, note)
    found = {
        "protocol": {"policies": "last", "episodes": episodes, "first_seed": seed,
                     "actions": "sampled" if sampled else "evaluation", **protocol.tricks},
        **tabulate(loaded, played),
    }  # fmt: skip
    found["cautions"] += _without_draws(found["policies"]) if sampled else []
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a pipe has no width to fit
    _show(found, console)
    if out is not None:
        from raydiff.files import whole_file

        with whole_file(out) as part:
            part.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
        console.print(str(out), soft_wrap=True, highlight=False)


def _play(
    runs: Sequence[Run], arms: Sequence[str], protocol: Protocol, note: Callable[..., None]
) -> list[dict[str, Played]]:
    """Every policy is read before the first is played, so that what is missing is found at once."""
    from raydiff.envs.registry import DEFAULT
    from raydiff.evaluation.evaluate_runs import last_policies, play

    policies = [last_policies(run.folder, arms) for run in runs]
    without = [name for name in protocol.tricks if not any(name in p.spec for own in policies for p in own.values())]
    if without:
        raise UserError(f"--{without[0]} acts on diffusion policies, and there is none among these. Leave it out.")
    total, done = protocol.episodes * sum(len(own) for own in policies), 0
    played: list[dict[str, Played]] = []
    for run, own in zip(runs, policies, strict=True):
        environment = str(run.settings.get("data.environment") or run.dataset("environment") or DEFAULT)
        played.append({})
        for arm, policy in own.items():
            name = f"{run.name}, {arm}"
            note("playing", done, total, name)

            def told(episodes: int, before: int = done, name: str = name) -> None:
                note("playing", before + episodes, total, name)

            played[-1][arm] = play(policy, environment, protocol, told, name)
            done += protocol.episodes
    return played


def _without_draws(policies: Sequence[Mapping[str, Any]]) -> list[str]:
    fixed = list(dict.fromkeys(row["condition"] for row in policies if not row["random"]))
    if not fixed:
        return []
    return [
        f"The policies of {', '.join(fixed)} are deterministic: there was nothing to sample, and they took their action."
    ]


def _show(found: Mapping[str, Any], console: Console) -> None:
    protocol = found["protocol"]
    tricks = [f"{name} {protocol[name]:g}" for name in ("temperature", "candidates") if name in protocol]
    how = ", ".join([f"{protocol['actions']} actions", *tricks])
    for task in found["tasks"]:
        table = _task_table(task, f"last policies, {protocol['episodes']:,} episodes each, {how}")
        fit(table, console, ("median", "95 % of the median"), ("each seed",))
        console.print(table)
    for aggregate in found["aggregates"]:
        console.print(_aggregate_table(aggregate))
    seeds = {row["interval_over"] for task in found["tasks"] for row in task["conditions"]}
    if found["pairs"] and "seeds" in seeds:  # of one seed each, pairs are nothing but the order of the table above
        table = _pair_table(found["pairs"])
        fit(table, console, ("p (Welch)",), ("seeds won",))
        console.print(table)
    for line in found["cautions"]:
        console.print(f"Note: {line}", highlight=False, markup=False)


def _task_table(task: Mapping[str, Any], protocol: str) -> Table:
    from raydiff.comparison.scores import FEWEST_FOR_IQM, SCALE_AXES

    single = all(row["interval_over"] == "episodes" for row in task["conditions"])
    over = "95 % over episodes" if single else "95 % over seeds"
    most = max(len(row["seeds"]) for row in task["conditions"])
    middles = ["IQM", "95 % of the IQM", "median", "95 % of the median"] if most >= FEWEST_FOR_IQM else []
    table = _table(f"{task['title']}: {SCALE_AXES[task['scale']]}, {protocol}",
                   ["each seed", "mean", over, *middles, "return"])  # fmt: skip
    if task["behaviour"]:
        table.add_row("behaviour (the data)", "", *_estimate({**task["behaviour"], "value": task["behaviour"]["mean"]}))
    for row in task["conditions"]:
        each = ", ".join(_number(value) for _, value in sorted(row["seeds"].items()))
        mean = _estimate(row["mean"])
        if row["interval_over"] == "episodes" and not single:
            mean = (mean[0], "(one seed)")
        cells = [cell for name in ("iqm", "median") for cell in _estimate(row[name])] if middles else []
        table.add_row(row["condition"], each, *mean, *cells, _number(row["return"]))
    return table


def _aggregate_table(aggregate: Mapping[str, Any]) -> Table:
    table = _table(
        f"Over {len(aggregate['tasks'])} tasks, each seed of each one score; the median is that of the tasks' means",
        ["IQM", "95 %", "mean", "95 %", "median", "95 %", "runs"],
    )
    for row in aggregate["conditions"]:
        cells = [cell for name in ("iqm", "mean", "median") for cell in _estimate(row[name])]
        table.add_row(row["condition"], *cells, str(row["runs"]))
    return table


def _pair_table(pairs: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "Pairs: how likely a run of the first scores above one of the second (Mann-Whitney), and the difference",
        ["against", "P(higher)", "95 %", "difference", "95 % ", "seeds won", "p (signs)", "p (Welch)"],
    )
    for pair in pairs:
        welch = pair["p_of_welch"][0] if len(pair["p_of_welch"]) == 1 else None
        won = f"{pair['seeds_won']} of {pair['seeds_shared']}" if pair["seeds_shared"] else "none shared"
        table.add_row(pair["first"], pair["second"], *_estimate(pair["probability_of_improvement"], 2),
                      *_estimate(pair["difference"]), won, _chance(pair["p_of_signs"]), _chance(welch))  # fmt: skip
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("condition")
    for column in columns:
        table.add_column(column, justify="left" if column == "against" else "right")
    return table


def _estimate(found: Mapping[str, Any] | None, digits: int = 1) -> tuple[str, str]:
    """The value, and its interval where it has one."""
    if found is None:
        return "–", "–"
    if found["low"] is None:
        return _number(found["value"], digits), "(one seed)"
    return _number(found["value"], digits), f"[{_number(found['low'], digits)}, {_number(found['high'], digits)}]"


def _number(value: float, digits: int = 1) -> str:
    return f"{value:,.{digits}f}"


def _chance(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
