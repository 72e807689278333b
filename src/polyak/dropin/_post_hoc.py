"""ema-pytorch's ``KarrasEMA`` and ``PostHocEMA``, as of ema-pytorch 0.8.3."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from polyak._files.checkpoint import LazyTensor
from polyak._files.weighted_sum import in_memory, summed
from polyak._foreign.open_any import open_weights
from polyak.archive.mixture import mixed
from polyak.dropin._follower import inexact
from polyak.dropin._modules import device_of
from polyak.dropin._names import Named, Names, ema_model_for
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules import COPY, Power, Profile, compose, solve
from polyak.schedules.decay import check_integer
from polyak.schedules.posthoc import gram_of
from polyak.schedules.profile import Run


class KarrasEMA(Named):
    """An average whose width grows with the run.

    ``βₙ = ((n+1-k)/(n+1))^(γ+1)``, n = step, k = update_every

    The arguments are ema-pytorch's; the decay of an update is that of k calls, where the original uses that
    of one.

    Raises:
        ConfigError: an argument is invalid.

    Examples:
        >>> ema = KarrasEMA(nn.Linear(2, 1), sigma_rel=0.1, update_every=1)
        >>> ema.update()
        >>> round(ema.gamma, 3)
        6.937

    Source: Karras et al. 2024, arXiv 2312.02696, §3.1; ema-pytorch 0.8.3.
    """

    def __init__(
        self,
        model: nn.Module,
        sigma_rel: float | None = None,
        gamma: float | None = None,
        ema_model: nn.Module | Callable[[], nn.Module] | None = None,
        update_every: int = 100,
        frozen: bool = False,
        param_or_buffer_names_no_ema: Collection[str] = frozenset(),
        ignore_names: Collection[str] = frozenset(),
        ignore_startswith_names: Collection[str] = frozenset(),
        allow_different_devices: bool = False,
        move_ema_to_online_device: bool = False,
    ) -> None:
        super().__init__()
        self.gamma = Power(sigma_rel=sigma_rel, gamma=gamma).exponent
        check_integer("update_every", update_every, 1)
        self.frozen, self.update_every = frozen, update_every
        self.online_model = [model]
        self.param_or_buffer_names_no_ema = param_or_buffer_names_no_ema
        self.ignore_names, self.ignore_startswith_names = ignore_names, ignore_startswith_names
        self.names = Names(param_or_buffer_names_no_ema, ignore_names, tuple(ignore_startswith_names))
        self.allow_different_devices = allow_different_devices
        self.move_ema_to_online_device = move_ema_to_online_device
        self._adopt(ema_model_for(ema_model, model), self.names)
        self._count_from_zero()

    @property
    def model(self) -> nn.Module:
        """The model that is averaged."""
        return self.online_model[0]

    @property
    def count(self) -> int:
        """``step`` as a number, rarely read from the device."""
        return self._steps.of(self.step)

    @property
    def beta(self) -> float:
        """β of this step."""
        return compose(Power(gamma=self.gamma), max(0, self.count + 1 - self.update_every), self.update_every)

    def update(self) -> None:
        """Update the average when an update is due. Call it after each training step."""
        step = self.count
        self._steps.set(self.step, step + 1)
        if step % self.update_every:
            return
        if not self._started.of(self.initted):
            self.copy_params_from_model_to_ema()
            self._started.set(self.initted, 1)
        self.update_moving_average(self._averages, self.model)

    def update_moving_average(self, ma_model: nn.Module, current_model: nn.Module) -> None:
        """Move ``ma_model`` towards the other."""
        if self.frozen:
            return
        if self.move_ema_to_online_device and device_of(ma_model) != device_of(current_model):
            ma_model.to(device_of(current_model))
        self._follower.update(ma_model, current_model, self.beta)

    def iter_all_ema_params_and_buffers(self) -> Iterator[Tensor]:
        """The averaged tensors."""
        return iter(self.averaged().values())

    def averaged(self) -> dict[str, Tensor]:
        """The averaged tensors by name."""
        named = (*self._averages.named_parameters(), *self._averages.named_buffers())
        return {name: t for name, t in named if inexact(t) and self.names.role([name]) == "average"}

    def profile(self, gamma: float, step: int) -> Profile:
        """The profile at a step of an average with that γ and this pace: θ₁ first, then every k-th."""
        count = (step - 1) // self.update_every
        body = Run(Power(gamma=gamma), 2, count, self.update_every, self.update_every)
        return Profile(((1.0, (Run(COPY, 0, 1, 1, 1), *([body] if count else []))),))


class _File(NamedTuple):
    path: Path
    gamma: float
    step: int


class PostHocEMA(nn.Module):
    """Several averages of growing width, whose checkpoints give any other width afterwards.

    The arguments are ema-pytorch's; a tensor that would overflow ``checkpoint_dtype`` keeps its own dtype.

    Raises:
        ConfigError: an argument is invalid.

    Examples:
        >>> import tempfile
        >>> emas = PostHocEMA(nn.Linear(2, 1), sigma_rels=(0.05, 0.28), update_every=1,
        ...     checkpoint_every_num_steps=5, checkpoint_folder=tempfile.mkdtemp())
        >>> for _ in range(20):
        ...     emas.update()
        >>> emas.synthesize_ema_model(sigma_rel=0.15)(torch.ones(1, 2)).shape
        torch.Size([1, 1])

    Source: Karras et al. 2024, arXiv 2312.02696, §3.2; ema-pytorch 0.8.3.
    """

    def __init__(
        self,
        model: nn.Module,
        ema_model: Callable[[], nn.Module] | None = None,
        sigma_rels: Sequence[float] | None = None,
        gammas: Sequence[float] | None = None,
        checkpoint_every_num_steps: int | Literal["manual"] = 1000,
        checkpoint_folder: str | os.PathLike[str] = "./post-hoc-ema-checkpoints",
        checkpoint_dtype: torch.dtype = torch.float16,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if (sigma_rels is None) == (gammas is None):
            raise ConfigError("sigma_rels and gammas: give exactly one of the two.")
        wanted = gammas if sigma_rels is None else [Power(sigma_rel=s).exponent for s in sigma_rels]
        self.gammas = tuple(wanted or ())
        if len(set(self.gammas)) != len(self.gammas) or len(self.gammas) < 2:
            raise ConfigError(f"gammas={self.gammas}: give at least two different widths.")
        if checkpoint_every_num_steps != "manual":
            check_integer("checkpoint_every_num_steps", checkpoint_every_num_steps, 1)
        self.maybe_ema_model, self.ema_kwargs = ema_model, kwargs
        self.num_ema_models = len(self.gammas)
        self._model = [model]
        self.ema_models = nn.ModuleList([self._karras(gamma) for gamma in self.gammas])
        self.checkpoint_folder = Path(checkpoint_folder)
        self.checkpoint_folder.mkdir(exist_ok=True, parents=True)
        self.checkpoint_every_num_steps = checkpoint_every_num_steps
        self.checkpoint_dtype = checkpoint_dtype

    @property
    def model(self) -> nn.Module:
        """The model that is averaged."""
        return self._model[0]

    @property
    def step(self) -> Tensor:
        """Calls of ``update`` so far."""
        return self._all[0].step

    @property
    def device(self) -> torch.device:
        """The device of the counters."""
        return self.step.device

    def copy_params_from_model_to_ema(self) -> None:
        """Restart every average from the current model."""
        for average in self._all:
            average.copy_params_from_model_to_ema()

    def copy_params_from_ema_to_model(self) -> None:
        """Overwrite the model with the last average."""
        for average in self._all:
            average.copy_params_from_ema_to_model()

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return tuple(average(*args, **kwargs) for average in self._all)

    def update(self) -> None:
        """Update the averages and write checkpoints when due."""
        for average in self._all:
            average.update()
        every = self.checkpoint_every_num_steps
        if isinstance(every, int) and self._all[0].count % every == 0:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Write one file for each average, complete or not at all."""
        for place, average in enumerate(self._all):
            path = self.checkpoint_folder / f"{place}.{int(self.step)}.pt"
            part = path.with_suffix(".part")
            torch.save({name: self._stored(t) for name, t in average.state_dict().items()}, part)
            part.replace(path)

    def synthesize_ema_model(
        self, gamma: float | None = None, sigma_rel: float | None = None, step: int | None = None
    ) -> KarrasEMA:
        """The average that another width would have given, from the checkpoints up to ``step``.

        Tensors that are not averaged are those of the current model.

        Raises:
            ConfigError: none or both widths are given, or ``step`` lies outside the checkpoints.
            CheckpointError: there are none.
        """
        wanted = Power(sigma_rel=sigma_rel, gamma=gamma).exponent
        files = self._files()
        stand = max(f.step for f in files) if step is None else step
        if not min(f.step for f in files) <= stand <= max(f.step for f in files):
            raise ConfigError(
                f"step={stand}: the checkpoints are of steps {files[0].step} to {files[-1].step}."
            )
        files = [f for f in files if f.step <= stand]
        made = self._karras(wanted)
        profiles = [made.profile(f.gamma, f.step) for f in files]
        names = made.averaged()
        with ExitStack() as stack, torch.no_grad():
            stored = [stack.enter_context(open_weights(f.path)).tensors for f in files]
            newest = [{n: s[f"ema_model.{n}"] for n in names} for s in stored[-2:]]
            rounding = self._rounding(profiles[-2:], newest)
            solution = solve(profiles, made.profile(wanted, stand), rounding=[rounding] * len(files))
            paths = [str(f.path) for f in files]
            coefficients = solution.coefficients.tolist()
            sums = [mixed(n, [s[f"ema_model.{n}"] for s in stored], paths, coefficients) for n in names]
            with summed(sums) as pieces:
                for one in sums:
                    names[one.name].copy_(torch.from_numpy(in_memory(one, pieces)))
        return made

    def _rounding(self, profiles: Sequence[Profile], newest: Sequence[dict[str, LazyTensor]]) -> float:
        """The square of a checkpoint's rounding error, in units of the parameters' movement per step.

        The movement is estimated from the distance of two averages and the steps between their centres.
        """
        if len(newest) < 2:
            return 0.0
        gram = gram_of(profiles)
        span = float(gram[0, 0] + gram[1, 1] - 2 * gram[0, 1])
        apart = size = 0.0
        for name, lazy in newest[0].items():
            one, other = (torch.from_numpy(s.read().astype("float64")) for s in (lazy, newest[1][name]))
            apart += float((one - other).square().sum())
            size += float(one.square().sum())
        error = size * (torch.finfo(self.checkpoint_dtype).eps / 2) ** 2 / 3
        return error * span / apart if apart and span > 0 else 0.0

    def _files(self) -> list[_File]:
        found = [(path, *map(int, path.stem.split("."))) for path in self.checkpoint_folder.glob("*.pt")]
        files = [_File(path, self.gammas[place], step) for path, place, step in found]
        if not files:
            raise CheckpointError(f"{self.checkpoint_folder} holds no checkpoints: call checkpoint() first.")
        return sorted(files, key=lambda f: (f.step, f.gamma))

    def _stored(self, tensor: Tensor) -> Tensor:
        kept = tensor.detach().to("cpu", copy=True)
        if not kept.is_floating_point():
            return kept
        small = kept.to(self.checkpoint_dtype)
        return small if bool(small.isfinite().all()) else kept

    def _karras(self, gamma: float) -> KarrasEMA:
        return KarrasEMA(self.model, gamma=gamma, ema_model=self.maybe_ema_model, **self.ema_kwargs)

    @property
    def _all(self) -> list[KarrasEMA]:
        return [average for average in self.ema_models if isinstance(average, KarrasEMA)]
