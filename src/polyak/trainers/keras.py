"""Keras 3 on its torch backend: ``model.fit(…, callbacks=[WeightAveraging()])``."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from polyak._core.track import DEFAULT_DECAY, Decays, check_counts_steps
from polyak._files.header import Header
from polyak._foreign.keras import MARK, mark
from polyak.errors import CheckpointError, ConfigError, MissingExtraError, PlanError
from polyak.torch.random_numbers import same_random_numbers
from polyak.trainers._averaging import Folder, arguments_in, closing, header_of, numbers, start_in
from polyak.trainers._common import Averaging, EMAOptions
from polyak.trainers._evaluations import Evaluate

if TYPE_CHECKING:
    from keras import Operation
    from keras.callbacks import Callback, CallbackList
    from keras.config import backend
    from typing_extensions import Unpack
else:
    try:
        from keras import Operation
        from keras.callbacks import Callback, CallbackList
        from keras.config import backend
    except ModuleNotFoundError as error:
        if error.name != "keras":
            raise
        raise MissingExtraError("Keras", "keras") from error

PLACE = "polyak_average"  # attribute of the model, and so the group in the files that Keras writes of it
STATISTICS = ("moving_mean", "moving_variance")


class WeightAveraging(Averaging, Callback):
    """Average the model's weights after each optimizer step; validate, evaluate and predict on the average.

    Training, the model after ``fit`` and the weights in Keras's files are the raw ones. Beside them each file
    that Keras writes of the model (``save``, ``save_weights``, ``ModelCheckpoint``, ``BackupAndRestore``)
    holds the complete average: ``BackupAndRestore`` continues it bit for bit, ``load`` takes it out.

    Args:
        decay: β, a schedule, a function of the step, several by name, or an ``Adaptive``, whose
            followed track counts as the first.
        evaluate: the track to validate, evaluate and predict on, or "raw"; the first track if None. "both"
            and lists validate each, and evaluate each with ``return_dict=True``: metrics of all but the first
            are ``raw/val_loss`` or ``ema=long/val_loss``, without ``val_`` outside ``fit``.
        report: the folder to write ``report.html`` into at the end, with the curves of the logs there,
            such as those of ``CSVLogger``.
        options: every other argument of ``polyak.EMA``.

    Raises:
        ConfigError: an argument is invalid, or Keras runs on another backend.
    """

    _begins = "the first epoch of model.fit() begins"

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
        if cast(str, backend()) != "torch":
            raise ConfigError(
                f"Keras runs on {backend()}: set KERAS_BACKEND=torch in the environment before its import."
            )
        self._given: Any = None  # the model that is trained or evaluated now
        self._averaged: Any = None  # the model that there is an average of
        self._names: list[str] = []
        self.part = _SavedPart(self)
        self._steps = 0  # that the optimizer had taken at the last call
        self._thread = 0
        self._live = ExitStack()  # open while the average is in the model

    def save(self, path: str | os.PathLike[str], track: str | None = None) -> None:
        """Write the average as ``model.save`` writes a model; it opens without polyak.

        Args:
            path: ends in ``.keras``.
            track: which average; the evaluated one if None.
        """
        track = self._saved_track(track)
        with self.ema.average_parameters(track), self.part.left_out(header_of(self.ema, track)):
            self._averaged.save(path)

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self._given = model
        setattr(model, PLACE, self.part)

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.begin()  # no sooner: while training begins, other callbacks load weights
        self._steps = int(self._averaged.optimizer.iterations)
        self._thread = threading.get_ident()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if threading.get_ident() != self._thread:
            raise ConfigError(
                "callbacks=WeightAveraging(…): outside a list Keras calls it while the next step is running. "
                "Write callbacks=[WeightAveraging(…)]."
            )
        self.follow()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for prefix in [self._evaluations[weights] for weights in self._others]:
            found = f"val_{prefix}"  # since fit puts "val_" before what evaluate returns
            for name in [name for name in logs if name.startswith(found)]:
                logs[f"{prefix}val_{name.removeprefix(found)}"] = logs.pop(name)
        logs.update(numbers(self.ema))

    def on_train_end(self, logs: object = None) -> None:
        self.begin()  # a run restored at its end has begun no epoch
        self._report()

    def on_test_begin(self, logs: object = None) -> None:
        if self._evaluations.keys() == {"raw"}:
            return
        if self._averaged is not self._given:
            raise PlanError(
                f"there is no average of {self._given.name} to evaluate: train it with this callback first, "
                "or take the callback out of a file with polyak.trainers.keras.load."
            )
        self._live.enter_context(self._with_weights(self._plain))

    def on_test_end(self, logs: object = None) -> None:
        self._live.close()

    on_predict_begin, on_predict_end = on_test_begin, on_test_end

    def begin(self) -> None:
        """Make an average of the model's current weights, or use the one loaded with them."""
        model, part = self._given, self.part
        if self._averaged is model and not part.was_read:
            return
        found = part.found
        self._names = found["names"] if found else _paths(model)
        began = start_in(found["ema"]) if found else None
        ema = self._make(weights(model, self._names), self._run(), began)
        check_counts_steps(ema.tracks.values())
        if found:
            ema.load_state_dict(found["ema"])
        elif part.was_read:
            warnings.warn("the loaded weights contain no average; averaging starts from them.", stacklevel=2)
        part.found, part.was_read = None, False
        if self._averaged is not model:
            self._averaged = model
            # No event is sure to come after an exception or an interrupt.
            model.evaluate = closing(self._live, self._evaluating_each(model, model.evaluate))
            model.predict = closing(self._live, model.predict)

    def _run(self) -> float | None:
        """Optimizer steps of the starting run, if Keras knows them."""
        given = cast("dict[str, Any]", self.params or {})
        if not given.get("steps") or not given.get("epochs"):
            return None
        micro_batches: int = self._given.optimizer.gradient_accumulation_steps or 1
        return float(given["epochs"] * given["steps"] // micro_batches)

    def follow(self) -> None:
        """Update the average with the optimizer steps since the last call."""
        steps = int(self._averaged.optimizer.iterations)
        if steps > self._steps:  # a micro-batch does not count
            self.ema.update(steps - self._steps)
        self._steps = steps

    def _evaluating_each(self, model: Any, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def each(*args: Any, **kwargs: Any) -> Any:
            asides: dict[str, float] = {}
            given: Any = kwargs.get("callbacks") or ()
            listening = self in (given.callbacks if isinstance(given, CallbackList) else given)
            several = listening and self._averaged is model and kwargs.get("return_dict")
            for weights in self._others if several else ():
                silent = {"callbacks": CallbackList(model=model)}
                with same_random_numbers(), self._with_weights(weights):
                    asides |= self._prefixed(weights, evaluate(*args, **kwargs | silent))
            metrics = evaluate(*args, **kwargs)
            return {**metrics, **asides} if asides else metrics

        return each

    @property
    def has_begun(self) -> bool:
        """Whether there is an average."""
        return self._ema is not None

    def saved_state(self) -> dict[str, Any] | None:
        """The state of the average for a file of the model."""
        if self._ema is None:
            return None
        if self._ema.live == "raw":
            self.follow()  # another callback may save before this one has heard of the step
        return {"names": self._names, "ema": self._ema.state_dict()}


def load(
    path: str | os.PathLike[str], model: Any, *, evaluate: Evaluate = None, **options: Unpack[EMAOptions]
) -> WeightAveraging:
    """Read a file of Keras: the raw weights into ``model``, the average into the callback that is returned.

    From there ``average.save("average.keras")``, ``model.fit(…, callbacks=[average])`` or ``average.ema``.

    Args:
        path: a ``.keras`` or ``.weights.h5``, written while ``WeightAveraging`` was among the callbacks.
        model: built, or what ``keras.saving.load_model`` made of the file.
        evaluate: as of ``WeightAveraging``.
        options: ``include``, ``exclude``, ``buffers``, ``dtype`` … as passed to ``WeightAveraging``.

    Returns:
        The callback, ready to evaluate and to continue.

    Raises:
        CheckpointError: the file holds no average, or does not match the model or the options.
    """
    part = _SavedPart(None)
    setattr(model, PLACE, part)
    if model.optimizer is not None and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)  # Keras passes over the state of one that is not
    model.load_weights(path)
    if part.found is None:
        raise CheckpointError(f"{path} holds no average: WeightAveraging was not among the callbacks.")
    decays, options = arguments_in(part.found["ema"], options)
    average = WeightAveraging(decays, evaluate=evaluate, **options)
    average.part.found = part.found
    average.set_model(model)
    average.begin()
    return average


def weights(model: Any, names: Sequence[str] | None = None) -> nn.Module:
    """The weights of a Keras model as a module for ``polyak.EMA``, for custom training loops.

    A Keras model is an ``nn.Module`` whose layers are hidden from torch: the moving statistics of
    BatchNormalization would not be averaged. ``ema.module`` is refused: evaluate the model inside
    ``ema.average_parameters()``.

    Args:
        model: built.
        names: of the weights, in the order of ``model.weights``; by default their paths in the model.

    Returns:
        A module on the same tensors, without a forward pass.

    Raises:
        PlanError: two weights have one name.
        CheckpointError: there are more names or fewer than weights.

    Examples:
        >>> import keras, polyak
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")])
        >>> ema = polyak.EMA(weights(model), decay=0.999)
        >>> list(ema.tracks["average"].tensors)
        ['head.kernel', 'head.bias']
    """
    names = _paths(model) if names is None else names
    if len(names) != len(model.weights):
        raise CheckpointError(
            f"the average is of {len(names)} weights, {model.name} has {len(model.weights)}."
        )
    root = nn.Module()
    for name, weight in zip(names, model.weights, strict=True):
        *path, key = name.split(".")
        holder = root
        for part in path:
            holder = _child(holder, part)
        # Put there by hand, because nn.Module refuses names of its own methods, as a layer may have.
        store: dict[str, Any] = holder._buffers if key in STATISTICS else holder._parameters  # pyright: ignore[reportPrivateUsage]
        store[key] = weight.value
    return root


def _child(module: nn.Module, name: str) -> nn.Module:
    return cast(nn.Module, module._modules.setdefault(name, nn.Module()))  # pyright: ignore[reportPrivateUsage]


def _paths(model: Any) -> list[str]:
    paths = [weight.path.removeprefix(f"{model.name}/").replace("/", ".") for weight in model.weights]
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise PlanError(f"{model.name} has several weights named {', '.join(twice)}: give its layers names.")
    return paths


class _SavedPart(Operation):
    """A part of the model for Keras, which writes and reads the average with it."""

    def __init__(self, average: WeightAveraging | None) -> None:
        super().__init__(name=PLACE)
        self._average = average
        self._header: Header | None = None  # of a file without the average beside its weights
        self.found: dict[str, Any] | None = None  # in the file read last
        self.was_read = False

    @contextmanager
    def left_out(self, header: Header) -> Generator[None]:
        average, self._average, self._header = self._average, None, header
        try:
            yield
        finally:
            self._average, self._header = average, None

    def save_own_variables(self, store: Any) -> None:
        if self._average is not None and (state := self._average.saved_state()) is not None:
            file = io.BytesIO()
            torch.save(state, file)
            store["state"] = torch.frombuffer(file.getbuffer(), dtype=torch.uint8)

    def save_assets(self, folder: str) -> None:
        """Describe the weights in a ``.keras`` file, for ``polyak inspect`` without Keras."""
        if (headers := self._headers()) is not None:
            (Path(folder) / MARK).write_text(mark(*headers))

    def _headers(self) -> tuple[Header, Sequence[Header]] | None:
        if self._header is not None:
            return self._header, ()
        if self._average is None or not self._average.has_begun:
            return None
        ema = self._average.ema
        return header_of(ema, "raw"), [header_of(ema, track) for track in ema.tracks]

    def load_own_variables(self, store: Any) -> None:
        self.found, self.was_read = None, True
        if "state" in store:
            file = io.BytesIO(store["state"].tobytes())
            self.found = torch.load(file, map_location="cpu", weights_only=True)
