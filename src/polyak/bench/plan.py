"""What averages cost on a cluster, by formula: memory, seconds per step, bytes between GPUs.

P parameters on N GPUs; a model or an average in M pieces has P/M parameters on each GPU. ℓ bytes of one
parameter of the model, s of one in an average, K averages. No update sends anything to another GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from polyak.bench.cost import STORED, moved, seconds
from polyak.errors import ConfigError

LIVE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}  # bytes of one parameter of the model
TEXTS = ("live", "dtype")
WHOLE = ("gpus", "group", "tracks", "every")


@dataclass(frozen=True)
class Cluster:
    """A model on a cluster, and how its averages are kept.

    Args:
        params: parameters of the whole model.
        gpus: GPUs that train it.
        group: GPUs that hold one copy of the model between them under hybrid sharding and tensor parallel.
        live: dtype of the model's parameters.
        dtype: storage of the averages.
        tracks: number of averages.
        every: training steps from one update to the next.
        bandwidth: bytes per second of a GPU's memory.
        link: bytes per second from a GPU to its host.
        host: bytes per second of the host's memory, for each GPU.

    Raises:
        ConfigError: a value is out of range.
    """

    params: float
    gpus: int
    group: int = 8
    live: str = "bfloat16"
    dtype: str = "float32"
    tracks: int = 1
    every: int = 1
    bandwidth: float = 3e12
    link: float = 50e9
    host: float = 50e9

    def __post_init__(self) -> None:
        for name, known in (("live", LIVE), ("dtype", STORED)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)}: must be one of {', '.join(known)}.")
        for name in ("params", "gpus", "group", "tracks", "every", "bandwidth", "link", "host"):
            if not 1 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1, and finite.")


@dataclass(frozen=True)
class Mode:
    """A way to lay out model and averages: into how many pieces each is cut over the GPUs.

    offload: the averages are on the host.  sends: entering and leaving ``average_parameters`` sends rows.
    """

    name: str
    model: int
    average: int
    offload: bool = False
    sends: bool = False


@dataclass(frozen=True)
class Row:
    """What one mode costs each GPU; bytes, and seconds per training step.

    each: bytes that one average's parameter takes, on one GPU, of the whole model's.
    model: θ.  held: averages on the GPU.  host: averages and the buffer for θ in the host's memory.
    update: seconds; on the host beside the training.
    block: bytes received to enter and leave ``average_parameters``, beyond those of the model's own forward.
    file: bytes that rank 0 receives to save one average in one file.
    """

    mode: str
    each: float
    model: float
    held: float
    host: float
    update: float
    block: float
    file: float


def modes(gpus: int, group: int) -> list[Mode]:
    """Every way in which polyak averages a model on this many GPUs.

    ``fully_shard`` beside tensor parallel cuts as often as ``fully_shard`` alone.

    Examples:
        >>> {mode.name: (mode.model, mode.average) for mode in modes(64, 8)}["DDP, shard="]
        (1, 64)
    """
    group = min(group, gpus)
    return [
        Mode("DDP", 1, 1),
        Mode("DDP, shard=", 1, gpus, sends=True),
        Mode("fully_shard", gpus, gpus),
        Mode("hybrid", group, group),
        Mode("tensor parallel", group, group),
        Mode("DDP, host", 1, 1, offload=True),
        Mode("fully_shard, host", gpus, gpus, offload=True),
    ]


def plan(cluster: Cluster) -> list[Row]:
    """What averages cost in each mode.

    Examples:
        >>> whole = {row.mode: row for row in plan(Cluster(params=1e12, gpus=1000))}
        >>> whole["fully_shard"].held / 1e9, round(1e3 * whole["fully_shard"].update, 2)
        (4.0, 3.33)
    """
    return [_row(cluster, mode) for mode in modes(cluster.gpus, cluster.group)]


def _row(c: Cluster, mode: Mode) -> Row:
    live, stored = LIVE[c.live], STORED[c.dtype]
    held = c.params * stored * c.tracks / mode.average
    theta = c.params * live
    update = _offloaded(c, mode.average) if mode.offload else _on_gpu(c, mode.average)
    return Row(
        mode=mode.name,
        each=stored * c.tracks / mode.average,
        model=theta / mode.model,
        held=0 if mode.offload else held,
        host=held + theta / mode.average if mode.offload else 0,
        update=update / c.every,
        block=2 * theta * (1 - 1 / c.gpus) if mode.sends else 0,
        file=c.params * stored * (1 - 1 / mode.average),
    )


def _on_gpu(c: Cluster, pieces: int) -> float:
    """``P·(ℓ + 2·s·K) / (M·B)``"""
    return seconds(c.params, moved(LIVE[c.live], STORED[c.dtype], c.tracks), c.bandwidth, pieces)


def _offloaded(c: Cluster, pieces: int) -> float:
    """``P·ℓ/(M·link) + P·(2ℓ + 2·s·K)/(M·host)``: the host's memory receives θ before it is read there."""
    live = LIVE[c.live]
    received = seconds(c.params, live, c.link, pieces)
    return received + seconds(c.params, live + moved(live, STORED[c.dtype], c.tracks), c.host, pieces)


def parse(quantities: Sequence[str]) -> Cluster:
    """A cluster from texts such as ``params=1e12``.

    Raises:
        ConfigError: a text is not NAME=VALUE, a name is unknown or twice, or a value is not of its kind.

    Examples:
        >>> parse(["params=1e12", "gpus=4096", "dtype=split"])  # doctest: +ELLIPSIS
        Cluster(params=1000000000000.0, gpus=4096, group=8, live='bfloat16', dtype='split', ...)
    """
    known = [field.name for field in fields(Cluster)]
    given: dict[str, Any] = {}
    for text in quantities:
        name, _, value = text.partition("=")
        if name not in known:
            raise ConfigError(f"{text}: must be NAME=VALUE, of the names {', '.join(known)}.")
        if name in given:
            raise ConfigError(f"{text}: {name} is given twice.")
        given[name] = value if name in TEXTS else _number(text)
    for name in ("params", "gpus"):
        if name not in given:
            raise ConfigError(f"--plan needs {name}=, as in: polyak bench --plan params=1e12 gpus=4096")
    return Cluster(**given)


def _number(text: str) -> float:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError as error:
        raise ConfigError(f"{text}: must be a number, such as {name}=1000 or {name}=1e3.") from error
    if name in WHOLE:
        if not number.is_integer():
            raise ConfigError(f"{text}: must be a whole number, such as {name}=1000 or {name}=1e3.")
        return int(number)
    return number
