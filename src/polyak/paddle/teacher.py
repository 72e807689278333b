"""A teacher: the average of a student, as a layer that answers without gradients."""

# pyright: reportPrivateUsage=false
# Paddle names what a layer registers and saves with an underscore.

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, cast

import paddle
from paddle import Tensor, nn
from paddle.optimizer import Optimizer
from typing_extensions import TypeVar  # whose type variables have defaults

from polyak._core.optimizer_hook import Attachment
from polyak._core.teacher import BaseTeacher, BatchNormMode, check_teacher
from polyak.errors import SwapError
from polyak.paddle.batchnorm import BatchNorm
from polyak.paddle.ema import EMA
from polyak.paddle.tensor_map import NotAveraged, stores_of
from polyak.paddle.tensors import duplicate
from polyak.schedules import ByName
from polyak.schedules.decay import DecayLike

if TYPE_CHECKING:
    from polyak._core.state_dict import State

LayerT = TypeVar("LayerT", bound=nn.Layer, default=nn.Layer)


class Teacher(BaseTeacher[EMA[LayerT]], NotAveraged, Generic[LayerT]):
    """The average of a student as a layer: put it beside the student and learn from its answers.

    ``teacherₜ = βₜ·teacherₜ₋₁ + (1-βₜ)·studentₜ``, ``teacher₀ = student₀``

    It answers without gradients and in evaluation mode, whatever ``train()`` is called on it or on a layer
    that holds it. ``state_dict()`` holds the averaged tensors as ``module.<name>`` and, as ``_extra_state``,
    counters, schedule and history: saved and loaded with the layer that holds it, it continues bit for bit.
    ``to()`` leaves it alone: it follows its student at the next call or update.

    Args:
        student: the layer to average, wrapped by ``paddle.DataParallel`` or not; it stays yours, and is no
            part of the teacher. A part of a model, ``model.encoder``, gives a teacher of that part.
        decay: β or a schedule, such as ``Cosine(0.996, 1.0, total=steps)``; one, since there is one teacher.
        batchnorm: the statistics with which BatchNorm answers. "average": the average of the student's
            running statistics, as in Mean Teacher and in detectors. "batch": those of the batch, as in BYOL
            and MoCo; the running ones are still averaged, and not written by answering.
        options: those of ``EMA``: ``include``, ``exclude``, ``buffers``, ``every``, ``start``, …

    Memory: one model beside the student. That of a 16-bit student is float32, and inputs are cast to it.

    Raises:
        ConfigError: several decays, an unknown ``batchnorm``, or an invalid option.
        PlanError: as of ``EMA``.

    Examples:
        >>> student = nn.Linear(2, 1)
        >>> teacher = Teacher(student, decay=0.99)
        >>> optimizer = paddle.optimizer.SGD(0.1, parameters=student.parameters())
        >>> x = paddle.ones([4, 2])
        >>> nn.functional.mse_loss(student(x + 0.1), teacher(x)).backward()
        >>> optimizer.step()
        >>> teacher.update()
        >>> sorted(teacher.state_dict())
        ['_extra_state', 'module.bias', 'module.weight']

    Source: Tarvainen & Valpola 2017, arXiv 1703.01780; Grill et al. 2020, arXiv 2006.07733.
    """

    def __init__(
        self,
        student: LayerT,
        decay: DecayLike | ByName = 0.996,
        *,
        batchnorm: BatchNormMode = "average",
        **options: Any,
    ) -> None:
        super().__init__()
        check_teacher(decay, batchnorm)
        self._begin(EMA(student, decay, **options), batchnorm)
        self._norms: Sequence[BatchNorm] = ()
        self._wide: Any = None  # the dtype to cast inputs to, where the student computes in another
        self._current()

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes a layer on the averages of its own EMA, which follows the student's copy."""
        return self.__dict__ | {"_sub_layers": {}, "_norms": ()}

    @property
    def module(self) -> LayerT:
        """The averaged layer itself, always current, in evaluation mode; see ``EMA.module``."""
        return self._current()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The averaged layer's answer, without gradients to its weights or to its inputs."""
        layer = self._current()
        given: Any = cast(Any, paddle.utils).map_structure(self._as_input, [args, kwargs])
        kept: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        with paddle.no_grad():
            try:
                for one in layer.sublayers(include_self=True):  # a parent's train() sets each layer's mode
                    one.training = False
                for norm in self._norms:  # batch statistics; the running ones are written in copies
                    norm.training = True
                    for store in stores_of(norm)[:2]:
                        found = {key: store.get(key) for key in ("_mean", "_variance")}
                        kept += [(store, key, value) for key, value in found.items() if value is not None]
                for store, key, statistic in kept:
                    store[key] = duplicate(statistic)
                return layer(*given[0], **given[1])
            finally:
                for store, key, statistic in kept:
                    store[key] = statistic
                for norm in self._norms:
                    norm.training = False

    def attach(self, optimizer: Optimizer | Sequence[Optimizer]) -> Attachment:
        """Update after each step that the optimizer takes, instead of calling ``update``. See ``EMA.attach``.

        Args:
            optimizer: the one that trains the student, or those that step together.

        Returns:
            A handle whose ``remove()`` ends it.
        """
        return self.ema.attach(optimizer)

    def named_sublayers(self, *args: Any, **kwargs: Any) -> Any:
        """As of any layer; the averaged one is made current first."""
        with suppress(SwapError):  # while the student holds another average: as it was
            self._current()
        found: Any = super()
        return found.named_sublayers(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _state_dict_impl(
        self,
        destination: Any = None,
        include_sublayers: bool = True,
        structured_name_prefix: str = "",
        include_non_persistable_buffer: bool = False,
        use_hook: bool = True,
        *rest: Any,
        **more: Any,
    ) -> Any:
        """Paddle calls this for ``state_dict`` and, without hooks, for ``set_state_dict``."""
        self._current()
        base: Any = super()
        options = include_sublayers, structured_name_prefix, include_non_persistable_buffer, use_hook
        found = base._state_dict_impl(destination, *options, *rest, **more)
        if not include_non_persistable_buffer:  # jit.save asks for these, and takes nothing but tensors
            from polyak._core.save_and_load import state_without_tensors  # see ``PersistentEMA``

            extra = state_without_tensors(self.ema)
            found[f"{structured_name_prefix}_extra_state"] = extra if use_hook else ExtraState(self, extra)
        return found

    def _as_input(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        detached = value.detach()
        return detached.astype(self._wide) if self._wide and value.is_floating_point() else detached

    def _current(self) -> LayerT:
        """Register the layer on the present averages: it is another when the student moved or changed."""
        layer = self.ema.module
        layers = stores_of(self).layers
        if layers.get("module") is not layer:
            layers["module"] = layer
            mine, theirs = (next(iter(of.parameters())).dtype for of in (layer, self.ema.model))
            self._wide = None if mine == theirs else mine
            found = [one for one in layer.sublayers(include_self=True) if isinstance(one, BatchNorm)]
            self._norms = found if self.batchnorm == "batch" else ()
        return layer


class ExtraState(dict[str, Any]):
    """Counters, schedule and history where ``set_state_dict`` looks for what to set: it calls ``set_value``.

    Args:
        teacher: whose they are.
        state: the values.
    """

    def __init__(self, teacher: Teacher[Any], state: State) -> None:
        super().__init__(state)
        self._ema = teacher.ema
        self._layers: dict[str, Any] = stores_of(teacher).layers

    def set_value(self, state: State) -> None:
        """Continue from a saved state, after the tensors of the averaged layer were set.

        Raises:
            CheckpointError: it is malformed, or of another schedule.
        """
        from polyak._core.state_dict import with_tensors  # see ``PersistentEMA``

        # Not the current layer: Paddle may have given the registered one's tensors other memory.
        self._ema.load_state_dict(with_tensors(state, self._layers["module"].state_dict()))
