"""From run folders to results, files and findings; can be done at any time, also while runs go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raydiff.config import Config, DataConfig
from raydiff.errors import UserError
from raydiff.figures import save
from raydiff.studies.api import Condition, Job, Study
from raydiff.studies.figure import study_figure
from raydiff.studies.measures import read_run
from raydiff.studies.played import played_conditions, played_row
from raydiff.studies.results import Results, Row
from raydiff.studies.table import write_results


def gather(study: Study, base: Config, jobs: Sequence[Job], failures: Mapping[str, str]) -> Results:
    """Read what has ended. ``base`` is the configuration that the conditions differ from.

    Raises ``UserError`` where the records of a finished run are broken.
    """
    conditions = {job.condition.name: job.condition for job in jobs}
    rows = [_row(condition, [j for j in jobs if j.condition.name == name], failures)
            for name, condition in conditions.items()]  # fmt: skip
    rows += [played_row(condition, jobs) for condition in played_conditions(study, base, jobs)]
    order = list(dict.fromkeys(row.group for row in rows))
    return Results(
        study.name,
        study.title,
        sorted(rows, key=lambda row: order.index(row.group)),
        _facts(study, base, jobs, rows),
        {} if study.across else _learner(base),
    )


def publish(study: Study, results: Results, folder: Path) -> list[Path]:
    """Write table, results and figure and return the files, the table first. Raises ``UserError``."""
    findings = study.findings(results)
    try:
        files = write_results(results, study, folder, findings)
        figure = study_figure(results, study) if study.draw is None else study.draw(results)
        if figure is not None:
            files.append(folder / "figure.png")
            save(figure, files[-1])
    except OSError as error:
        raise UserError(
            f"The results cannot be written to {folder} ({error.strerror or error}). Choose another folder with --out."
        ) from None
    return files


def _row(condition: Condition, jobs: Sequence[Job], failures: Mapping[str, str]) -> Row:
    return Row(
        condition.name,
        condition.label,
        condition.group,
        condition.overrides,
        condition.x,
        {job.seed: read_run(job.folder) for job in jobs if job.finished},
        {job.seed: failures[job.name] for job in jobs if job.name in failures},
    )


def _facts(study: Study, base: Config, jobs: Sequence[Job], rows: Sequence[Row]) -> dict[str, Any]:
    floors = [value for row in rows for value in row.values("floor")]
    data = [job.config.data for job in jobs] if study.across else [base.data]
    return {
        "dataset": "; ".join(dict.fromkeys(map(_described, data))),
        "updates": base.learner.updates,
        "seeds": len({job.seed for job in jobs}),
        "runs ended": sum(job.finished for job in jobs),
        "runs in all": len(jobs),
        **({"audited error of real data": f"{np.mean(floors):.3g}"} if floors else {}),
    }


def _described(data: DataConfig) -> str:
    if data.dataset is not None:
        return data.dataset
    return f"{data.environment}, {data.level}, {data.transitions:,} transitions collected here"


def _learner(base: Config) -> dict[str, Any]:
    learner = base.learner
    settings: dict[str, Any] = {
        "learner.algorithm": learner.algorithm,
        "learner.learning_rate": learner.learning_rate,
        "learner.td3_bc.alpha": learner.td3_bc.alpha,
    }
    return settings
