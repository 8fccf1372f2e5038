"""The report of a run: pictures and one HTML page, made from what lies in the run folder and from nothing else.

It can be made again at any time, also while the run goes on: what is not there yet is left out, and said to be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.table import Table as ConsoleTable
from rich.text import Text

from raydiff import findings
from raydiff.book import Book
from raydiff.errors import UserError
from raydiff.figures import learning_curves, pretty, run_arms, score_scale, spread_of, synthetic_data
from raydiff.gantt import timeline
from raydiff.metrics import Record, read_metrics
from raydiff.page import Listing, Note, Page, Picture, Section, Table
from raydiff.replay.samples import read_samples

SCORE_COLUMNS = ("policy", "normalised score", "interval", "raw return", "interval", "episodes")
SCORE_NOTE = (
    "Normalised: 0 is a random policy, 100 the reference expert. Scores are those of the last policy, never of the "
    "best one seen. Intervals run over the evaluation episodes of one training seed; another seed may differ by more."
)
RETURN_NOTE = (
    "No reference returns are known for this environment, so there is no normalised score. Returns are those of the last "
    "policy, never of the best one seen. Intervals run over the evaluation episodes of one training seed; another seed "
    "may differ by more."
)
SEEDS_NOTE = (
    "Where several seeds were trained at once, the mean over them comes with its standard error and its 95 % interval "
    "over seeds, and each seed below it with the interval over its episodes."
)
_LEADING = ("behaviour", "real_only", "guided")


def write_report(run_folder: str | Path, out: Path | None = None) -> list[Path]:
    """Write ``report/`` of a run folder (or ``out``) and return the files: PNG pictures and ``index.html``.

    Raises ``UserError`` where the folder has no readable ``metrics.jsonl`` or a broken ``summary.json``.
    """
    run = Path(run_folder)
    records = read_metrics(run)
    summary, settings = read_summary(run), read_settings(run)
    book = Book(out if out is not None else run / "report")
    return book.finish(_page(run, records, summary, _pictures(run, book, records, summary, settings)))


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
        seeds = score.get("seeds") or {}
        found.append(_score_row(f"{pretty(name)}, {len(seeds)} seeds" if seeds else pretty(name), score))
        found += [_score_row(f"  seed {seed}", own) for seed, own in seeds.items()]
    return found


def _score_row(name: str, score: Mapping[str, Any]) -> tuple[str, ...]:
    normalized, raw = score.get("normalized") or {}, score.get("raw") or {}
    episodes = normalized.get("episodes", raw.get("episodes"))
    return (name, *_mean(normalized), *_mean(raw), _number(episodes, 0))


def _mean(score: Mapping[str, Any]) -> tuple[str, str]:
    """The mean, of several seeds with its standard error, and the interval."""
    error = score.get("standard_error")
    return _number(score.get("mean"), 1) + (f" ± {_number(error, 1)}" if error is not None else ""), _interval(score, 1)


def score_table(summary: Mapping[str, Any]) -> ConsoleTable:
    """The scores for the console at the end of a run."""
    several = any((score or {}).get("seeds") for score in (summary.get("scores") or {}).values())
    table = ConsoleTable(box=box.SIMPLE_HEAD, title="Final scores", title_justify="left",
                  caption=SEEDS_CAPTION if several else _CAPTION,
                  caption_justify="left")  # fmt: skip
    for place, column in enumerate(SCORE_COLUMNS):
        table.add_column(column, justify="right" if place else "left")
    for row in score_rows(summary):
        table.add_row(*(Text(cell) for cell in row))
    return table


_CAPTION = "intervals: over evaluation episodes of one seed"
SEEDS_CAPTION = "intervals: of several seeds over seeds, with ± one standard error; else over episodes of one seed"


def key_figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the summary for the page; what was not measured says so."""
    if not summary:
        return []
    lag, ratio = summary.get("policy_lag") or {}, summary.get("samples_per_insert") or {}
    dataset, discards = summary.get("dataset") or {}, summary.get("discards") or {}
    seconds, versions = summary.get("seconds") or {}, summary.get("versions") or {}
    strength = summary.get("guidance_strength")
    figures = [
        ("learner updates", _number(summary.get("updates"), 0)),
        ("seeds trained at once", _seeds(summary)),
        ("trajectories generated", _number(summary.get("trajectories_generated"), 0)),
        ("trajectories refined", _number(summary.get("trajectories_refined"), 0)),
        ("learning overlapped with generation", _percent(summary.get("overlap_fraction"))),
        ("learner waited", _percent(summary.get("learner_wait_fraction"))),
        ("generators idle", _percent(summary.get("generator_idle_fraction"))),
        ("audited error of synthetic data", _audited(summary)),
        ("automatic strength", findings.strength_shows(strength) if strength else ""),
        ("policy lag of sampled data", f"mean {_number(lag.get('mean'), 0)}, max {_number(lag.get('max'), 0)} updates"),
        ("samples per insert", f"{_number(ratio.get('achieved'), 2)} (target {_number(ratio.get('target'), 2)})"),
        ("discarded trajectories", _listing({k: _number(v, 0) for k, v in discards.items()}) or "none"),
        ("seconds", _listing({pretty(k): _number(v, 1) for k, v in seconds.items()}) or "not measured"),
        ("dataset", _listing(dataset)),
        ("versions", _listing(versions)),
        ("configuration hash", str(summary.get("config_hash") or "unknown")),
    ]
    return [(name, value) for name, value in figures if value]


def _seeds(summary: Mapping[str, Any]) -> str:
    """Which, where there are several: each of them has had all the updates."""
    seeds = summary.get("seeds") or []
    return ", ".join(map(str, seeds)) if len(seeds) > 1 else ""


def _audited(summary: Mapping[str, Any]) -> str:
    """One step in the simulator, over the data's variance: of new and refreshed blocks and of real data."""
    found = (summary.get("audit") or {}).get(summary.get("main")) or {}
    parts = {name: (found.get(name) or {}).get("dynamics_error") for name in ("new", "refreshed", "floor")}
    return _listing({name: f"{error:.3g}" for name, error in parts.items() if error is not None})


def _pictures(
    run: Path, book: Book, records: list[Record], summary: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Picture]:
    scores = summary.get("scores") or {}
    arms = run_arms(records, scores)
    limit = (settings.get("replay") or {}).get("max_lag")
    return [
        book.picture(
            "learning_curves", "Learning curves",
            f"Each arm in the simulator; bands and bars are 95 % intervals over {spread_of(records, arms)}.",
            learning_curves(records, arms, scores), findings.curves_show(records, arms, scores),
            "Nothing has been evaluated yet."),
        book.picture(
            "synthetic_data", "Synthetic data",
            "Distance of synthetic actions from the policy they were made for; error of synthetic steps against the "
            "simulator, as a share of the error of predicting no change; age of the data in the learner's batches.",
            synthetic_data(records, arms, limit, summary.get("audit_floor")), findings.synthetic_shows(records, arms),
            "This run has no synthetic data, so there is nothing to show about them."),
        *_maze(run, book, summary, settings, arms),
        book.picture(
            "timeline", "Timeline",
            "One line per worker, as the workers timed their own calls. The frame marks the close-up.",
            timeline(records, arms), findings.timeline_shows(records, arms), "No record carries times."),
    ]  # fmt: skip


def _maze(
    run: Path, book: Book, summary: Mapping[str, Any], settings: Mapping[str, Any], arms: Sequence[str]
) -> list[Picture]:
    """Real and synthetic trajectories in their maze, where the run has one and kept samples of them."""
    data = {**(settings.get("data") or {}), **(summary.get("dataset") or {})}
    name = str(data.get("environment") or data.get("dataset") or "")
    paths = {group: run / "replay" / f"{group}_sample.npz" for group in ("real", *arms)}
    if not name.startswith("maze2d-") or not any(path.is_file() for path in paths.values()):
        return []
    from raydiff.maze_figure import maze_trajectories  # the simulator is imported for mazes only

    groups = {group: read_samples(path)["observation"] for group, path in paths.items() if path.is_file()}
    caption = "Trajectories of the data and of the last synthetic data of each arm; those in black enter a wall."
    shows = findings.maze_shows(name, groups)
    return [book.picture("maze", "Trajectories in the maze", caption, maze_trajectories(name, groups), shows)]


def _page(run: Path, records: list[Record], summary: Mapping[str, Any], pictures: Sequence[Picture]) -> Page:
    dataset = summary.get("dataset") or {}
    about = [str(dataset[key]) for key in ("id", "environment") if dataset.get(key)]
    about.append(f"{len(records):,} records" + ("" if summary else "; the run has not ended"))
    config, rows, figures = run / "config.yaml", score_rows(summary), key_figures(summary)
    scores = Table(SCORE_COLUMNS, rows) if rows else Note("No policy has been scored.")
    facts = Table((), figures) if figures else Note("No summary.json was found: the run has not ended.")
    listing = Listing(config.read_text(encoding="utf-8")) if config.is_file() else Note("No config.yaml was found.")
    return Page(
        title=f"raydiff run {run.resolve().name}",
        lead=" · ".join(dict.fromkeys(about)),
        caveats=[str(text) for text in summary.get("caveats") or []],
        sections=[
            Section("Scores", [scores, Note(_score_note(records, summary))]),
            *[Section(picture.title, [picture]) for picture in pictures],
            Section("Key figures", [facts]),
            Section("Settings", [listing]),
        ],
    )


def _score_note(records: list[Record], summary: Mapping[str, Any]) -> str:
    note = SCORE_NOTE if score_scale(records) == "normalized" else RETURN_NOTE
    if not _seeds(summary):
        return note
    return note.partition("Intervals run")[0] + SEEDS_NOTE


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a run, empty before the run has ended. Raises ``UserError`` where it is broken."""
    path = folder / "summary.json"
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}). Remove it to report without a summary.") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path} must hold one JSON object. Remove it to report without a summary.")
    return summary


def read_settings(folder: Path) -> dict[str, Any]:
    """``config.yaml`` of a run, nested as it stands there. Raises ``UserError`` where it is broken."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({error}). Restore the file that the run wrote.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold keys and values. Restore the file that the run wrote.")
    return settings


def _number(value: Any, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _interval(score: Mapping[str, Any], digits: int) -> str:
    low, high = score.get("low"), score.get("high")
    return "–" if low is None or high is None else f"[{low:,.{digits}f}, {high:,.{digits}f}]"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _listing(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
