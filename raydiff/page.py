"""Reports as one self-contained HTML page: no script, no font and no picture from anywhere else.

A page is a list of sections, a section a list of parts: tables, pictures, paragraphs, listings. It reads on a screen
and on paper, and every picture says in words what it shows.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

GENERATOR = "raydiff report"
_MARK = f'<meta name="generator" content="{GENERATOR}">'

_LONG = 24  # characters from which a cell needs some width to be read
_WORDS = ' class="words"'
_QUIET = ' class="note"'
_STYLE = """
:root { color-scheme: light; --ink: #1f2328; --quiet: #57606a; --line: #d4d8dd; --strong: #1f2328; }
body { font: 16px/1.6 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; color: var(--ink);
       background: #fff; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 .35rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, li { max-width: 46rem; } p { margin: .5rem 0; } .lead, .note { color: var(--quiet); } .lead { font-size: 1.05rem; }
.note { font-size: .9rem; line-height: 1.5; } ul { padding-left: 1.25rem; } li { margin: .2rem 0; }
nav ul { list-style: none; padding: 0; margin: 1.25rem 0 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
nav a { color: #00538a; text-underline-offset: .2em; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); padding-bottom: .5rem; }
th, td { text-align: left; font-weight: 400; padding: .4rem 1.4rem .4rem 0; vertical-align: top;
         border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--strong); }
tbody th { font-weight: 600; } .number { text-align: right; } td.number { white-space: nowrap; } .words { min-width: 11rem; }
figure { margin: 1rem 0 1.5rem; } img { display: block; max-width: 100%; height: auto; }
.shows { border-left: 3px solid #0072B2; padding-left: .8rem; }
.caveats { border-left: 4px solid #D55E00; background: #fdf5ef; padding: .8rem 1.2rem; margin: 1.5rem 0 0; }
.caveats ul { margin: .3rem 0 0; }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; font-size: .8rem; line-height: 1.45; }
@page { margin: 16mm 14mm; }
@media print {
  body { font-size: 10pt; } main { max-width: none; padding: 0; } nav { display: none; }
  h2 { margin-top: 1.6rem; } h2, h3, caption { break-after: avoid; }
  figure, tr, .caveats { break-inside: avoid; } thead { display: table-header-group; }
  pre { white-space: pre-wrap; overflow: visible; } .wide { overflow: visible; }
  table { font-size: 8pt; } th, td { padding-right: .8rem; } img { max-height: 225mm; }
}
"""


@dataclass(frozen=True)
class Table:
    """Rows of text under ``columns``; the first ``left`` columns are words, the others numbers at the right.

    With ``columns`` empty the first cell of each row is its heading. ``caption`` says what the table holds.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    left: int = 1


@dataclass(frozen=True)
class Picture:
    """One figure: PNG bytes, or None with the reason in ``missing``.

    ``caption`` says what is drawn and ``shows`` what can be seen in it, computed from the numbers drawn.
    """

    title: str
    caption: str
    png: bytes | None
    missing: str = ""
    shows: str = ""


@dataclass(frozen=True)
class Note:
    """A paragraph; ``quiet`` ones are printed in grey."""

    text: str
    quiet: bool = True


@dataclass(frozen=True)
class Listing:
    """Text as it stands in a file."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    sentences: Sequence[str]


Part = Table | Picture | Note | Listing | Points


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """What a page says; ``caveats`` stand before everything else."""

    title: str
    lead: str
    caveats: Sequence[str]
    sections: Sequence[Section]
    contents: bool = False


def render(page: Page) -> str:
    """The page as HTML. All text is escaped; pictures are embedded."""
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        _MARK,
        f"<title>{escape(page.title)}</title>",
        f"<style>{_STYLE}</style></head><body><main>",
        f'<header><h1>{escape(page.title)}</h1><p class="lead">{escape(page.lead)}</p></header>',
        _contents(page.sections) if page.contents else "",
        _caveats(page.caveats),
        *[_section(section) for section in page.sections],
        "</main></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def is_report(html: str) -> bool:
    """Whether a page was made here."""
    return _MARK in html


def _section(section: Section) -> str:
    body = "\n".join(_part(part, section.title) for part in section.parts)
    return f'<section id="{_anchor(section.title)}"><h2>{escape(section.title)}</h2>\n{body}\n</section>'


def _part(part: Part, heading: str) -> str:
    match part:
        case Table():
            return _table(part)
        case Picture():
            return _picture(part, heading)
        case Note():
            return f"<p{_QUIET if part.quiet else ''}>{escape(part.text)}</p>"
        case Listing():
            return f'<pre tabindex="0">{escape(part.text)}</pre>'
        case Points():
            return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in part.sentences)}</ul>"


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#{_anchor(s.title)}">{escape(s.title)}</a></li>' for s in sections)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _table(table: Table) -> str:
    def cell(text: str, place: int) -> str:
        side = _side(table, place) or (_WORDS if len(text) > _LONG else "")
        return f'<th scope="row"{side}>{escape(text)}</th>' if place == 0 else f"<td{side}>{escape(text)}</td>"

    columns = "".join(
        f'<th scope="col"{_side(table, place)}>{escape(text)}</th>' for place, text in enumerate(table.columns)
    )
    head = f"<thead><tr>{columns}</tr></thead>" if table.columns else ""
    body = "\n".join(f"<tr>{''.join(cell(text, i) for i, text in enumerate(row))}</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return f'<div class="wide"><table>{caption}{head}<tbody>\n{body}\n</tbody></table></div>'


def _side(table: Table, place: int) -> str:
    return "" if place < table.left or not table.columns else ' class="number"'


def _caveats(caveats: Sequence[str]) -> str:
    if not caveats:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in caveats)
    return f'<aside class="caveats"><strong>Read with this in mind</strong><ul>{items}</ul></aside>'


def _picture(picture: Picture, heading: str) -> str:
    title = f"<h3>{escape(picture.title)}</h3>" if picture.title != heading else ""
    if picture.png is None:
        return f'{title}<p class="note">{escape(picture.missing)}</p>'
    data = base64.b64encode(picture.png).decode("ascii")
    shows = f'<p class="shows">{escape(picture.shows)}</p>' if picture.shows else ""
    alt = escape(f"{picture.title}. {picture.shows or picture.caption}", quote=True)
    return (
        f'{title}<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
        f'<figcaption>{shows}<p class="note">{escape(picture.caption)}</p></figcaption></figure>'
    )


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
