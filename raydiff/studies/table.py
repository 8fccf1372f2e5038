"""``table.md`` and ``results.json`` of a study: every value with its interval over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydiff.files import whole_file
from raydiff.studies.api import Study
from raydiff.studies.findings import text
from raydiff.studies.results import Results, Row

if TYPE_CHECKING:
    from raydiff.studies.computed import Computed


def write_results(results: Results, study: Study | Computed, folder: Path, findings: Sequence[str]) -> list[Path]:
    """Write both files atomically and return their paths. Raises ``OSError``."""
    files = {
        "table.md": markdown(results, study, findings),
        "results.json": json.dumps(as_dict(results, study, findings), indent=2, allow_nan=False) + "\n",
    }
    for name, content in files.items():
        with whole_file(folder / name) as part:
            part.write_text(content, encoding="utf-8")
    return [folder / name for name in files]


def markdown(results: Results, study: Study | Computed, findings: Sequence[str]) -> str:
    """Title, facts, one table with a heading line per group, what failed, and the findings."""
    lines = [f"# {results.study}", "", results.title, ""]
    lines += [f"- {name}: {f'{value:,}' if isinstance(value, int) else value}" for name, value in results.facts.items()]
    if results.learner:
        learner = ", ".join(f"{name}={value}" for name, value in results.learner.items())
        lines.append(f"- unless a condition says otherwise: {learner}")
    lines.append("")
    own = study.table if isinstance(study, Study) else None
    lines += _means(results, study) if own is None else own(results)
    failed = [f"- {row.label}, seed {seed}: {why}" for row in results.rows for seed, why in row.failed.items()]
    if failed:
        lines += ["", "Failed runs:", "", *failed]
    lines += ["", study.note, ""]
    if findings:
        lines += ["## Findings", "", *[f"- {line}" for line in findings], ""]
    return "\n".join(lines)


def _means(results: Results, study: Study | Computed) -> list[str]:
    columns = [name for name in study.columns if any(row.values(name) for row in results.rows)]
    lines = ["| condition | seeds | " + " | ".join(study.measures[name].label for name in columns) + " |"]
    lines += ["|---|---|" + "---|" * len(columns)]
    for group in dict.fromkeys(row.group for row in results.rows):
        lines.append(f"| **{group}** |" + " |" * (len(columns) + 1))
        lines += [_line(row, columns, study) for row in results.rows if row.group == group]
    return lines


def as_dict(results: Results, study: Study | Computed, findings: Sequence[str]) -> dict[str, Any]:
    """Plain values: of every run, and the mean of every measure with its interval."""
    return {
        "study": results.study,
        "title": results.title,
        "facts": dict(results.facts),
        "learner": dict(results.learner),
        "findings": list(findings),
        "conditions": [
            {
                "name": row.name,
                "label": row.label,
                "group": row.group,
                "overrides": dict(row.overrides),
                "x": row.x,
                "runs": [{"seed": seed, **run} for seed, run in sorted(row.runs.items())],
                "failed": {str(seed): why for seed, why in row.failed.items()},
                "means": {n: asdict(found) for n in study.measures if (found := row.estimate(n)) is not None},
                "series": {
                    n: [asdict(entry) for entry in entries] for n in study.measures if (entries := row.series(n))
                },
            }
            for row in results.rows
        ],
    }


def _line(row: Row, columns: Sequence[str], study: Study | Computed) -> str:
    cells = [row.label, str(len(row.runs)) if row.runs else "not run"]
    for name in columns:
        found = row.estimate(name)
        cells.append("" if found is None else text(found, study.measures[name].digits))
    return "| " + " | ".join(cells) + " |"
