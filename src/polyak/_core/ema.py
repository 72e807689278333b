"""The methods of an EMA in every framework, except saving and loading."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from polyak._core.advance import AdvancingEMA, ModelT_co
from polyak._core.average_set import AverageSet
from polyak._core.initial_weight import warn_if_mostly_initial
from polyak._core.metrics import metrics_of
from polyak._core.optimizer_hook import Attachment, MissedStepDetector, OptimizerT, averaged_of
from polyak._core.swap_guard import Block, Exchange, finished
from polyak._core.tensor_map import Patterns
from polyak._core.tensors import T
from polyak._core.track import Decays, Track, check_counts_steps, refuse_decay
from polyak.errors import ConfigError, SwapError
from polyak.schedules import Adaptive, ByName, Decay
from polyak.schedules.adaptive import Choice


class BaseEMA(AdvancingEMA[ModelT_co, T]):
    """An EMA without its constructor, saving and loading; see ``polyak.EMA``.

    Args:
        averages: of the model, in its framework.
        decay: as it was given.
        every: update the averages every k-th step only.
        start: copy the model up to this step.
        seed: of the random bits that round 16-bit averages.
    """

    def __init__(
        self, averages: AverageSet[ModelT_co, T], decay: Decays, every: int, start: int, seed: int
    ) -> None:
        super().__init__(averages, every, start)
        self._adaptive = decay if isinstance(decay, Adaptive) else None
        self._choice = self._first_choice()
        self._seed = seed
        self.run = secrets.token_hex(8)

    def __getstate__(self) -> dict[str, Any]:
        """A copied or unpickled EMA averages its own copy of the model and is independent of this one.

        It has no watchers and is attached to no optimizer.

        Raises:
            SwapError: the model holds an average, which would become the raw weights of the copy.
        """
        self._refuse_while_swapped("copy")
        return self.__dict__ | {"_watches": [], "_attachment": None, "_pending": None, "_lent": None}

    def __repr__(self) -> str:
        decays = [track.decay for track in self._averages.tracks.values()]
        named = ", ".join(f"{name!r}: {track.decay}" for name, track in self._averages.tracks.items())
        decay = self._adaptive or (decays[0] if len(decays) == 1 else f"{{{named}}}")
        return f"EMA({self._averages.class_name()}, decay={decay}, step={self.step})"

    def __str__(self) -> str:
        tracks = [f"  {name}: {track.decay}, {track.summary}" for name, track in self.tracks.items()]
        return "\n".join([f"EMA of {self._averages.class_name()} at step {self.step:,}", *tracks])

    def _repr_html_(self) -> str:
        """In a notebook: each track's numbers, and a small picture of its weights."""
        from html import escape  # long to import

        title = f"<div><b>EMA of {escape(self._averages.class_name())} at step {self.step:,}</b></div>"
        return title + "".join(track._repr_html_() for track in self.tracks.values())  # pyright: ignore[reportPrivateUsage]

    @property
    def model(self) -> ModelT_co:
        """The live model."""
        return self._averages.model

    @property
    def tracks(self) -> dict[str, Track[T]]:
        """The averages by name, each with its tensors, schedule and profile.

        Only this property and ``module`` wait for an update in flight, because they give access to the memory
        it writes. On a GPU the stream waits, not the host; under ``device="cpu"`` the host waits for the
        averaging thread.
        """
        self._averages.synchronize()
        return self._averages.tracks

    @property
    def following(self) -> str:
        """The track that is meant where none is named: the first, or the one that ``observe`` chose."""
        return self._choice.following

    @property
    def decay(self) -> Decay | ByName:
        """The schedule of the followed track; it cannot be changed, since the profile depends on it."""
        return self._averages.tracks[self.following].decay

    @decay.setter
    def decay(self, value: object) -> None:
        refuse_decay("ema.decay", value)

    @property
    def live(self) -> str:
        """The weights in the model now: "raw", or the name of a track."""
        exchange = self._averages.plan.exchange(self._averages)
        return exchange.track if exchange is not None and exchange.owner is self._averages else "raw"

    @property
    def module(self) -> ModelT_co:
        """The followed track's average as a separate module; see ``module_of``. Waits as ``tracks`` does."""
        return self.module_of()

    def module_of(self, track: str | None = None) -> ModelT_co:
        """A separate module for ``track``, in evaluation mode; writing to it never changes the model.

        Its parameters are the averaged tensors themselves and follow every update. Of frozen weights and
        ignored buffers it has copies, made at first use and refreshed when the module is requested after a
        step or a write. So it costs the memory of the frozen part, once per track; ``average_parameters``
        costs none. To merge, quantise or move it for export, use ``copy.deepcopy(ema.module)``: in-place
        changes to averaged tensors change the average.

        It is rebuilt when the model's structure changes, or when its tensors were replaced. It computes in
        the storage dtype: the float32 average of a bfloat16 model takes float32 inputs;
        ``average_parameters`` keeps the model's dtype.

        Raises:
            PlanError: an attribute of the model, such as a closure, would make a copy compute with the live
                weights; it is named.
        """
        if (
            self.live == "raw"
        ):  # frozen tensors are copied from the model, which must not hold another EMA's average
            self._refuse_while_swapped("module")
        self._sync_with_model()
        chosen = self._track(track)
        if (
            chosen.module_cache is None
        ):  # a target network is used from the first steps on, and lags by design
            warn_if_mostly_initial(self._averages.tracks, chosen, "module", 3)
        return self._averages.module_of(chosen, self.step)

    def average_parameters(self, track: str | None = None) -> Block[ModelT_co]:
        """A block in which the live model holds the average; afterwards the raw weights, whatever happens.

        Where dtype and device agree, the model's tensors share the average's memory: nothing is copied, and
        in-place changes in the block change the average. The mode is left alone: call ``model.eval()``, or
        BatchNorm writes into the average. Blocks of one track nest. A block in which a parameter was written
        ends with SwapError; a written buffer gives a warning.

        Args:
            track: the average; by default ``ema.following``.

        Returns:
            A context manager that yields the live model; also a decorator. Entering raises SwapError while
            another average is live.
        """
        return Block(self.model, partial(self._exchange, track))

    def copy_to(self, model: Any = None, track: str | None = None) -> None:
        """Overwrite a model's weights with the average, permanently.

        Another model receives everything that is not excluded by name: the averages, and the live model's
        frozen weights and ignored buffers.

        Args:
            model: a model with the same names; by default the live one, whose raw weights are lost.
            track: the average; by default ``ema.following``.

        Raises:
            PlanError: a tensor is missing in ``model`` or has another shape; nothing is copied then.
            SwapError: an average is live.
        """
        self._refuse_while_swapped("copy_to")
        self._sync_with_model()
        chosen = self._track(track)
        warn_if_mostly_initial(self._averages.tracks, chosen, "copy_to", 2)
        self._averages.copy_to(model, chosen)

    def reset(self, names: Patterns = None) -> None:
        """Restart averaging from the model's current weights.

        Args:
            names: names or globs of the tensors to restart; by default everything, schedules included.
                ``ema.step`` is kept either way.

        Raises:
            ConfigError: a pattern matches no averaged tensor.
        """
        self._refuse_while_swapped("reset")
        restart = self._averages.restart(names, self.step)

        def start() -> None:
            self._pace.close()
            restart()
            self._clock, self._pending, self._lent = self._clock.acted(), None, None
            self._choice = self._first_choice()

        finished(start) if names is None else restart()

    def metrics(self) -> dict[str, Any]:
        """Numbers to log. Synchronises with the device; call it when you log, not every step.

        Returns:
            step, engine, skipped (updates in which some θ was not finite) and skipped_tensors (by name);
            and for each track decay (last applied), mean_age and half_life in steps, initial_weight, and
            distance ``‖avg-θ‖/‖θ‖``, of a sharded model that of this process's part. With several tracks
            the latter are named ``"short/decay"`` and so on. Under ``Adaptive`` also following, the track,
            and switches, how often that changed.
        """
        self._averages.synchronize()
        self._notice_unseen_steps()
        observed = self._choice if self._adaptive is not None else None
        return metrics_of(self._averages, self.step, observed)

    def _attach(
        self,
        optimizers: Sequence[OptimizerT],
        parameters_of: Callable[[OptimizerT], Iterable[T]],
        follow: Callable[[Attachment, Sequence[OptimizerT]], Sequence[Callable[[], None]]],
    ) -> Attachment:
        """Update after each step of these optimizers; ``follow`` installs the hooks."""
        if self._attachment is not None:
            self._attachment.refuse_another()
            self._attachment.remove()
        check_counts_steps(self._averages.tracks.values())
        self._sync_with_model()
        plan, ops = self._averages.plan, self._averages.ops
        trained = [each for one in optimizers for each in averaged_of(plan, one, parameters_of(one))]
        parameters, values = zip(*trained, strict=True)
        detector = MissedStepDetector(parameters, values, ops)
        self._attachment = Attachment(optimizers, self._update, detector)
        self._attachment.start(follow(self._attachment, optimizers))
        return self._attachment

    def _notice_unseen_steps(self) -> None:
        if self._attachment is not None:
            self._attachment.notice(self.step)

    def _first_choice(self) -> Choice:
        return Choice(self._averages.first.name if self._adaptive is None else self._adaptive.middle)

    def _track(self, name: str | None) -> Track[T]:
        tracks = self.tracks
        name = self.following if name is None else name
        if name not in tracks:
            raise ConfigError(f"track={name!r} is not one of {', '.join(map(repr, tracks))}.")
        return tracks[name]

    def _exchange(self, track: str | None) -> Exchange:
        chosen = self._track(track)
        exchange = self._averages.plan.exchange(self._averages)
        if exchange is None or exchange.owner is not self._averages:
            self._refuse_half_loaded("average_parameters")
            self._notice_unseen_steps()
            self._sync_with_model()
            warn_if_mostly_initial(self._averages.tracks, chosen, "average_parameters", 3)
            return self._averages.exchange(chosen)
        if exchange.track != chosen.name:
            raise SwapError(
                f"track {exchange.track!r} is live; leave its block before entering {chosen.name!r}."
            )
        return exchange

    def _sync_with_model(self) -> None:
        if self._averages.plan.exchange(self._averages) is None:
            self._averages.sync_with_model(self.step)
