"""HTML pages that need nothing but themselves: no script, no outside resource."""

from collections.abc import Iterable, Sequence
from html import escape

from sparsyfed.tools.drawing import Plot

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1c2330; --muted: #5d6878;
  --grid: #dfe3e9; --sparse: #0b7285; --dense: #b3541e; --third: #5f3dc4; --fourth: #d9a441; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161d; --card: #1b212b; --ink: #e6eaf0;
  --muted: #9aa6b6; --grid: #313a47; --sparse: #3bc9db; --dense: #ff922b; --third: #b197fc;
  --fourth: #ffe066; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .9rem; }
h3 { font-size: 1.02rem; margin: 0 0 .2rem; }
p { margin: 0 0 .6rem; } .muted, figcaption { color: var(--muted); font-size: .9rem; }
.numbers, .plots { display: grid; gap: 1rem; }
.numbers { grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); margin-top: 1.6rem; }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); }
.numbers > div, figure { background: var(--card); border-radius: .75rem; padding: 1rem 1.15rem;
  margin: 0; }
.numbers strong { display: block; font-size: 1.55rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; margin-top: .5rem; }
.table { overflow-x: auto; margin-bottom: .8rem; } table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; line-height: 1.25; color: var(--muted);
  font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
code { font-size: .88em; background: var(--card); padding: .1em .35em; border-radius: .3em; }
"""


def page(title: str, body: str) -> str:
    """A whole page; `body` is markup."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def figures(plots: Iterable[Plot]) -> str:
    """Plots side by side where the window is wide enough."""
    cards = "".join(
        f"<figure><h3>{escape(plot.title)}</h3><figcaption>{escape(plot.caption)}</figcaption>"
        f"{plot.svg}</figure>\n"
        for plot in plots
    )
    return f'<div class="plots">{cards}</div>'


def numbers(entries: Iterable[tuple[str, str, str]]) -> str:
    """Key numbers: value, what it is, what it stands against."""
    return f'<div class="numbers">{"".join(_number(*entry) for entry in entries)}</div>'


def _number(value: str, name: str, comparison: str) -> str:
    return (
        f"<div><strong>{escape(value)}</strong>{escape(name)}"
        f'<br><span class="muted">{escape(comparison)}</span></div>'
    )


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="table"><table>\n{line("th", heading)}{body}</table></div>\n'
