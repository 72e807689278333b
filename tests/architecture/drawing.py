"""The picture of docs/layout.md, drawn from the imports: ``python -m tests.architecture.drawing``.

An arrow is an import. One that follows from others (a room imports what it imports through them) is left
out, and so are ``errors``, which every room may import, and ``__main__``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from tests.architecture.test_arrows import ROOMS, SRC, imports, room

PICTURE = Path(__file__).parents[2] / "docs" / "layout.svg"
LEFT_OUT = {"errors", "__main__"}
WIDTH, HEIGHT, ACROSS, DOWN = 92, 30, 118, 74  # of a box, and from one to the next

Graph = dict[str, set[str]]
Point = tuple[float, float]


def imported() -> Graph:
    """For each room, the rooms that its files import."""
    graph: Graph = {name: set() for name in ROOMS if name not in LEFT_OUT}
    for path in sorted(SRC.rglob("*.py")):
        here = room(path.relative_to(SRC))
        for _, target in imports(path.read_text()):
            top, _, inner = target.partition(".")
            there = inner.partition(".")[0] or top
            if top == "polyak" and there != here and {here, there} <= graph.keys():
                graph[here].add(there)
    return graph


def below(graph: Graph, name: str) -> set[str]:
    """All rooms that one reaches."""
    return graph[name].union(*(below(graph, other) for other in graph[name]))


def reduced(graph: Graph) -> Graph:
    """The graph without the arrows that follow from others."""
    return {
        name: {there for there in to if not any(there in below(graph, via) for via in to - {there})}
        for name, to in graph.items()
    }


def layers_of(graph: Graph) -> dict[str, int]:
    """How far above the ground each room is: just below the lowest room that imports it."""
    height: dict[str, int] = {}
    for name in sorted(graph, key=lambda name: len(below(graph, name))):
        height[name] = max((height[there] + 1 for there in graph[name]), default=0)
    for name in sorted(graph, key=lambda name: -height[name]):
        height[name] = min((height[up] - 1 for up in graph if name in graph[up]), default=height[name])
    return height


def rows_of(graph: Graph, height: dict[str, int]) -> tuple[list[list[str]], list[list[str]]]:
    """Rooms and bends by row from the ground up, and each arrow as the points it goes through."""
    rows: list[list[str]] = [[] for _ in range(max(height.values()) + 1)]
    for name in graph:
        rows[height[name]].append(name)
    arrows: list[list[str]] = []
    for name in graph:
        for there in sorted(graph[name]):
            bends = [f"{name}>{there}>{level}" for level in range(height[name] - 1, height[there], -1)]
            arrows.append([name, *bends, there])
            for bend in bends:
                rows[int(bend.rpartition(">")[2])].append(bend)
    return rows, arrows


def crossings(rows: list[list[str]], arrows: list[list[str]]) -> int:
    """How many pairs of arrows cross between two neighbouring rows."""
    at = {name: i for row in rows for i, name in enumerate(row)}
    level = {name: i for i, row in enumerate(rows) for name in row}
    pieces = [(level[b], at[a], at[b]) for arrow in arrows for a, b in pairwise(arrow)]
    return sum(
        x[0] == y[0] and (x[1] - y[1]) * (x[2] - y[2]) < 0 for i, x in enumerate(pieces) for y in pieces[:i]
    )


def untangled(rows: list[list[str]], arrows: list[list[str]]) -> list[list[str]]:
    """The rows in the order of the least crossings that sorting by the middle of the neighbours finds."""
    near: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for arrow in arrows:
        for a, b in pairwise(arrow):
            near[a].append(b)
            near[b].append(a)
    best = rows = [list(row) for row in rows]
    for turn in range(24):
        for i in range(len(rows)) if turn % 2 else range(len(rows) - 1, -1, -1):
            side = i - 1 if turn % 2 else i + 1
            if 0 <= side < len(rows):
                at = {name: k - len(rows[side]) / 2 for k, name in enumerate(rows[side])}
                middle = {
                    name: sum(ks) / len(ks) if (ks := [at[o] for o in near[name] if o in at]) else 0.0
                    for name in rows[i]
                }
                rows[i] = sorted(rows[i], key=lambda name: middle[name])
        if crossings(rows, arrows) < crossings(best, arrows):
            best = [list(row) for row in rows]
    return best


def svg(graph: Graph) -> str:
    """The picture: rooms as boxes, those above import those below."""
    graph = reduced(graph)
    rows, arrows = rows_of(graph, layers_of(graph))
    rows = untangled(rows, arrows)
    wide, high = max(map(len, rows)) * ACROSS + 20, len(rows) * DOWN
    at: dict[str, Point] = {
        name: (wide / 2 + (k - (len(row) - 1) / 2) * ACROSS, high - (i + 0.5) * DOWN)
        for i, row in enumerate(rows)
        for k, name in enumerate(row)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" '
        'font-family="ui-monospace, monospace" font-size="14">',
        "<title>The rooms of polyak; an arrow is an import</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 8 4 0 8Z" fill="#667"/></marker></defs>',
        f'<rect width="{wide}" height="{high}" fill="#fff"/>',
    ]
    for arrow in arrows:
        (x, y), *rest = (at[name] for name in arrow)
        y += HEIGHT / 2
        d = f"M{x:g} {y:g}"
        for k, (to_x, to_y) in enumerate(rest):
            end = to_y - HEIGHT / 2 if k == len(rest) - 1 else to_y
            d += f" C{x:g} {(y + end) / 2:g} {to_x:g} {(y + end) / 2:g} {to_x:g} {end:g}"
            x, y = to_x, end
        lines.append(f'<path d="{d}" fill="none" stroke="#99a" marker-end="url(#head)"/>')
    for name in graph:
        x, y = at[name]
        fill = "#eef" if name.startswith("_") else "#dfd"
        lines += [
            f'<rect x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="4" '
            f'fill="{fill}" stroke="#667"/>',
            f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle">{name}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(svg(imported()))
