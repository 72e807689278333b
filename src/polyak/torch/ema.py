"""The average kept beside a training run: ``polyak.EMA`` for PyTorch."""

from __future__ import annotations

import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from polyak.checkpoints.snapshots import Captured
from polyak.errors import CheckpointError, ConfigError, SwapError
from polyak.rules import Decay
from polyak.rules.decay import check_whole
from polyak.torch import files, metrics, resumables, snapshots
from polyak.torch.attach import Attachment, check_counts_steps
from polyak.torch.averages import Averages
from polyak.torch.buffers import BufferPolicy
from polyak.torch.clock import Clock
from polyak.torch.engines.choose import EngineName
from polyak.torch.engines.contract import NonFinitePolicy
from polyak.torch.plan import Patterns, Selection
from polyak.torch.state import LoadReport, State, read, whole
from polyak.torch.storage import DType, Settings
from polyak.torch.swap import holds_average
from polyak.torch.track import Track, named_decays


class EMA:
    """One or several averages of a model's weights, updated after each optimizer step.

    ``avgₜ = βₜ·avgₜ₋₁ + (1-βₜ)·θₜ``, ``avg₀ = θ₀``

    The model stays yours: nothing in it is replaced, and training does not know it is averaged.

    Args:
        model: any ``nn.Module``, on any device, wrapped by DDP or ``torch.compile`` or not.
        decay: β, a schedule, or several by name (``{"short": 0.999, "long": HalfLife(steps=5000)}``),
            kept side by side. A plain 0.9999 keeps 90 % of θ₀ after 1000 steps; ``Warmup`` does not.
        include: name globs (``"head.*"``); only tensors that match are averaged.
        exclude: name globs; tensors that match are not. A pattern that matches nothing is an error.
        buffers: "auto" averages BatchNorm-style statistics and copies every other buffer bit by bit;
            "copy" copies all, "average" averages all floating ones, "ignore" leaves the model's own.
        dtype: storage. By default float32, or the parameter's own dtype where that is wider;
            bfloat16 and float16 round stochastically, so that the average keeps moving; "split" keeps
            bfloat16 and 8 further bits.
        device: where averages live; by default beside their parameters. "cpu" frees the GPU of them: θ is
            copied to pinned memory on a side stream and averaged on a thread; an error there is raised by
            the next call.
        every: act on each k-th step only. Decays are composed, so the half-life does not change.
        start: copy the model up to this step; averaging and the schedule's time begin there.
        on_nonfinite: "skip" keeps the average of elements whose θ is NaN or infinite, "raise" raises
            before anything is changed, "ignore" lets them in.
        seed: of the random bits that round 16-bit averages; give each replica its own.
        compensated: keep beside each float32 average what rounding lost, 8 bytes per parameter: exact
            to 1e-7 also where a plain average stalls within 4e-4 of a constant target (β ≥ 0.9999).
        engine: "auto" takes the fastest that can; ``metrics()["engine"]`` says which and why.
        overlap: on a GPU, let an update run until the next step of the optimizer it is attached to, under
            the next forward pass. Nothing else may write the parameters then.

    Frozen parameters are not stored: ``ema.module`` uses the model's own. Once they are unfrozen, or new
    ones added, they join with the value they have then.

    Raises:
        ConfigError: an argument is outside its rule.
        PlanError: nothing to average, or a tensor that cannot be.

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
        model: nn.Module,
        decay: float | Decay | Mapping[str, float | Decay] = 0.9999,
        include: Patterns = None,
        exclude: Patterns = None,
        buffers: BufferPolicy = "auto",
        dtype: DType = None,
        device: str | torch.device | None = None,
        *,
        every: int = 1,
        start: int = 0,
        on_nonfinite: NonFinitePolicy = "skip",
        seed: int = 0,
        compensated: bool = False,
        engine: EngineName = "auto",
        overlap: bool = False,
    ) -> None:
        check_whole("every", every, 1)
        check_whole("start", start, 0)
        settings = Settings.of(dtype, compensated, device, on_nonfinite, seed, engine, overlap)
        chosen = Selection.of(include, exclude, buffers)
        self._averages = Averages(model, named_decays(decay), chosen, settings)
        self.every, self.start = every, start
        self.run = secrets.token_hex(8)
        self._clock = Clock.at(0, {track.decay.unit for track in self.tracks.values()})
        self._watchers = OrderedDict[int, Callable[[], None]]()  # called after each update
        self._live: str | None = None
        self._blocks = 0  # average_parameters() blocks open now
        self._undo = ExitStack()  # takes the average out of the model again

    @property
    def model(self) -> nn.Module:
        """The live model."""
        return self._averages.model

    @property
    def step(self) -> int:
        """Training steps so far."""
        return self._clock.step

    @property
    def tracks(self) -> dict[str, Track]:
        """The averages by name, each with its tensors, schedule and profile."""
        self._averages.settle()
        return self._averages.tracks

    @property
    def live(self) -> str:
        """Whose weights the model holds now: "raw", or the name of a track."""
        return self._live or "raw"

    @property
    def module(self) -> nn.Module:
        """The first track's average as a module of its own, on the averaged tensors themselves."""
        return self.module_of()

    def module_of(self, track: str | None = None) -> nn.Module:
        """A module on the averaged tensors of ``track``, in evaluation mode; it follows every update.

        It is rebuilt when the model's structure changes. It computes in the storage dtype: the float32
        average of a bfloat16 model takes float32 inputs; ``average_parameters`` keeps the model's dtype.
        """
        if not self._live:  # what is not averaged is the model's own, and must not be another EMA's average
            self._refuse_while_swapped("module")
        self._follow_model()
        return self._averages.module_of(self._track(track))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward through ``ema.module`` without gradients."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def update(self, steps: int = 1, *, samples: int | None = None, tokens: int | None = None) -> None:
        """Take the model's present parameters into every average. Call it after ``optimizer.step()``.

        Args:
            steps: training steps since the last call.
            samples: samples since then, for decays counted in samples.
            tokens: tokens since then, for decays counted in tokens.

        Raises:
            ConfigError: a count is missing or not positive.
            PlanError: a tensor was resized since averaging began.
            NonFiniteError: θ is not finite and ``on_nonfinite="raise"``.
            SwapError: the model holds an average now.
        """
        self._refuse_while_swapped("update")
        copying = self.step < self.start
        clock = self._clock.later(steps, samples, tokens, copying)
        if clock.waiting < self.every and not (copying and clock.step >= self.start):
            self._clock = clock
            return
        self._averages.follow(clock.step)
        tracks = self._averages.tracks.values()
        betas = [0.0 if copying else track.coming(clock.elapsed[track.decay.unit]) for track in tracks]
        self._averages.update(betas, clock.step)
        for track, beta in zip(tracks, betas, strict=True):
            track.acted(beta, clock.waiting, clock.elapsed[track.decay.unit], clock.step if copying else None)
        self._clock = Clock.at(clock.step, clock.elapsed)
        for watcher in tuple(self._watchers.values()):
            watcher()

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Update after each step the optimizer really takes; no call of ``update`` is needed then.

        Steps that a GradScaler skips are not counted. Fused optimizers skip inside their own kernel;
        only with those and a scaler does this read the scaler's verdict, which waits for the device.

        Returns:
            A handle whose ``remove()`` ends it.

        Raises:
            ConfigError: a decay counts samples or tokens, which an optimizer does not know.
        """
        for track in self.tracks.values():
            check_counts_steps(track)
        return Attachment(optimizer, self.update, self._averages)

    @contextmanager
    def average_parameters(self, track: str | None = None) -> Generator[nn.Module]:
        """The live model holds the average while the block runs, the raw weights after, whatever happens.

        Where dtype and device agree the model points at the average's own memory: nothing is copied. So
        what the block does to the model in place it does to the average. The mode is left alone: call
        ``model.eval()``, or BatchNorm writes into the average. Blocks of one track nest.

        Args:
            track: which average; the first if there is only one or none is named.

        Yields:
            The live model.

        Raises:
            SwapError: another average is live.
        """
        chosen = self._track(track)
        if self._live not in (None, chosen.name):
            raise SwapError(f"track {self._live!r} is live; leave its block before entering {chosen.name!r}.")
        if self._live is None:
            self._follow_model()
            with ExitStack() as undo:
                self._averages.swap_in(chosen, undo)
                self._undo = undo.pop_all()
            self._live = chosen.name
        self._blocks += 1
        try:
            yield self.model
        finally:
            # Generators and tasks may leave blocks in another order than they entered: the last restores.
            self._blocks -= 1
            if self._blocks == 0:
                self._live = None
                self._undo.close()

    def copy_to(self, model: nn.Module | None = None, track: str | None = None) -> None:
        """Overwrite a model's weights with the average, for good.

        Args:
            model: a model with the same names; by default the live one, whose raw weights are lost.
            track: which average.

        Raises:
            PlanError: a tensor is missing in ``model`` or has another shape; nothing is copied then.
            SwapError: an average is live.
        """
        self._refuse_while_swapped("copy_to")
        self._follow_model()
        self._averages.copy_to(model, self._track(track))

    def reset(self, names: Patterns = None) -> None:
        """Start again from the model as it is now.

        Args:
            names: globs of the tensors to start again; by default everything, schedules included.
                ``ema.step`` goes on either way.

        Raises:
            ConfigError: a pattern matches no averaged tensor.
        """
        self._refuse_while_swapped("reset")
        self._averages.restart(names, self.step)
        if names is None:
            self._clock = Clock.at(self.step, self._clock.elapsed)

    def state_dict(self) -> State:
        """Everything resuming takes: schedules, counters, histories, random state, averages.

        Tensors are the averages themselves, under the model's names without wrapper prefixes; write the
        state before the next update or copy it. ``torch.load(weights_only=True)`` reads it back.
        """
        self._refuse_while_swapped("state_dict")
        return whole(self.tracks, self._averages.copies, self._averages.tally, self._settings) | {
            "run": self.run,
            **self._clock._asdict(),
        }

    def load_state_dict(self, state: State, strict: bool = True) -> LoadReport:
        """Continue where ``state_dict`` left off, bit for bit.

        Args:
            state: from ``state_dict``, of an EMA over the same model with the same schedules.
            strict: refuse any mismatch. False takes what fits and reports the rest.

        Returns:
            What did not match and what was done about it; empty (false) when all did.

        Raises:
            CheckpointError: the state is malformed or, under strict, differs. Nothing is changed then.
            SwapError: an average is live.
        """
        self._refuse_while_swapped("load_state_dict")
        self._follow_model()
        loaded, report = read(state, self.tracks, self._averages.copies, self._settings)
        if strict and report:
            raise CheckpointError(f"{report}. Nothing was loaded; strict=False takes what fits.")
        self._averages.restore(loaded, state)
        self._clock = self._clock._replace(step=loaded.step, waiting=loaded.waiting, elapsed=loaded.elapsed)
        self.run = loaded.run
        return report

    def save(
        self,
        path: str | os.PathLike[str],
        track: str | None = None,
        *,
        resumable: bool = False,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Write one average as a plain ``.safetensors`` file that any tool loads.

        It holds the keys of ``model.state_dict()`` without wrapper prefixes (only the included ones when
        globs were given), averages in their storage dtype, and says in its header what it is.

        Args:
            path: the file; an old one is replaced only when the new one is complete.
            track: which average; "raw" for the model's own weights.
            resumable: write all that ``load`` takes to continue bit for bit instead: every track,
                counters, random state. Such a file is no model.
            max_shard_size: bytes, or "5GB"; above it, write shards and ``path + ".index.json"``.

        Raises:
            CheckpointError: the file cannot be written. An old file is intact.
            SwapError: an average is live, so what is raw and what is average could be mixed up.
        """
        self._refuse_while_swapped("save")
        self._follow_model()
        if resumable:
            tensors, header = resumables.packed(self.state_dict())
        else:
            chosen = None if track == "raw" else self._track(track)
            tensors, header = files.weights_of(self._averages, chosen, self.step, self.run)
        files.save(path, tensors, header, max_shard_size)

    def load(self, path: str | os.PathLike[str], strict: bool = True) -> LoadReport:
        """Continue from a file that ``save(path, resumable=True)`` wrote; see ``load_state_dict``.

        Raises:
            CheckpointError: the file is damaged, holds something else, or under strict does not match.
        """
        return self.load_state_dict(resumables.read(path), strict)

    def capture(self, track: str, dtype: str) -> Captured:
        """A copy of a track, without what never changes and rounded to ``dtype``, or of the "raw" model."""
        self._refuse_while_swapped("capture")
        self._follow_model()
        if track == "raw":
            return snapshots.of_model(self._averages.plan, self.step, self.run)
        return snapshots.of_track(self._averages, self._track(track), self.step, self.run, dtype)

    def watch(self, watcher: Callable[[], None]) -> RemovableHandle:
        """Call ``watcher()`` after each update, all counters agreeing; the handle's ``remove()`` ends it."""
        handle = RemovableHandle(self._watchers)
        self._watchers[handle.id] = watcher
        return handle

    def metrics(self) -> dict[str, Any]:
        """Numbers to log. Synchronises with the device; call it when you log, not every step.

        Returns:
            step, engine, skipped (updates in which some θ was not finite) and skipped_tensors (by name);
            and for each track decay (last applied), mean_age and half_life in steps, initial_weight, and
            distance ``‖avg-θ‖/‖θ‖``. With several tracks the latter are named ``"short/decay"`` and so on.
        """
        self._averages.settle()
        return metrics.of(self._averages, self.step)

    def _track(self, name: str | None) -> Track:
        self._averages.settle()
        if name is None:
            return self._averages.first
        if name not in self.tracks:
            raise ConfigError(f"track={name!r} is not one of {', '.join(map(repr, self.tracks))}.")
        return self.tracks[name]

    @property
    def _settings(self) -> dict[str, int]:
        return {"every": self.every, "start": self.start, "seed": self._averages.settings.seed}

    def _refuse_while_swapped(self, verb: str) -> None:
        if self._live or holds_average(self._averages.plan):
            whose = f"the average {self._live!r}" if self._live else "the average of another EMA"
            raise SwapError(
                f"{verb}: the model holds {whose} now, not the raw weights. "
                "Leave the average_parameters() block first."
            )

    def _follow_model(self) -> None:
        if not self._live and not holds_average(self._averages.plan):
            self._averages.follow(self.step)
