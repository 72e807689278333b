"""Parts of the page and tables, as HTML: text from files is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from polyak.report.plot import Plot

_LONG = 60  # characters of a cell that is broken into lines


@dataclass(frozen=True)
class Section:
    """One part of the page. ``before`` and ``after`` the plots are HTML.

    folded: how many plots are shown; the rest opens at a click. None for all.
    """

    name: str
    title: str
    before: str
    plots: tuple[Plot, ...] = ()
    after: str = ""
    folded: int | None = None
    folded_title: str = ""


def note(text: str) -> str:
    """A paragraph in small print."""
    return f"<p class=note>{escape(text)}</p>"


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    label: str,
    numbers: int = 0,
    card: bool = False,
) -> str:
    """An HTML table of text; the last ``numbers`` columns are set as numbers, and a card is large."""
    right = len(heads) - numbers
    top = "".join(
        f'<th scope="col"{" class=n" if i >= right else ""}>{escape(head)}</th>' if head else "<td></td>"
        for i, head in enumerate(heads)
    )
    body = "".join(f"<tr>{''.join(_cells(row, right, not heads[0]))}</tr>" for row in rows)
    inner = (
        f"<table{' class=card' if card else ''}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )
    return f'<div class=scroll tabindex=0 role=region aria-label="{escape(label)}">{inner}</div>'


def _cells(row: Sequence[str], right: int, named: bool) -> Iterator[str]:
    for i, cell in enumerate(row):
        if i == 0 and named:
            yield f'<th scope="row">{escape(cell)}</th>'
        else:
            kind = " class=n" if i >= right else " class=long" if len(cell) > _LONG else ""
            yield f"<td{kind}>{escape(cell)}</td>"
