"""``paddle.Model``: ``model.fit(…, callbacks=[WeightAveraging()])``."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

# Before Paddle itself, which it imports without Paddle's warnings; if Paddle is missing, its error says so.
from polyak.trainers._paddle import Averaging, EMAOptions

# isort: split

import paddle
from paddle.callbacks import Callback
from paddle.distributed import ParallelEnv
from paddle.hapi.callbacks import CallbackList

from polyak._core.optimizer_hook import Attachment
from polyak._core.resume_file import read_state
from polyak._core.track import DEFAULT_DECAY, Decays, check_counts_steps
from polyak.errors import CheckpointError, ConfigError, SwapError
from polyak.paddle import tensors
from polyak.paddle.random_numbers import same_random_numbers
from polyak.trainers._averaging import Folder, arguments_in, numbers, say_beside
from polyak.trainers._evaluations import Evaluate

if TYPE_CHECKING:
    from typing_extensions import Unpack

SUFFIX = ".polyak.safetensors"  # beside path.pdparams: the complete state
PLACE = "polyak_average"  # attribute of the model: the callback whose average its files have beside them


class WeightAveraging(Averaging, Callback):
    """Average the network's weights after each optimizer step; validate, evaluate and predict on the average.

    Training, the network after ``fit`` and the weights that ``model.save`` writes (also for ``save_dir`` and
    ``EarlyStopping``) are the raw ones. Beside each ``path.pdparams`` lies ``path.polyak.safetensors``, the
    complete average: ``load`` continues it bit for bit.

    Args:
        decay: β, a schedule, several by name, or an ``Adaptive``.
        evaluate: the track to validate, evaluate and predict on, or "raw"; the first track if None. "both"
            and lists validate each: the metrics of all but the first are ``raw/acc`` or ``ema=long/acc``.
        report: the folder to write ``report.html`` into at the end, with the curves of the logs there.
        options: every other argument of ``polyak.paddle.EMA``.

    Raises:
        ConfigError: an argument is invalid.
    """

    model: Any  # which Paddle says may be None
    _begins = "model.fit() begins"

    def __init__(
        self,
        decay: Decays = DEFAULT_DECAY,
        *,
        evaluate: Evaluate = None,
        report: Folder = None,
        **options: Unpack[EMAOptions],
    ) -> None:
        Averaging.__init__(self, decay, evaluate, options, report)
        Callback.__init__(self)
        self.apart: dict[str, Any] = {}  # the last evaluation's metrics of all weights but the first
        self._attachment: Attachment | None = None
        self._followed: object = None  # the optimizer it is attached to

    def save(self, path: str, training: bool = True, track: str | None = None) -> None:
        """Write the average as ``model.save`` writes a network; it opens without polyak.

        Args:
            path: without an ending: ``path.pdparams`` is written.
            training: False writes what Paddle's inference loads instead, as in ``model.save``.
            track: which average; the evaluated one if None.
        """
        track = self._saved_track(track)
        with self.ema.average_parameters(track) as network:
            if training:
                paddle.save(network.state_dict(), f"{path}.pdparams")
            else:
                self.model.save(path, training=False)
        if training:
            say_beside(f"{path}.pdparams", self.ema, track)

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if PLACE not in vars(model):
            # hapi has no event after an exception in an epoch, nor for saving.
            model._run_one_epoch = partial(_run, model, model._run_one_epoch)
            model.save = partial(_save, model, model.save)
        setattr(model, PLACE, self)

    def on_train_begin(self, logs: object = None) -> None:
        if not paddle.in_dynamic_mode():
            raise ConfigError(
                "callbacks: WeightAveraging needs the dynamic graph, which is Paddle's default: leave out "
                "paddle.enable_static()."
            )
        network = self.model.network
        if self._ema is None or self._ema.model is not network:
            check_counts_steps(self._make(network).tracks.values())
            self._attachment = None

    def on_train_end(self, logs: object = None) -> None:
        self._report()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs.update(numbers(self.ema))

    def on_eval_begin(self, logs: Any = None) -> None:
        own: list[str] = logs["metrics"]
        # The progress bar, which comes before us, has taken this list and shows what is added to it. The
        # numbers are for those who log, who come after us.
        own += [self._evaluations[weights] + name for weights in self._others for name in own]
        logs["metrics"] = [*own, *numbers(self.ema)]

    def epoch(self, run: Callable[..., Any], loader: Any, callbacks: CallbackList, mode: str) -> Any:
        """An epoch of training, evaluation or prediction, each with the right weights in the network."""
        if mode == "train":
            with self._following():
                return run(loader, callbacks, mode, {})
        logs: dict[str, Any] = {}  # hapi's own is shared by all models
        if mode == "eval":
            self.apart = {}
            for weights in self._others:
                with _without_side_effects(self.model), self._with_weights(weights):
                    found = run(loader, CallbackList([]), mode, {})
                names = self.model._metrics_name()
                self.apart |= self._prefixed(weights, {name: found[name] for name in names})
            logs = self.apart | numbers(self.ema)
        with self._with_weights(self._plain):
            return run(loader, callbacks, mode, logs)

    @contextmanager
    def _following(self) -> Generator[None]:
        optimizer = self.model._optimizer
        if self._attachment is None or self._followed is not optimizer:
            self._attachment, self._followed = self.ema.attach(optimizer), optimizer
        self._attachment.start()
        try:
            yield
        finally:
            self._attachment.remove()


def load(
    path: str, model: paddle.Model, *, evaluate: Evaluate = None, **options: Unpack[EMAOptions]
) -> WeightAveraging:
    """Read what ``model.save`` wrote: raw weights and optimizer into ``model``, the average into a callback.

    From there ``model.fit(…, callbacks=[average])`` continues, ``average.save("average")`` writes it.

    Args:
        path: as given to ``model.save``, without an ending.
        model: prepared.
        evaluate: as of ``WeightAveraging``.
        options: ``include``, ``exclude``, ``buffers``, ``dtype`` … as passed to ``WeightAveraging``.

    Returns:
        The callback, ready to evaluate and to continue.

    Raises:
        CheckpointError: there is no average beside the weights, or it does not match the model or the
            options.
    """
    if not os.path.exists(f"{path}{SUFFIX}"):
        raise CheckpointError(
            f"{path}{SUFFIX} is missing: {path}.pdparams was written without WeightAveraging among the "
            "callbacks, or not to its end. Load another one, or model.load(path) to average from there."
        )
    state = read_state(f"{path}{SUFFIX}", tensors, {})
    decays, options = arguments_in(state, options)
    average = WeightAveraging(decays, evaluate=evaluate, **options)
    model.load(path)
    average.set_model(model)
    average.on_train_begin()
    average.ema.load_state_dict(state)
    return average


def _run(model: Any, run: Callable[..., Any], loader: Any, callbacks: CallbackList, mode: str) -> Any:
    every = cast("list[Callback]", callbacks.callbacks)
    given = [one for one in every if isinstance(one, WeightAveraging)]
    if len(given) > 1:
        raise ConfigError(
            "callbacks: several WeightAveraging, but a network can hold one average at a time. Keep several "
            'averages in one, as in WeightAveraging({"short": 0.999, "long": 0.9999}).'
        )
    if given:
        return given[0].epoch(run, loader, callbacks, mode)
    if mode == "train":
        setattr(model, PLACE, None)  # its network is no longer the one in training
    return run(loader, callbacks, mode)


def _save(model: Any, save: Callable[..., None], path: str, training: bool = True) -> None:
    average: WeightAveraging | None = getattr(model, PLACE)
    if average is None or not training or ParallelEnv().local_rank != 0:
        save(path, training)
        return
    if average.ema.live != "raw":
        raise SwapError(
            f"model.save: the network holds the average {average.ema.live!r} now, which would be saved as "
            "the raw weights. Save when the evaluation is over, in on_eval_end."
        )
    save(path, training)
    average.ema.save(f"{path}{SUFFIX}", resumable=True)
    say_beside(f"{path}.pdparams", average.ema, "raw")


@contextmanager
def _without_side_effects(model: Any) -> Generator[None]:
    """An evaluation in this block changes neither the iteration count nor the random state."""
    iterations, stop = cast(object, getattr(model, "num_iters", None)), model.stop_training  # deleted at 0
    with same_random_numbers():
        yield
    model.num_iters, model.stop_training = iterations, stop
