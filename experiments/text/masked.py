"""BERT's task on characters of Shakespeare: how many steps to a loss, with and without an average."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.harness import Data, Experiment, Row
from experiments.intervals import jump, moment, second_half, wobble
from experiments.text.averages import evaluated, tracked
from experiments.text.data import plays

MASK = 0
UNKNOWN = 1


@dataclass(frozen=True)
class Size:
    """Characters seen at once, at which rates, for how long; tracks by their half-life in steps."""

    steps: int
    every: int  # steps between evaluations
    rates: tuple[float, ...] = (0.5, 1.0, 2.0)  # times ``rate``
    rate: float = 2e-3
    half_lives: tuple[float, ...] = (30, 10, 100)
    characters: int = 24
    batch: int = 32
    windows: int = 128  # to test on
    width: int = 64
    layers: int = 2


class Masked(nn.Module):
    """BERT's encoder, normalised after each layer as in its paper, small."""

    def __init__(self, vocabulary: int, size: Size) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, size.width)
        self.places = nn.Parameter(torch.empty(size.characters, size.width))
        self.norm = nn.LayerNorm(size.width)
        layer = nn.TransformerEncoderLayer(
            size.width, 4, 4 * size.width, 0.0, "gelu", batch_first=True, norm_first=False
        )
        self.encoder = nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)
        self.out = nn.Linear(size.width, vocabulary)
        for weights in self.parameters():  # as BERT begins
            if weights.ndim > 1:
                nn.init.normal_(weights, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:  # [window, place] → [window, place, character]
        return self.out(self.encoder(self.norm(self.characters(characters) + self.places)))


@cache
def numbered() -> tuple[Tensor, Tensor, int]:
    """The characters of both parts as numbers, and how many numbers there are."""
    train, test = plays()
    known = {character: i for i, character in enumerate(sorted(set(train)), start=2)}
    parts = [torch.tensor([known.get(character, UNKNOWN) for character in part]) for part in (train, test)]
    return parts[0], parts[1], len(known) + 2


def windows(text: Tensor, count: int, length: int, chance: torch.Generator) -> Tensor:
    """So many stretches of the text."""
    begins = torch.randint(len(text) - length, (count, 1), generator=chance)
    return text[begins + torch.arange(length)]


def hidden(characters: Tensor, vocabulary: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """BERT's input and where it is judged: 15 % of places, of them 80 % masked, 10 % replaced, 10 % kept."""
    share = torch.rand(characters.shape, generator=chance)
    other = torch.randint(2, vocabulary, characters.shape, generator=chance)
    shown = torch.where(share < 0.12, MASK, torch.where(share < 0.135, other, characters))
    return shown, share < 0.15


def curves(seed: int, times: float, size: Size) -> dict[str, list[float]]:
    """Test losses of raw weights and averages every ``size.every`` steps, in one run at one rate."""
    train, test, vocabulary = numbered()
    fixed = torch.Generator().manual_seed(0)
    asked = windows(test, size.windows, size.characters, fixed)
    shown, judged = hidden(asked, vocabulary, fixed)

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            return cross_entropy(model(shown)[judged], asked[judged]).item()

    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    model = Masked(vocabulary, size)
    ema = tracked(model, size.half_lives)
    optimizer = torch.optim.AdamW(model.parameters(), lr=times * size.rate, fused=True)
    found: list[dict[str, float]] = []
    for step in range(1, size.steps + 1):
        batch = windows(train, size.batch, size.characters, chance)
        seen, wanted = hidden(batch, vocabulary, chance)
        optimizer.zero_grad()
        cross_entropy(model(seen)[wanted], batch[wanted]).backward()
        optimizer.step()
        ema.update()
        if step % size.every == 0:
            found.append(evaluated(ema, loss))
    return {kind: [one[kind] for one in found] for kind in found[0]}


def run(seed: int, size: Size) -> dict[str, Any]:
    """Every rate, and the best of them for the raw weights and for the first average, each its own."""
    found = {times: curves(seed, times, size) for times in size.rates}
    first = f"h{size.half_lives[0]:g}"
    best = {kind: min(found, key=lambda times: found[times][kind][-1]) for kind in ("raw", first)}
    raw, average = (found[best[kind]][kind] for kind in best)
    goal = max(raw[-1], average[-1])  # the lowest that both reach
    numbers: dict[str, Any] = {f"{kind} at {t}": c for t, one in found.items() for kind, c in one.items()}
    steps = range(size.every, size.steps + 1, size.every)
    for name, losses, times in (("raw", raw, best["raw"]), ("average", average, best[first])):
        after = second_half(losses)
        reached = moment([-loss for loss in losses], -goal, steps)
        numbers |= {
            f"{name}_share": 100 * reached / size.steps,
            f"{name}_last": losses[-1],
            f"{name}_mean3": fmean(losses[-3:]),
            f"{name}_rate": 1000 * size.rate * times,
            f"{name}_jump": jump(after),
            f"{name}_wobble": wobble(after),
        }
    for half_life in size.half_lives[1:]:
        numbers[f"h{half_life:g}_last"] = found[best["raw"]][f"h{half_life:g}"][-1]
    fast = found[size.rates[-1]]
    return numbers | {"fast_raw": fast["raw"][-1], "fast_average": fast[first][-1]}


RAW, AVERAGE = "raw weights, at their best rate", "h30, at its best rate"


def _row(metric: str, unit: str, name: str, headline: bool = False) -> Row:
    return Row(metric, unit, "lower", (f"raw_{name}", RAW), (f"average_{name}", AVERAGE), headline)


NATS = "nats a character"
ROWS = (
    _row("steps to the lowest test loss that both reach", "% of the run", "share", headline=True),
    _row("test loss at the end", NATS, "last"),
    _row("test loss, mean of the last three evaluations", NATS, "mean3"),
    _row("jump of the test loss, second half", NATS, "jump"),
    _row("wobble of the test loss, second half", NATS, "wobble"),
    Row(
        "best of the rates 1, 2 and 4", "thousandths", "higher", ("raw_rate", RAW), ("average_rate", AVERAGE)
    ),
    Row("test loss at the end", NATS, "lower", ("raw_last", RAW), ("h10_last", "h10, at the same rate")),
    Row("test loss at the end", NATS, "lower", ("raw_last", RAW), ("h100_last", "h100, at the same rate")),
    Row(
        "test loss at the end, at the highest rate",
        NATS,
        "lower",
        ("fast_raw", "raw weights"),
        ("fast_average", "h30"),
    ),
)
FULL = Size(steps=1200, every=60)
MASKED = Experiment(
    name="masked",
    claim="BERT's task: an average reaches a loss in fewer steps than the raw weights.",
    published="BERT: the same loss in 15 % fewer steps",
    gain=15.0,
    data=Data("works of Shakespeare (package shakespeare)", "MIT"),
    rows=ROWS,
    run=run,
    quick=Size(steps=250, every=50),
    full=FULL,
    curves={
        f"{kind} at {times}": f"test loss, twenty times in the run, rate {times} × 0.002"
        for times in FULL.rates
        for kind in ("raw", "h30", "h10", "h100")
    },
)
