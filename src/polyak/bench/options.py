"""What a benchmark is asked to measure, checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass

from polyak.errors import ConfigError

PARAMS = ("float32", "float64", "bfloat16", "float16")
STORES = ("float32", "float64", "bfloat16", "float16", "split", "compensated")
PEERS = ("swa_utils", "timm", "torch_ema", "ema_pytorch", "ultralytics", "diffusers", "loop")


@dataclass(frozen=True)
class Options:
    """One benchmark.

    Args:
        model: a name of ``shapes.MODELS``, or "YOUR.module:factory".
        against: names of ``PEERS``; None takes those that can be imported.
        dtype: what averages are stored in, one of ``STORES``.
        params: dtype the model's floating parameters are cast to; None leaves them as they are built.
        tracks: averages kept at once.
        threads: of torch; None leaves them as they are.
        rounds: a figure is the median over so many.
        device: what torch calls it: "cpu", "cuda".

    Raises:
        ConfigError: a value is outside its rule.
    """

    model: str = "resnet50"
    against: tuple[str, ...] | None = None
    dtype: str = "float32"
    params: str | None = None
    tracks: int = 1
    threads: int | None = None
    rounds: int = 15
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in self.against or ():
            if name not in PEERS:
                raise ConfigError(f"against={name!r}: must be of {', '.join(PEERS)}; or none.")
        if self.dtype not in STORES:
            raise ConfigError(f"dtype={self.dtype!r}: must be one of {', '.join(STORES)}.")
        if self.params not in (None, *PARAMS):
            raise ConfigError(f"params={self.params!r}: must be one of {', '.join(PARAMS)}.")
        for name, value in (("tracks", self.tracks), ("threads", self.threads), ("rounds", self.rounds)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1.")
