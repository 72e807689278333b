"""What does one update cost, beside the libraries people use and beside the memory itself?

    python -m benchmarks.update            # needs: pip install -r benchmarks/requirements.txt

Each round runs every contender once, in a new order; a figure is the median over rounds of
(time of the contender) / (time of one ``lerp_`` over flat float32 buffers of as many elements in the
same round), so a noisy neighbour hits both. After timing, all averages must be right.
"""

from __future__ import annotations

from benchmarks.peers import PEERS
from benchmarks.report import NAMES, arguments, check, number, peer, polyak, run, table, write

TRACKS = 3


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=31)
    engines = ("triton", "foreach") if options.device.startswith("cuda") else ("native", "blocked", "foreach")
    makers = {f"polyak, {engine}": polyak(engine) for engine in engines}
    makers |= {f"polyak, {engine}, unchecked": polyak(engine, "ignore") for engine in engines}
    makers |= {name: peer(name) for name in PEERS}
    found = {head: check(run(model, makers, options)) for head, model in NAMES.items()}
    found[f"ResNet-50, {TRACKS} tracks"] = check(run("resnet50", makers, options, tracks=TRACKS))
    rows = {
        name: [number(one.figures[name].ratio if name in one.figures else None) for one in found.values()]
        for name in makers
    }
    rows["*the limit itself, ms*"] = [number(one.limit, 1e3) for one in found.values()]
    rows["*the limit itself, GB/s*"] = [number(one.bandwidth, 1e-9, 1) for one in found.values()]
    title = "Time of one update over one `lerp_` on flat float32 buffers;"
    write("update", title, table(list(found), rows), found, options)


if __name__ == "__main__":
    main()
