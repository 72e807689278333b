"""The average kept beside a training run: ``polyak.paddle.EMA``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor, nn
from paddle.optimizer import Optimizer
from typing_extensions import TypeVar  # whose type variables have defaults

from polyak._core.clock import Start, check_pace
from polyak._core.nonfinite import NonFinitePolicy
from polyak._core.optimizer_hook import Attachment, as_several
from polyak._core.persistence import PersistentEMA
from polyak._core.ranks import synchronize_buffers
from polyak._core.tensor_map import Buffers, Patterns, Selection
from polyak._core.track import DEFAULT_DECAY, Decays, named_decays, warn_if_swapped
from polyak.paddle.average_set import average_set
from polyak.paddle.optimizer_hook import follow, parameters_of
from polyak.paddle.ranks import digest, first_of, mean_over, verify
from polyak.paddle.store import DType, EngineName, Settings

LayerT = TypeVar("LayerT", bound=nn.Layer, covariant=True, default=nn.Layer)


class EMA(PersistentEMA[LayerT, Tensor]):
    """One or several averages of a layer's weights, updated after each optimizer step.

    ``avgₜ = βₜ·avgₜ₋₁ + (1-βₜ)·θₜ``, ``avg₀ = θ₀``

    Args:
        layer: any ``paddle.nn.Layer``, wrapped by ``paddle.DataParallel`` or fleet or not.
        decay: β, a schedule, a function of the step t, or several by name, kept side by side (``{"short":
            0.999, "long": HalfLife(steps=5000)}``), or an ``Adaptive``, which chooses among several. A
            ``ByName`` gives the tensors of one average different decays. By default ``Warmup(0.9999)``, which
            suits runs of every length; a plain 0.9999 keeps 90 % of θ₀ after 1000 steps. What others call
            momentum, rate or τ is 1-β: a plain β below 0.5 warns.
        include: names or globs of them (``"head.*"``); only tensors that match are averaged.
        exclude: names or globs; tensors that match are not. A pattern that matches nothing is an error.
        buffers: "auto" averages BatchNorm's ``_mean`` and ``_variance`` and copies every other buffer bit
            by bit; "copy" copies all, "average" averages all floating ones, "ignore" leaves the layer's own.
            By name: ``{"*expert_bias": "average", "*": "auto"}``: the first glob that matches decides; what
            none matches is "auto".
        dtype: storage. By default float32, or the parameter's own dtype where that is wider; "bfloat16" and
            "float16" round stochastically, so that the average keeps moving; "split" keeps bfloat16 and 8
            further bits. These and ``compensated`` need the C kernel, on a CPU.
        every: update every k-th step only. Decays are composed, so the half-life does not change.
        start: copy the layer up to this step; averaging and the schedule's time begin there. Trainers that
            know the length of the run also accept a share of it, "5%".
        on_nonfinite: "skip" keeps the average of elements whose θ is NaN or infinite, "raise" raises
            before anything is changed, "ignore" averages them. Under "skip" an element that is not finite at
            the start is averaged from its first finite value on.
        seed: of the random bits that round 16-bit averages; give each replica its own.
        compensated: keep beside each float32 average what rounding lost, 8 bytes per parameter.
        engine: "auto" uses the fastest that supports the tensors; ``metrics()["engine"]`` names it.

    Raises:
        ConfigError: an argument is invalid.
        PlanError: nothing to average, or a tensor that cannot be averaged.
        NonFiniteError: θ₀ holds NaN or infinity, and ``on_nonfinite="raise"``.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> ema = EMA(layer, decay=0.999)
        >>> optimizer = paddle.optimizer.SGD(0.1, parameters=layer.parameters())
        >>> layer(paddle.ones([1, 2])).sum().backward()
        >>> optimizer.step()
        >>> ema.update()
        >>> with ema.average_parameters():
        ...     prediction = layer(paddle.ones([1, 2]))
        >>> bool((prediction == ema(paddle.ones([1, 2]))).all())
        True

    Source: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging".
    """

    def __init__(
        self,
        layer: LayerT,
        decay: Decays = DEFAULT_DECAY,
        *,
        include: Patterns = None,
        exclude: Patterns = None,
        buffers: Buffers = "auto",
        dtype: DType = None,
        every: int = 1,
        start: Start = 0,
        on_nonfinite: NonFinitePolicy = "skip",
        seed: int = 0,
        compensated: bool = False,
        engine: EngineName = "auto",
    ) -> None:
        start = check_pace(every, start)
        settings = Settings.of(dtype, compensated, on_nonfinite, seed, engine)
        chosen = Selection.of(include, exclude, buffers)
        averages = average_set(layer, named_decays(decay), chosen, settings)
        super().__init__(averages, decay, every, start, seed)
        warn_if_swapped(decay)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward through ``ema.module`` without gradients."""
        with paddle.no_grad():
            return self.module(*args, **kwargs)

    def attach(self, optimizer: Optimizer | Sequence[Optimizer]) -> Attachment:
        """Update after each step that the optimizer takes; calling ``update`` is then refused.

        Steps that ``paddle.amp.GradScaler`` skips are not counted. ``average_parameters``, ``save``,
        ``state_dict`` and ``metrics`` warn if the parameters are trained without a step of the optimizer.

        Args:
            optimizer: the one that trains the model, or a list of those that step once each in a training
                step, such as Muon for matrices and AdamW for the rest. The update comes after the last of
                them; if one takes no step, before the next training step.

        Returns:
            A handle whose ``remove()`` ends it.

        Raises:
            ConfigError: a decay counts samples or tokens, which an optimizer does not know; or the EMA is
                attached already.
            PlanError: an optimizer holds none of the averaged parameters.
        """
        return self._attach(as_several(optimizer), parameters_of, follow)

    def synchronize_buffers(self, group: Any | None = None) -> None:
        """Make the buffers of the averages equal in all processes; call it in each, before evaluating.

        Under DataParallel each process averages the statistics of its own BatchNorm, so the averages of the
        processes differ. Averaged buffers become their mean over the processes, copied ones those of the
        first process. The live model is not changed. With one process nothing happens.

        Args:
            group: the processes; all of them if None.

        Raises:
            SwapError: an average is live.
        """
        self._refuse_while_swapped("synchronize_buffers")
        if dist.is_initialized():
            synchronize_buffers(self._averages, partial(mean_over, group), partial(first_of, group))

    def verify(self, group: Any | None = None) -> None:
        """Check that all processes hold the same averages; call it in each. With one process nothing happens.

        Compares step, schedules, profiles, shapes and dtypes, and a digest of each average. Buffers may
        differ, as DataParallel lets them; so may 16-bit averages with different seeds. Each process waits for
        the others, at most as long as the process group's timeout.

        Args:
            group: the processes; all of them if None.

        Raises:
            PlanError: a process has seen other steps or holds another average ("rank 1 has seen 40 steps,
                the others 41"); every process raises it.
            SwapError: an average is live.
        """
        if dist.is_initialized():
            verify(group, partial(self._report, digest))
