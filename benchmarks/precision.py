"""What does an update cost in other precisions, beside the bytes that it must move?

    python -m benchmarks.precision         # needs: pip install -r benchmarks/requirements.txt

As ``benchmarks.update``, on ViT-B. The first row is the formula, in units of the limit's 12 bytes. A star
marks averages that did not go where they should.
"""

from __future__ import annotations

from benchmarks.report import arguments, number, peer, polyak, run, table, write
from polyak.bench.cost import LIMIT, STORED, moved

LIVE = {"float32": 4, "bfloat16": 2}
CASES = (
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "split"),
    ("float32", "compensated"),
)


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=31)
    makers = {"polyak": polyak(), **{f"polyak, {e}": polyak(e) for e in ("blocked", "foreach")}}
    makers |= {name: peer(name) for name in ("timm", "ultralytics")}
    found = {case: run("vit_b", makers, options, params=case[0], store=case[1]) for case in CASES}
    rows = {"*bytes / 12*": [number(moved(LIVE[params], STORED[store]) / LIMIT) for params, store in CASES]}
    for name in makers:
        figures = [one.figures.get(name) for one in found.values()]
        rows[name] = [
            "—" if one is None else number(one.ratio) + (r" \*" if one.wrong else "") for one in figures
        ]
    rows["*the limit itself, ms*"] = [number(one.limit, 1e3) for one in found.values()]
    heads = [f"{params} → {store}" for params, store in CASES]
    wrong = [
        f"\\* {name}, {head}: {one.figures[name].wrong}"
        for head, one in zip(heads, found.values(), strict=True)
        for name in one.figures
        if one.figures[name].wrong
    ]
    title = "Time of one update of ViT-B over one `lerp_` on flat float32 buffers;"
    raw = dict(zip(heads, found.values(), strict=True))
    write("precision", title, [*table(heads, rows), "", *wrong], raw, options)


if __name__ == "__main__":
    main()
