"""The report of a run: pictures and one HTML page, made from what lies in the run folder and from nothing else.

It can be made again at any time, also while the run goes on: what is not there yet is left out, and said to be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from raydiff.errors import UserError
from raydiff.figures import learning_curves, pretty, run_arms, save, synthetic_data
from raydiff.gantt import timeline
from raydiff.metrics import Record, read_metrics
from raydiff.page import Page, Picture, render

SCORE_COLUMNS = ("policy", "normalised score", "interval", "raw return", "interval", "episodes")
SCORE_NOTE = (
    "Normalised: 0 is a random policy, 100 the reference expert. Scores are those of the last policy, never of the "
    "best one seen. Intervals run over the evaluation episodes of one training seed; another seed may differ by more."
)
_LEADING = ("behaviour", "real_only", "guided")


def write_report(run_folder: str | Path) -> list[Path]:
    """Write ``report/`` of a run folder and return the files: PNG pictures and ``index.html``.

    Raises ``UserError`` where the folder has no readable ``metrics.jsonl`` or a broken ``summary.json``.
    """
    run = Path(run_folder)
    records = read_metrics(run)
    summary, settings = _summary(run), _settings(run)
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    written: list[Path] = []
    pictures: list[Picture] = []
    for name, title, caption, missing, figure in _figures(records, summary, settings):
        path = folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)  # one from an earlier report would belong to other records
            pictures.append(Picture(title, caption, None, missing))
            continue
        save(figure, path)
        written.append(path)
        pictures.append(Picture(title, caption, path.read_bytes()))
    page = _page(run, records, summary, pictures)
    index = folder / "index.html"
    temporary = index.with_name(".index.html.part")
    temporary.write_text(render(page), encoding="utf-8")
    os.replace(temporary, index)
    return [*written, index]


def score_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row of text per policy, in the order of ``SCORE_COLUMNS``: behaviour, real_only, guided, then the others."""
    scores = summary.get("scores") or {}
    names = [name for name in _LEADING if name in scores] + [name for name in scores if name not in _LEADING]
    found: list[tuple[str, ...]] = []
    for name in names:
        score = scores[name]
        if score is None:
            found.append((pretty(name), "not run", "", "", "", ""))
            continue
        normalized, raw = score.get("normalized") or {}, score.get("raw") or {}
        episodes = normalized.get("episodes", raw.get("episodes"))
        found.append(
            (
                pretty(name),
                _number(normalized.get("mean"), 1),
                _interval(normalized, 1),
                _number(raw.get("mean"), 1),
                _interval(raw, 1),
                _number(episodes, 0),
            )
        )
    return found


def score_table(summary: Mapping[str, Any]) -> Table:
    """The scores for the console at the end of a run."""
    table = Table(box=box.SIMPLE_HEAD, title="Final scores", title_justify="left", caption=_CAPTION,
                  caption_justify="left")  # fmt: skip
    for place, column in enumerate(SCORE_COLUMNS):
        table.add_column(column, justify="right" if place else "left")
    for row in score_rows(summary):
        table.add_row(*(Text(cell) for cell in row))
    return table


_CAPTION = "intervals: over evaluation episodes of one seed"


def key_figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the summary for the page; what was not measured says so."""
    if not summary:
        return []
    lag, ratio = summary.get("policy_lag") or {}, summary.get("samples_per_insert") or {}
    dataset, discards = summary.get("dataset") or {}, summary.get("discards") or {}
    seconds, versions = summary.get("seconds") or {}, summary.get("versions") or {}
    figures = [
        ("learner updates", _number(summary.get("updates"), 0)),
        ("trajectories generated", _number(summary.get("trajectories_generated"), 0)),
        ("trajectories refined", _number(summary.get("trajectories_refined"), 0)),
        ("learning overlapped with generation", _percent(summary.get("overlap_fraction"))),
        ("learner waited", _percent(summary.get("learner_wait_fraction"))),
        ("generators idle", _percent(summary.get("generator_idle_fraction"))),
        ("policy lag of sampled data", f"mean {_number(lag.get('mean'), 0)}, max {_number(lag.get('max'), 0)} updates"),
        ("samples per insert", f"{_number(ratio.get('achieved'), 2)} (target {_number(ratio.get('target'), 2)})"),
        ("discarded trajectories", _listing({k: _number(v, 0) for k, v in discards.items()}) or "none"),
        ("seconds", _listing({pretty(k): _number(v, 1) for k, v in seconds.items()}) or "not measured"),
        ("dataset", _listing(dataset)),
        ("versions", _listing(versions)),
        ("configuration hash", str(summary.get("config_hash") or "unknown")),
    ]
    return [(name, value) for name, value in figures if value]


def _figures(
    records: list[Record], summary: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[tuple[str, str, str, str, Figure | None]]:
    """Name, title, caption, reason if missing, and the figure itself."""
    scores = summary.get("scores") or {}
    arms = run_arms(records, scores)
    limit = (settings.get("replay") or {}).get("max_lag")
    return [
        ("learning_curves", "Learning curves",
         "Normalised score of each arm in the simulator; bands and bars are intervals over the episodes of one seed.",
         "Nothing has been evaluated yet.", learning_curves(records, arms, scores)),
        ("synthetic_data", "Synthetic data",
         "Distance of synthetic actions from the policy they were made for; error of synthetic steps against the "
         "simulator, as a share of the error of predicting no change; age of the data in the learner's batches.",
         "This run has no synthetic data, so there is nothing to show about them.",
         synthetic_data(records, arms, limit, summary.get("audit_floor"))),
        ("timeline", "Timeline",
         "One line per worker, as the workers timed their own calls. The frame marks the close-up.",
         "No record carries times.", timeline(records, arms)),
    ]  # fmt: skip


def _page(run: Path, records: list[Record], summary: Mapping[str, Any], pictures: Sequence[Picture]) -> Page:
    dataset = summary.get("dataset") or {}
    about = [str(dataset[key]) for key in ("id", "environment") if dataset.get(key)]
    about.append(f"{len(records):,} records" + ("" if summary else "; the run has not ended"))
    config = run / "config.yaml"
    return Page(
        title=f"raydiff run {run.resolve().name}",
        lead=" · ".join(dict.fromkeys(about)),
        score_columns=SCORE_COLUMNS,
        scores=score_rows(summary),
        score_note=SCORE_NOTE,
        figures=key_figures(summary),
        caveats=[str(text) for text in summary.get("caveats") or []],
        pictures=pictures,
        settings=config.read_text(encoding="utf-8") if config.is_file() else "",
    )


def _summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}). Remove it to report without a summary.") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path} must hold one JSON object. Remove it to report without a summary.")
    return summary


def _settings(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({error}). Restore the file that the run wrote.") from error
    return settings if isinstance(settings, dict) else {}


def _number(value: Any, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _interval(score: Mapping[str, Any], digits: int) -> str:
    low, high = score.get("low"), score.get("high")
    return "–" if low is None or high is None else f"[{low:,.{digits}f}, {high:,.{digits}f}]"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _listing(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
