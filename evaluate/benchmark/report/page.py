"""The frame of the reports: one HTML file with its own style, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --back: #fbfaf7; --card: #fff; --ink: #22262b; --faint: #68707a; --rule: #e4e1da;
  --good: #237a3b; --bad: #b3261e; --note: #8a5a00;
  --s0: #2f6bb0; --s1: #d0661d; --s2: #2f8f5b; --s3: #a23a72;
  --s4: #7a5bb5; --s5: #a8860f; --s6: #20868f; --s7: #8a5040; }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --card: #1d2126; --ink: #e6e8ea; --faint: #9aa3ad;
  --rule: #31363d; --good: #6fcf8a; --bad: #ff8a80; --note: #e0b55c;
  --s0: #6ea8ea; --s1: #f19a5b; --s2: #66c490; --s3: #e083b4;
  --s4: #b39ae8; --s5: #dcbf56; --s6: #5fc2ca; --s7: #cf9a88; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 0 0 10px; }
h3 { font-size: 1rem; margin: 22px 0 8px; }
.subtitle { color: var(--faint); margin: 0 0 28px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 22px 24px; margin: 18px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin: 18px 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 16px 18px; }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span, .card small { display: block; }
.card small { color: var(--faint); }
.chart, .wide { overflow-x: auto; }
.chart svg { display: block; width: 100%; min-width: 560px; max-width: 860px; height: auto;
  margin: 0 auto; }
svg text { font-size: 13px; fill: var(--ink); font-variant-numeric: tabular-nums; }
svg text.faint { fill: var(--faint); }
svg .rule { stroke: var(--rule); }
svg .axis { stroke: var(--faint); }
svg .level { stroke: var(--faint); stroke-dasharray: 5 5; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 6px 0 4px; font-size: .9rem; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { color: var(--faint); font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; }
.facts td, td[colspan] { white-space: normal; }
.skipped td:last-child, .failed td:last-child { white-space: normal; min-width: 220px; }
.facts th { color: var(--faint); font-weight: 600; white-space: nowrap; padding-right: 24px; width: 1%; }
tr:last-child > * { border-bottom: 0; }
.marked td { border-bottom: 0; padding-bottom: 0; }
.marks td { color: var(--note); font-size: .78rem; padding-top: 0; white-space: normal; }
.skipped td { color: var(--faint); }
.failed, .failed td { color: var(--bad); }
.passed { color: var(--good); }
dl { margin: 0; display: grid; grid-template-columns: minmax(120px, 190px) 1fr; gap: 8px 20px; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--faint); }
img { max-width: 100%; height: auto; border-radius: 8px; display: block; }
.picture { background: #fff; border-radius: 8px; padding: 8px; }
code { font-size: .9em; }
@media (max-width: 620px) {
  main { padding: 22px 12px 48px; } section { padding: 16px 14px; } h1 { font-size: 1.5rem; }
  dl { grid-template-columns: 1fr; gap: 2px; } dd { margin-bottom: 10px; }
  .cards { grid-template-columns: 1fr 1fr; gap: 10px; }
  .card { padding: 12px; } .card b { font-size: 1.35rem; }
}
@media print { section { break-inside: avoid; } }
"""


def page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """A whole document.

    Args:
        title: its heading.
        subtitle: a line below.
        parts: HTML, one after the other.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="subtitle">{escape(subtitle)}</p>\n'
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )
