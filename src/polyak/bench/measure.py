"""Times of updates and swaps compared with the memory's limit, and a check of the averages.

Each round runs the limit and every contender once, in a new order; a ratio is computed within a round and its
median over rounds, so that other load affects both sides. The limit is one ``lerp_`` over flat float32
buffers of as many elements: ``cost.LIMIT`` bytes per parameter.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeAlias

import torch
from torch import Tensor, nn

from polyak.bench.contender import Contender
from polyak.bench.cost import LIMIT, share
from polyak.bench.shapes import one_line
from polyak.errors import ConfigError

SAMPLE = 1e-3  # seconds that one timing should last at least
PATIENCE = 30.0  # seconds that training steps should take together at most
WARM = 2  # first rounds: they allocate, plan and compile
NARROW = ("bfloat16", "float16")
_FLAT = "the limit"  # among the contenders
Tick: TypeAlias = Callable[[int, int], object]


@dataclass(frozen=True)
class Figures:
    """One contender: medians over the rounds.

    update: seconds.  ratio: to the limit.  enter, leave: seconds of a swap in and out.
    memory, swap_memory: peak bytes of an update, a swap, beyond those before; None if unknown.
    after_step: seconds of an update after a training step, which fills the caches with other data; None if
        the model cannot be trained here.
    share: of that step.
    wrong: the error of the averages, if any.
    engine: reported by the library.
    """

    update: float
    ratio: float
    enter: float | None
    leave: float | None
    memory: int | None
    swap_memory: int | None
    after_step: float | None
    share: float | None
    wrong: str
    engine: str


@dataclass(frozen=True)
class Measured:
    """All contenders and the limit they are compared with: seconds, bytes per second.

    limit_share: of a training step that lasts ``step`` seconds.
    """

    parameters: int
    limit: float
    limit_share: float | None
    step: float | None
    figures: dict[str, Figures]

    @property
    def bandwidth(self) -> float:
        return LIMIT * self.parameters / self.limit


def measure(
    model: nn.Module,
    contenders: Mapping[str, Contender],
    betas: Sequence[float],
    store: str,
    rounds: int,
    step: Callable[[], object] | None = None,
    tick: Tick = lambda done, of: None,
) -> Measured:
    """Time every contender in every round, in a new order each.

    Args:
        model: whose parameters the contenders average. They are doubled during the measurement and restored.
        contenders: as they were made, updated with no other parameters than the present ones.
        betas: the decay of each track.
        store: dtype of the averages.
        rounds: number of rounds; figures are medians.
        step: one training step of the model.
        tick: called with the number of rounds done and the total.

    Returns:
        The figures.

    Raises:
        ConfigError: ``step`` fails.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    device, size = trained[0].device, sum(p.numel() for p in trained)
    flat, theta = torch.zeros(size, device=device), torch.ones(size, device=device)
    stops = Stops(device)
    _scale(trained, 2.0)  # exact, so that the correct averages are known: see _wrong
    limits: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    updates: dict[str, list[float]] = {name: [] for name in contenders}
    swaps: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    order = list(contenders)

    def limiting() -> Tensor:
        return flat.lerp_(theta, 1e-3)

    burst = _burst(stops, limiting)
    for done in range(WARM + rounds):
        random.Random(done).shuffle(order)
        limit = stops.timed(limiting, burst)
        seconds = {name: stops.timed(contenders[name].update, burst) for name in order}
        changed = {name: stops.both_ways(swap) for name in order if (swap := contenders[name].swap)}
        if done >= WARM:
            limits.append(limit)
            for name in order:
                ratios[name].append(seconds[name] / limit)
                updates[name].append(seconds[name])
            for name, both in changed.items():
                swaps[name].append(both)
        tick(done + 1, WARM + rounds)
    memory = {name: peak(one.update, device) for name, one in contenders.items()}
    swapping = {name: _peak_of_swap(one, device) for name, one in contenders.items()}
    wrong = {
        name: _wrong(model, one.averages(), betas, burst * (WARM + rounds) + 1, store)
        for name, one in contenders.items()
    }
    _scale(trained, 0.5)
    runs = {_FLAT: limiting} | {name: one.update for name, one in contenders.items()}
    spent, after = (None, {}) if step is None else _in_training(step, runs, stops, rounds)
    shares = {name: share(seconds, spent) for name, seconds in after.items()} if spent else {}
    figures: dict[str, Figures] = {}
    for name, one in contenders.items():
        update, both = median(updates[name]), swaps[name]
        figures[name] = Figures(
            update,
            median(ratios[name]),
            median(enter for enter, _ in both) if both else None,
            median(leave for _, leave in both) if both else None,
            memory[name],
            swapping[name],
            after.get(name),
            shares.get(name),
            wrong[name],
            one.engine,
        )
    return Measured(size, median(limits), shares.get(_FLAT), spent, figures)


def _burst(stops: Stops, run: Callable[[], object]) -> int:
    """Number of calls that last about a millisecond: a single short call would measure cache misses."""
    run()
    return max(1, min(50, round(SAMPLE / stops.timed(run))))


class Stops:
    """A stopwatch that waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def timed(self, run: Callable[[], object], times: int = 1) -> float:
        """Seconds of one call, the mean of several in a row."""
        begun = self._now()
        for _ in range(times):
            run()
        return (self._now() - begun) / times

    def both_ways(self, swap: Callable[[], AbstractContextManager[object]]) -> tuple[float, float]:
        """Seconds to enter a block and to leave it."""
        begun = self._now()
        with swap():
            entered = self._now()
        return entered - begun, self._now() - entered

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def peak(run: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes of a call, beyond those allocated before it.

    Args:
        run: the call.
        device: whose memory is measured; on the CPU it is that of the process, which only Linux reports.

    Returns:
        Bytes; None where the system does not report them.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    if sys.platform != "linux":
        run()
        return None
    try:
        # Otherwise memory freed by an earlier call would be reused unnoticed.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError, KeyError):
        run()
        return None


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    table = dict(line.split(":", 1) for line in lines)
    return 1024 * int(table[key].split()[0])


def _peak_of_swap(one: Contender, device: torch.device) -> int | None:
    if one.swap is None:
        return None
    swap = one.swap

    def run() -> None:
        with swap():
            pass

    return peak(run, device)


def _in_training(
    step: Callable[[], object], runs: Mapping[str, Callable[[], object]], stops: Stops, rounds: int
) -> tuple[float, dict[str, float]]:
    """Seconds of a training step, and of each run right after one.

    Called repeatedly by itself, an update of a small model finds all data in the caches and takes a fifth of
    its time in training.
    """

    def train() -> None:
        try:
            step()
        except Exception as error:  # the user's own function may raise anything
            raise ConfigError(f"the model's training step raised {one_line(error)}") from error

    train()
    patience = round(PATIENCE / (len(runs) * stops.timed(train)))
    steps: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for done in range(max(1, min(rounds, patience))):
        for name in random.Random(done).sample(list(runs), len(runs)):
            steps.append(stops.timed(train))
            seconds[name].append(stops.timed(runs[name]))
    return median(steps), {name: median(each) for name, each in seconds.items()}


def _scale(parameters: Sequence[Tensor], factor: float) -> None:
    with torch.no_grad():
        for p in parameters:
            p.mul_(factor)


def _wrong(
    model: nn.Module, tracks: Sequence[Mapping[str, Tensor]], betas: Sequence[float], n: int, store: str
) -> str:
    """The difference of averages from ``θ·(1 - βⁿ/2)`` after n updates with θ from θ/2.

    Averages stored in 16 bits are noisy or stagnate: of these the distance moved towards θ is checked.
    """
    close = 1e-3 if store == "split" else 1e-4
    for averages, beta in zip(tracks, betas, strict=True):
        gone = 1 - beta**n
        way, length, count = 0.0, 0.0, 0
        for name, p in model.named_parameters():
            if not p.requires_grad or name not in averages:
                continue
            wide = torch.promote_types(p.dtype, torch.float64)
            half = p.detach().to(wide) / 2
            average = averages[name].detach().to(wide)
            if store not in NARROW and not torch.allclose(average, half * (1 + gone), rtol=close, atol=1e-5):
                return f"{name} averaged to something else"
            count += p.numel()
            if store in NARROW and not p.is_complex():
                way += float(((average - half) * half).sum())
                length += float(half.square().sum())
        if count == 0:
            return "averaged none of the parameters"
        if length and abs(way / length - gone) > 0.2 * gone + 0.2 * count**-0.5:
            return f"moved {way / length:.2%} of the distance instead of {gone:.2%}"
    return ""
