"""What does it cost to put the average into the model and to take it out again?

    python -m benchmarks.swap              # needs: pip install -r benchmarks/requirements.txt

Libraries that evaluate a second model do not swap and are not here. Medians over rounds, in a new order in
each; extra bytes are the most held during the swap, beyond model and average.
"""

from __future__ import annotations

from benchmarks.report import arguments, check, number, peer, polyak, run, table, write


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=31)
    makers = {"polyak": polyak(), "torch_ema": peer("torch_ema"), "diffusers": peer("diffusers")}
    models = {"ResNet-50": "resnet50", "ViT-B": "vit_b"}
    found = {head: check(run(model, makers, options)) for head, model in models.items()}
    heads = [f"{head}: {what}" for head in found for what in ("in, ms", "out, ms", "extra, MB")]
    rows: dict[str, list[str]] = {}
    for name in makers:
        rows[name] = []
        for measured in found.values():
            one = measured.figures.get(name)
            ways = (None, None, None) if one is None else (one.enter, one.leave, one.swap_memory)
            rows[name] += [number(ways[0], 1e3), number(ways[1], 1e3), number(ways[2], 1e-6, 1)]
    write("swap", "Swapping the average in and out;", table(heads, rows), found, options)


if __name__ == "__main__":
    main()
