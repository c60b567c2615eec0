"""A comparison as one HTML file that needs nothing else: style and pictures are in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from simulations.comparison.groups import Comparison
from simulations.comparison.plots import NUM_COLOURS, draw_all
from simulations.comparison.tables import (
    Origin,
    differences_table,
    facts,
    figures_table,
    headline,
    notes_of,
    runs_table,
    shared_table,
)
from simulations.display.text_table import TextTable, glue_unit

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --quiet: #5b6670; --paper: #ffffff;
  --panel: #f5f7f9; --grid: #dde2e7; --rule: #c6cdd4;
  --series-0: #1f6fb2; --series-1: #d9620c; --series-2: #2a8c4a; --series-3: #b3329b;
  --series-4: #8a6100; --series-5: #c2263f; --series-6: #0f8a94; --series-7: #6a55c2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --quiet: #9aa6b1; --paper: #14181c; --panel: #1c2228;
    --grid: #2e363e; --rule: #3d4751;
    --series-0: #5aa9e6; --series-1: #f58b3c; --series-2: #5cc07d; --series-3: #e07bcb;
    --series-4: #d1a83a; --series-5: #f0677c; --series-6: #45c2cc; --series-7: #a493f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 75rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .6rem; }
p.headline { font-size: 1.1rem; margin: 0 0 1.25rem; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .55rem; text-align: right; white-space: nowrap; }
th { background: var(--panel); font-weight: 600; vertical-align: bottom; white-space: normal; }
th.text, td.text { text-align: left; }
th.text:first-child, td.text:first-child { position: sticky; left: 0; background: var(--paper); }
th.text:first-child { background: var(--panel); }
tbody tr { border-top: 1px solid var(--grid); }
.pictures { display: grid; gap: 1.5rem; grid-template-columns:
  repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
ul.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0;
  margin: 0 0 1rem; font-size: .9rem; }
ul.legend svg { width: 1.9rem; height: .7rem; margin-right: .4rem; vertical-align: baseline; }
ul.notes { color: var(--quiet); font-size: .875rem; padding-left: 1.1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--panel);
  border: 1px solid var(--rule); border-radius: 6px; padding: .7rem; font-size: .85rem; }
summary { cursor: pointer; font-weight: 600; margin: 1.5rem 0 .6rem; }
@media print { details > * { display: block; } }
"""
DASHES = ("", "7 4", "2 4", "7 3 2 3")
"""As `plots.LINES`."""


def to_html(comparison: Comparison, origin: Origin) -> str:
    """The page.

    Raises:
        UserError: matplotlib is not installed.
    """
    body = [
        f"<h1>{escape(origin.title)}</h1>",
        f'<p class="headline">{escape(headline(comparison))}</p>',
        _table(figures_table(comparison, origin)),
        _notes(notes_of(comparison, origin)),
        "<h2>Pictures</h2>",
        _legend([group.label for group in comparison.groups]),
        _pictures(draw_all(comparison)),
    ]
    differences = differences_table(comparison)
    if differences is not None:
        body += [f"<h2>{differences.title}</h2>", _table(differences)]
    body += [
        _details(runs_table(comparison, origin)),
        _details(shared_table(comparison)),
        "<h2>How it was made</h2>",
        f"<pre>{escape(origin.command)}</pre>",
        _notes(facts(comparison, origin)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(origin.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _table(table: TextTable) -> str:
    if not table.rows:
        return ""
    head = _cells("th", [glue_unit(name) for name in table.header], table.num_text_columns)
    rows = "\n".join(f"<tr>{_cells('td', row, table.num_text_columns)}</tr>" for row in table.rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cells(tag: str, texts: Sequence[str], num_text_columns: int) -> str:
    classes = (' class="text"' if i < num_text_columns else "" for i in range(len(texts)))
    return "".join(
        f"<{tag}{name}>{escape(text)}</{tag}>" for name, text in zip(classes, texts, strict=True)
    )


def _details(table: TextTable) -> str:
    content = _table(table)
    if not content:
        return ""
    return f"<details><summary>{escape(table.title)}</summary>\n{content}\n</details>"


def _notes(lines: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="notes">\n{items}\n</ul>'


def _legend(labels: Sequence[str]) -> str:
    items = []
    for index, label in enumerate(labels):
        dashes = DASHES[index // NUM_COLOURS % len(DASHES)]
        line = (
            f'<svg viewBox="0 0 30 10" aria-hidden="true"><path d="M0 5H30" fill="none" '
            f'stroke="var(--series-{index % NUM_COLOURS})" stroke-width="3" '
            f'stroke-dasharray="{dashes}"/></svg>'
        )
        items.append(f"<li>{line}{escape(label)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _pictures(pictures: Sequence[tuple[str, str]]) -> str:
    figures = "\n".join(
        f"<figure><figcaption>{escape(title)}</figcaption>\n{svg}</figure>"
        for title, svg in pictures
    )
    return f'<div class="pictures">\n{figures}\n</div>'
