"""index.html: the whole report in one file that needs no other, by day and by night."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from odc_lightning.report.cells import MARKS, Cell, Filled
from odc_lightning.report.runs import LeftOut
from odc_lightning.report.text import counts, in_words, name_of, ours_in_words, published_in_words, runs_behind

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1c1e; --soft: #5d5d66; --line: #d9d9de; --head: #f5f5f7;
  --full: #0b5fa5; --small: #b04c06; }
@media (prefers-color-scheme: dark) { :root { --back: #17171a; --text: #ececf0; --soft: #a9a9b4; --line: #3a3a42;
  --head: #212126; --full: #6db3f2; --small: #f0a35e; } }
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 1180px; padding: 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } a { color: var(--full); }
p, li { max-width: 75ch; } .soft { color: var(--soft); }
nav ul { columns: 2; padding-left: 1.2rem; } img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { border: 1px solid var(--line); padding: .3rem .55rem; text-align: left; vertical-align: top; }
thead th, tbody th { background: var(--head); font-weight: 600; } tbody th { white-space: nowrap; }
td span { display: block; white-space: nowrap; }
.published, .missing { color: var(--soft); } .missing { font-style: italic; }
.full { color: var(--full); font-weight: 600; } .small { color: var(--small); font-weight: 600; }
code { overflow-wrap: anywhere; } details { margin: .6rem 0; } summary { cursor: pointer; }
"""


def as_page(
    filled: Sequence[Filled],
    left_out: Sequence[LeftOut],
    pictures: Mapping[str, tuple[Path, Path]],
    root: Path,
    title: str,
) -> str:
    """The page.

    Args:
        filled: dossiers in their order.
        left_out: folders that no figure uses.
        pictures: by dossier, SVG files for day and night; they are put into the page.
        root: of the runs; folders are named below it.
        title: of the page.
    """
    links = "".join(f'<li><a href="#{escape(one.dossier.name)}">{escape(one.dossier.title)}</a></li>' for one in filled)
    sections = "".join(_section(one, pictures[one.dossier.name]) for one in filled)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1>{_legend()}<nav><ul>{links}"
        f'<li><a href="#left-out">Left out ({len(left_out)})</a></li></ul></nav>{sections}'
        f"{_left_out(left_out, root)}</body></html>\n"
    )


def _legend() -> str:
    return (
        '<p>Published numbers beside those of the runs: <span class="published">paper, release</span>; '
        '<span class="full">ours, run at full size</span>; <span class="small">ours, run in small</span>; '
        '<span class="missing">missing</span>: not run. Ours are mean ± sample standard deviation over the seeds. '
        "Numbers in small compare among themselves, not with the published ones.</p>"
    )


def _section(filled: Filled, pictures: tuple[Path, Path]) -> str:
    dossier = filled.dossier
    head = "".join(f"<th>{escape(column)}</th>" for column in dossier.columns)
    body = "".join(_row(filled, row) for row in dossier.rows)
    words = _list("The paper's figure, in words", in_words(dossier), open_=True)
    question = escape(dossier.question.strip())
    return (
        f'<section><h2 id="{escape(dossier.name)}">{escape(dossier.title)}</h2><p>{question}</p>'
        f'<p class="soft">{escape(counts(filled))}</p>{_picture(*pictures, dossier.title)}'
        f'<div class="wide"><table><thead><tr><th>{escape(dossier.unit)}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f"{words}{_list('Behind our numbers', runs_behind(filled))}</section>"
    )


def _picture(day: Path, night: Path, title: str) -> str:
    inline = [f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}" for file in (day, night)]
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{inline[1]}">'
    return f'<picture>{dark}<img src="{inline[0]}" alt="{escape(title)}"></picture>'


def _row(filled: Filled, row: str) -> str:
    cells = "".join(_cell(filled.cell(row, column), filled.dossier.digits) for column in filled.dossier.columns)
    return f"<tr><th>{escape(row)}</th>{cells}</tr>"


def _cell(cell: Cell, digits: int) -> str:
    spans = [
        f'<span class="published" title="{escape(one.where)}">{published_in_words(one)} {one.source}</span>'
        for one in cell.published
        if one.value is not None
    ]
    spans += [
        f'<span class="{figure.size}" title="{escape(f"{MARKS[figure.size]}: {figure.metric}; {figure.about}")}">'
        f"{ours_in_words(figure, digits)}</span>"
        for figure in cell.figures
    ]
    if not cell.figures:
        spans.append(f'<span class="missing">{cell.marks[0]}</span>')
    return f"<td>{''.join(spans)}</td>"


def _list(title: str, lines: Sequence[str], *, open_: bool = False) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<details{' open' * open_}><summary>{escape(title)}</summary><ul>{items}</ul></details>"


def _left_out(left_out: Sequence[LeftOut], root: Path) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name_of(one.folder, root))}</code></td><td>{escape(one.reason)}</td></tr>"
        for one in left_out
    )
    table = f"<table><thead><tr><th>folder</th><th>why</th></tr></thead><tbody>{rows}</tbody></table>"
    return f'<section><h2 id="left-out">Left out</h2>{table if rows else "<p>Nothing.</p>"}</section>'
