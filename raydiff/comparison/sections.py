"""The page of a comparison, section by section, with its pictures drawn and saved on the way."""

from __future__ import annotations

import re

from raydiff.book import Book
from raydiff.comparison import figures, findings
from raydiff.comparison.cautions import cautions
from raydiff.comparison.conditions import Comparison, Task, differences, show
from raydiff.comparison.scores import (
    AGGREGATE_COLUMNS,
    PAIR_COLUMNS,
    SCALE_NOTES,
    SCALE_TITLES,
    aggregates,
    on_every_task,
    pair_row,
    pairs,
    task_table,
    tasks_of,
)
from raydiff.comparison.timelines import timelines
from raydiff.findings import count, interval_text, number
from raydiff.page import Note, Page, Part, Points, Section, Table
from raydiff.presets import describe

_INTERVALS = (
    "Scores are those of the last policy of each run, never of the best one seen. Means, interquartile means (IQM, the "
    "mean without the lowest and the highest quarter) and their 95 % intervals run over seeds, by 2,000 bootstrap "
    "resamples within each task; with a single seed the interval runs over its evaluation episodes."
)
_PAIRS = (
    "P(higher) is the share of pairs of runs, one of each condition, in which the first scores higher (ties count "
    "half): the Mann-Whitney statistic, averaged over tasks. It ignores that runs of one seed share their data, their "
    "models and their evaluation seeds. The difference, the seeds won and p (how often random signs would give a mean "
    "difference as large) compare seed by seed. Where all runs of one condition lie above all of the other, the "
    "interval of P has no width; with few seeds that happens by chance, and p says how easily."
)


def comparison_page(comparison: Comparison, book: Book) -> Page:
    """All that is said of a comparison; its pictures go into ``book``."""
    seeds = sorted({trial.seed for condition in comparison.conditions for trial in condition.trials})
    sections = [_what(comparison)]
    for scale in comparison.scales():
        sections.append(_scores(comparison, scale, book))
    sections += [
        _quality(comparison, book),
        _speed(comparison, book),
        _timelines(comparison, book),
        _runs(comparison),
    ]
    lead = (
        f"{len(comparison.conditions)} conditions on {count(len(comparison.tasks), 'task')}, "
        f"{count(len(seeds), 'seed')} ({', '.join(str(seed) for seed in seeds)}), {len(comparison.runs)} runs"
    )
    title = "Comparison: " + ", ".join(dict.fromkeys(task.environment for task in comparison.tasks))
    return Page(title, lead, cautions(comparison), sections, contents=True)


def _what(comparison: Comparison) -> Section:
    parts: list[Part] = []
    found = differences(comparison)
    words = {key: text for key, _, text in describe()}
    labels = [condition.label for condition in comparison.conditions]
    if found:
        rows = [(key, words.get(key, ""), *(show(value) for value in values)) for key, values in found.items()]
        caption = "Settings that differ between the conditions; – where a setting does not act on one."
        parts.append(Table(("setting", "what it is", *labels), rows, caption, left=2))
    else:
        parts.append(Note("The conditions differ in no setting but those of the task."))
    if comparison.task_settings:
        rows = [
            (key, *(show(values.get(task)) for task in comparison.tasks))
            for key, values in comparison.task_settings.items()
        ]
        columns = ("setting", *(comparison.short(task) for task in comparison.tasks))
        parts.append(Table(columns, rows, "Settings that go with the task, the same for all its conditions."))
    return Section("What is compared", parts)


def _scores(comparison: Comparison, scale: str, book: Book) -> Section:
    tasks = tasks_of(comparison, scale)
    everywhere, found = on_every_task(comparison, tasks), pairs(comparison, scale)
    parts: list[Part] = [
        Note(SCALE_NOTES[scale], quiet=False),
        book.picture(
            f"learning_curves_{scale}", "Learning curves",
            "Bold: mean over seeds on the updates that all of them have reached. Band: 95 % interval over seeds, or "
            "over episodes where there is one seed. Thin: single seeds.",
            figures.learning_curves(comparison, scale), findings.curves_show(comparison, scale),
            "Nothing has been evaluated yet."),
        book.picture(
            f"final_scores_{scale}", "Scores of the last policies",
            "Marker: mean. Bar: 95 % interval over seeds, or over episodes where there is one seed. Ticks: single seeds.",
            figures.final_figure(comparison, scale), findings.finals_show(comparison, scale),
            "No run has ended yet."),
        *[task_table(comparison, task) for task in tasks],
        Note(_INTERVALS),
    ]  # fmt: skip
    if everywhere:
        rows = []
        for condition in everywhere:
            mean, middle = aggregates(condition, tasks)
            numbers = (number(mean.value), interval_text(mean), number(middle.value), interval_text(middle))
            rows.append((condition.label, *numbers, str(mean.runs)))
        parts.append(Table(AGGREGATE_COLUMNS, rows, f"Over all {len(tasks)} tasks: each seed of each is one score."))
    if found:
        parts += [
            book.picture(
                f"improvement_{scale}", "Pairs of conditions",
                "Dot: share of pairs of runs in which the first scores higher. Bar: its 95 % interval over seeds, black "
                "where the difference seed by seed is more than chance (p < 0.05).",
                figures.improvement(found), findings.pairs_show(found)),
            Table(PAIR_COLUMNS, [pair_row(pair) for pair in found], left=2),
            Note(_PAIRS),
        ]  # fmt: skip
    return Section(SCALE_TITLES[scale], parts)


def _quality(comparison: Comparison, book: Book) -> Section:
    parts: list[Part] = []
    for task in comparison.tasks:
        parts.append(book.picture(
            f"data_quality_{_name(comparison, task)}", task.title,
            "Each point is the mean over a twelfth of the run; band: 95 % interval over seeds, or within the twelfth "
            "where there is one seed. The warm-up's blocks, made for no policy, are left out of the distance.",
            figures.data_quality(comparison, task), findings.quality_shows(comparison, task),
            f"{task.title}: no run has synthetic data."))  # fmt: skip
    return Section("Quality of the synthetic data", parts)


def _speed(comparison: Comparison, book: Book) -> Section:
    parts: list[Part] = []
    for task in comparison.tasks:
        parts.append(book.picture(
            f"throughput_{_name(comparison, task)}", task.title,
            "Between the first learner chunk and the last, on the machine that each run had. Marker: mean; bar: 95 % "
            "interval over seeds; ticks: single seeds. New and refreshed trajectories both count.",
            figures.throughput(comparison, task), findings.throughput_shows(comparison, task),
            f"{task.title}: no record carries times."))  # fmt: skip
    return Section("Speed and waiting", parts)


def _timelines(comparison: Comparison, book: Book) -> Section:
    picture = book.picture(
        "timelines", "Timelines",
        "One panel per run, one line per role, filled as far as the workers of that role were busy (full height: all "
        "of them all the time); arms that ran at once share the height.",
        timelines(comparison), findings.timelines_show(comparison), "No record carries times.")  # fmt: skip
    return Section("Timelines", [picture])


RUN_COLUMNS = ("run", "task", "dataset hash", "seed", "MuJoCo", "raydiff", "took")


def _runs(comparison: Comparison) -> Section:
    rows = []
    for run, task in zip(comparison.runs, comparison.run_tasks, strict=True):
        seconds = (run.summary.get("seconds") or {}).get("total")
        state = "not finished" if not run.finished else f"{seconds:,.0f} s" if seconds is not None else "finished"
        seed = run.settings.get("seed")
        facts = (
            (run.dataset("hash") or "")[:12],
            str(0 if seed is None else seed),
            run.dataset("mujoco"),
            run.version("raydiff"),
        )
        rows.append((run.name, comparison.short(task), *(fact or "–" for fact in facts), state))
    said = dict.fromkeys(str(text) for run in comparison.runs for text in run.summary.get("caveats") or [])
    parts: list[Part] = [Table(RUN_COLUMNS, rows, left=len(RUN_COLUMNS))]
    if said:
        parts += [Note("What the single runs say of themselves:"), Points(list(said))]
    return Section("Runs", parts)


def _name(comparison: Comparison, task: Task) -> str:
    """A part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", comparison.short(task)).strip("-")
