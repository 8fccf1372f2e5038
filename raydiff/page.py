"""The report as one self-contained HTML page: no script, no font and no picture from anywhere else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, sans-serif; color: #222; background: #fff; max-width: 1040px; margin: 2.5em auto;
       padding: 0 1.2em; }
h1 { font-size: 1.7em; margin: 0 0 .2em; } h2 { font-size: 1.2em; margin: 2.2em 0 .6em; }
.lead { color: #555; margin: 0 0 1.5em; }
table { border-collapse: collapse; margin: .6em 0; }
th, td { text-align: left; padding: .35em 1.4em .35em 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
thead th { border-bottom: 2px solid #222; }
img { max-width: 100%; height: auto; } figure { margin: 1em 0 2em; } figcaption { color: #555; }
.caveats { border-left: 4px solid #D55E00; background: #fdf5ef; padding: .7em 1.2em; }
.caveats ul { margin: .3em 0; padding-left: 1.2em; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 13px; } .note { color: #555; }
"""


@dataclass(frozen=True)
class Picture:
    """One figure of the page: PNG bytes, or None with the reason in ``missing``."""

    title: str
    caption: str
    png: bytes | None
    missing: str = ""


@dataclass(frozen=True)
class Page:
    """What the page says. ``scores`` are rows of text under ``score_columns``, first column left-aligned."""

    title: str
    lead: str
    score_columns: Sequence[str]
    scores: Sequence[Sequence[str]]
    score_note: str
    figures: Sequence[tuple[str, str]]
    caveats: Sequence[str]
    pictures: Sequence[Picture] = field(default_factory=tuple)
    settings: str = ""


def render(page: Page) -> str:
    """The page as HTML. All text is escaped; pictures are embedded."""
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(page.title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f'<h1>{escape(page.title)}</h1><p class="lead">{escape(page.lead)}</p>',
        "<h2>Scores</h2>",
        _table(page.score_columns, page.scores) if page.scores else '<p class="note">No policy has been scored.</p>',
        f'<p class="note">{escape(page.score_note)}</p>',
        _caveats(page.caveats),
        *[_picture(picture) for picture in page.pictures],
        "<h2>Key figures</h2>",
        _figures(page.figures),
        "<h2>Settings</h2>",
        f"<pre>{escape(page.settings)}</pre>" if page.settings else '<p class="note">No config.yaml was found.</p>',
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(tag: str, text: str, place: int) -> str:
        return f"<{tag}{' class=number' if place else ''}>{escape(text)}</{tag}>"

    head = "".join(cell("th", text, place) for place, text in enumerate(columns))
    body = "\n".join(f"<tr>{''.join(cell('td', text, i) for i, text in enumerate(row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    if not figures:
        return '<p class="note">No summary.json was found: the run has not ended.</p>'
    rows = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in figures)
    return f"<table><tbody>\n{rows}\n</tbody></table>"


def _caveats(caveats: Sequence[str]) -> str:
    if not caveats:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in caveats)
    return f'<div class="caveats"><strong>Read with this in mind</strong><ul>{items}</ul></div>'


def _picture(picture: Picture) -> str:
    if picture.png is None:
        return f'<h2>{escape(picture.title)}</h2><p class="note">{escape(picture.missing)}</p>'
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f"<h2>{escape(picture.title)}</h2>"
        f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )
