"""The average kept beside a training run: ``polyak.EMA`` for PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import TypeVar  # whose type variables have defaults

from polyak._core.clock import Start, check_pace
from polyak._core.nonfinite import NonFinitePolicy
from polyak._core.optimizer_hook import Attachment, as_several
from polyak._core.persistence import PersistentEMA
from polyak._core.ranks import synchronize_buffers
from polyak._core.tensor_map import Buffers, Patterns, Selection
from polyak._core.track import DEFAULT_DECAY, Decays, named_decays, warn_if_swapped
from polyak.errors import PlanError
from polyak.torch._engines.select import EngineName
from polyak.torch._engines.updater import Graph
from polyak.torch.average_set import average_set
from polyak.torch.optimizer_hook import check_hooked, follow, parameters_of
from polyak.torch.ranks import first_of, mean_over
from polyak.torch.store import DType, Settings
from polyak.torch.untraced import untraced_methods
from polyak.torch.update import Updates

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ModuleT = TypeVar("ModuleT", bound=nn.Module, covariant=True, default=nn.Module)


@untraced_methods("_update", "replay")
class EMA(PersistentEMA[ModuleT, Tensor]):
    """One or several averages of a model's weights, updated after each optimizer step.

    ``avgₜ = βₜ·avgₜ₋₁ + (1-βₜ)·θₜ``, ``avg₀ = θ₀``

    The model stays yours: nothing in it is replaced, and training does not know it is averaged.

    Args:
        model: any ``nn.Module``, on any device, wrapped by DDP or ``torch.compile`` or not.
        decay: β, a schedule, a function of the step t, or several by name, kept side by side (``{"short":
            0.999, "long": HalfLife(steps=5000)}``), or an ``Adaptive``, which chooses among several. A
            ``ByName`` gives the tensors of one average different decays. By default ``Warmup(0.9999)``, which
            suits runs of every length; a plain 0.9999 keeps 90 % of θ₀ after 1000 steps. What others call
            momentum, rate or τ is 1-β: a plain β below 0.5 warns.
        include: names or globs of them (``"head.*"``); only tensors that match are averaged.
        exclude: names or globs; tensors that match are not. A pattern that matches nothing is an error.
        buffers: "auto" averages BatchNorm-style statistics and copies every other buffer bit by bit;
            "copy" copies all, "average" averages all floating ones, "ignore" leaves the model's own.
            By name: ``{"*expert_bias": "average", "*": "auto"}``: the first glob that matches decides; what
            none matches is "auto".
        dtype: storage. By default float32, or the parameter's own dtype where that is wider;
            bfloat16 and float16 round stochastically, so that the average keeps moving; "split" keeps
            bfloat16 and 8 further bits.
        device: where averages live; by default beside their parameters. "cpu" frees the GPU of them: θ is
            copied to pinned memory on a side stream and averaged on a thread; an error there is raised by
            the next call. Not yet run on a GPU.
        shard: a process group or a one-dimensional ``DeviceMesh`` over which the model is replicated, as
            under DDP: each of its processes averages, and holds, its rows of every parameter. Entering and
            leaving ``average_parameters``, ``save`` and ``copy_to`` are then called by all of them. Averages
            of models under ``fully_shard`` or tensor parallelism are sharded as their parameters are.
        every: update every k-th step only. Decays are composed, so the half-life does not change.
        start: copy the model up to this step; averaging and the schedule's time begin there. Trainers that
            know the length of the run also accept a share of it, "5%".
        on_nonfinite: "skip" keeps the average of elements whose θ is NaN or infinite, "raise" raises
            before anything is changed, "ignore" averages them. Under "skip" an element that is not finite at
            the start is averaged from its first finite value on.
        seed: of the random bits that round 16-bit averages; give each replica its own.
        compensated: keep beside each float32 average what rounding lost, 8 bytes per parameter: exact
            to 1e-7 also where a plain average stalls within 4e-4 of a constant target (β ≥ 0.9999).
        engine: "auto" uses the fastest that supports the tensors; ``metrics()["engine"]`` names it.
        overlap: on a GPU, let an update run until the next step of the optimizer it is attached to, under
            the next forward pass. Nothing else may write the parameters then, and only the property
            ``ema.module`` waits for the update, not a module taken from it before. Not yet run on a GPU.

    Frozen parameters are not stored; only ``ema.module`` has copies of them. Parameters that are unfrozen or
    added later join with their values at that time.

    Raises:
        ConfigError: an argument is invalid.
        PlanError: nothing to average, or a tensor that cannot be averaged.
        NonFiniteError: θ₀ holds NaN or infinity, and ``on_nonfinite="raise"``.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> ema = EMA(model, decay=0.999)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> ema.update()
        >>> with ema.average_parameters():
        ...     prediction = model(torch.ones(1, 2))
        >>> bool(torch.equal(prediction, ema(torch.ones(1, 2))))
        True

    Source: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging".
    """

    def __init__(
        self,
        model: ModuleT,
        decay: Decays = DEFAULT_DECAY,
        *,
        include: Patterns = None,
        exclude: Patterns = None,
        buffers: Buffers = "auto",
        dtype: DType = None,
        device: str | torch.device | None = None,
        shard: dist.ProcessGroup | DeviceMesh | None = None,
        every: int = 1,
        start: Start = 0,
        on_nonfinite: NonFinitePolicy = "skip",
        seed: int = 0,
        compensated: bool = False,
        engine: EngineName = "auto",
        overlap: bool = False,
    ) -> None:
        start = check_pace(every, start)
        settings = Settings.of(dtype, compensated, device, on_nonfinite, seed, engine, overlap)
        chosen = Selection.of(include, exclude, buffers)
        self._updates = Updates(settings)
        averages = average_set(model, named_decays(decay), chosen, settings, self._updates, shard)
        super().__init__(averages, decay, every, start, seed)
        if averages.plan.ranks is not None:
            from polyak.torch._sharding.agree import agreed_run  # see ``_sharding.kinds``

            self.run = agreed_run(self.run, averages.plan.placed().values())
        warn_if_swapped(decay)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward through ``ema.module`` without gradients."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def attach(self, optimizer: Optimizer | Sequence[Optimizer]) -> Attachment:
        """Update after each step that the optimizer takes; calling ``update`` is then refused.

        Steps that a GradScaler skips are not counted. Fused optimizers skip inside their own kernel;
        only with those and a scaler does this read the scaler's decision, which waits for the device.
        ``average_parameters``, ``save``, ``state_dict`` and ``metrics`` warn if the parameters are trained
        without a step of the optimizer.

        Args:
            optimizer: the one that trains the model, or a list of those that step once each in a training
                step, such as Muon for matrices and AdamW for the rest. The update comes after the last of
                them; if one takes no step, before the next training step.

        Returns:
            A handle whose ``remove()`` ends it.

        Raises:
            ConfigError: a decay counts samples or tokens, which an optimizer does not know; a wrapper calls
                no hooks; or the EMA is attached already.
            PlanError: an optimizer holds none of the averaged parameters.
        """
        optimizers = as_several(optimizer)
        for one in optimizers:
            check_hooked(one)
        return self._attach(optimizers, parameters_of, partial(follow, self._updates))

    def synchronize_buffers(self, group: dist.ProcessGroup | None = None) -> None:
        """Make the buffers of the averages equal in all processes; call it in each, before evaluating.

        Under DDP each process averages the statistics of its own BatchNorm, so the averages of the processes
        differ. Averaged buffers become their mean over the processes, copied ones those of the first process.
        The live model is not changed. With one process nothing happens.

        Args:
            group: the processes; all of them if None.

        Raises:
            SwapError: an average is live.
        """
        self._refuse_while_swapped("synchronize_buffers")
        if dist.is_initialized():
            synchronize_buffers(self._averages, partial(mean_over, group), partial(first_of, group))

    def verify(self, group: dist.ProcessGroup | None = None) -> None:
        """Check that all processes hold the same averages; call it in each. With one process nothing happens.

        Compares step, schedules, profiles, shapes and dtypes, and a digest of each average that several
        processes hold. Buffers may differ, as DDP lets them; so may 16-bit averages with different seeds.
        Each process waits for the others, at most as long as the process group's timeout.

        Args:
            group: the processes; by default those of a sharded average's mesh, otherwise all.

        Raises:
            PlanError: a process has seen other steps or holds another average ("rank 1 has seen 40 steps,
                the others 41"), or was lost; every process raises it.
            SwapError: in one of them an average is live.
        """
        if dist.is_initialized():
            from polyak.torch._sharding.agree import digest, verify  # see ``_sharding.kinds``
            from polyak.torch._sharding.stream import Ranks

            ranks = self._averages.plan.ranks if group is None else None
            if ranks is None:
                ranks = Ranks.between(dist.get_process_group_ranks(group or dist.group.WORLD))
            verify(ranks, partial(self._report, digest))

    def replay(
        self, graph: Graph, steps: int = 1, *, samples: int | None = None, tokens: int | None = None
    ) -> None:
        """Replay a CUDA graph in which ``update()`` was captured; it counts as ``update(steps)`` does.

        Not yet run on a GPU: the tests replay a tape of the same calls.

        A graph contains the arithmetic but not the schedule: this method counts the step and sends its decay
        to the device first. ``graph.replay()`` alone trains without updating the average, as do all but
        every k-th replay under ``every=k``.

        Args:
            graph: a ``torch.cuda.CUDAGraph`` with one ``update()`` in it, captured after some steps had run.
            steps: training steps in the graph.
            samples: in the graph, for decays counted in samples.
            tokens: in the graph, for decays counted in tokens.

        Raises:
            PlanError: after the capture the model's tensors moved, a state was loaded or the average was
                reset. Nothing was replayed or counted.
            SwapError: the model holds an average now.

        Examples:
            >>> graph = torch.cuda.CUDAGraph()  # doctest: +SKIP
            >>> with torch.cuda.graph(graph):  # doctest: +SKIP
            ...     step()  # forward, backward, optimizer.step()
            ...     ema.update()
            >>> for batch in loader:  # doctest: +SKIP
            ...     inputs.copy_(batch)
            ...     ema.replay(graph)
        """
        if not (self._averages.intact() and self._updates.captured()):
            raise PlanError(
                "no update of the model's present tensors was captured: capture a graph in which "
                "ema.update() is called, and again whenever the model's tensors have moved, a state was "
                "loaded or the average was reset."
            )
        self._refuse_while_swapped("replay")
        if not self._advance(steps, samples, tokens, partial(self._updates.replay, graph)):
            graph.replay()
