"""A teacher: the average of a student, as a module that answers without gradients."""

# pyright: reportPrivateUsage=false
# torch names what a module registers, saves and loads with an underscore, and means subclasses to extend it.

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from typing_extensions import TypeVar  # whose type variables have defaults

from polyak._core.optimizer_hook import Attachment
from polyak._core.teacher import BaseTeacher, BatchNormMode, check_teacher
from polyak.errors import CheckpointError, SwapError
from polyak.schedules import ByName
from polyak.schedules.decay import DecayLike
from polyak.torch.ema import EMA
from polyak.torch.tensor_map import NotAveraged
from polyak.torch.untraced import untraced_methods

ModuleT = TypeVar("ModuleT", bound=nn.Module, default=nn.Module)


@untraced_methods("_current")
class Teacher(BaseTeacher[EMA[ModuleT]], NotAveraged, Generic[ModuleT]):
    """The average of a student as a module: put it beside the student and learn from its answers.

    ``teacherₜ = βₜ·teacherₜ₋₁ + (1-βₜ)·studentₜ``, ``teacher₀ = student₀``

    It answers without gradients and in evaluation mode, whatever ``train()`` is called on it or on a module
    that holds it. ``state_dict()`` holds the averaged tensors as ``module.<name>`` and, in the module's extra
    state, counters, schedule and history: saved and loaded with the model that holds it, it continues bit for
    bit. ``to()`` and ``half()`` leave it alone: it follows its student at the next call or update.

    Args:
        student: the module to average, wrapped by DDP or ``torch.compile`` or not; it stays yours, and is no
            part of the teacher. A part of a model, ``model.encoder``, gives a teacher of that part.
        decay: β or a schedule, such as ``Cosine(0.996, 1.0, total=steps)``; one, since there is one teacher.
        batchnorm: the statistics with which BatchNorm answers. "average": the average of the student's
            running statistics, as in Mean Teacher and in detectors. "batch": those of the batch, as in BYOL
            and MoCo; the running ones are still averaged, and not written by answering.
        options: those of ``EMA``: ``include``, ``exclude``, ``buffers``, ``every``, ``start``, …

    Memory: one model beside the student. That of a 16-bit student is float32 and answers under autocast.

    Raises:
        ConfigError: several decays, an unknown ``batchnorm``, or an invalid option.
        PlanError: as of ``EMA``.

    Examples:
        >>> student = nn.Linear(2, 1)
        >>> teacher = Teacher(student, decay=0.99)
        >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        >>> x = torch.ones(4, 2)
        >>> nn.functional.mse_loss(student(x + 0.1), teacher(x)).backward()
        >>> optimizer.step()
        >>> teacher.update()
        >>> sorted(teacher.state_dict())
        ['_extra_state', 'module.bias', 'module.weight']

    Source: Tarvainen & Valpola 2017, arXiv 1703.01780; Grill et al. 2020, arXiv 2006.07733.
    """

    def __init__(
        self,
        student: ModuleT,
        decay: DecayLike | ByName = 0.996,
        *,
        batchnorm: BatchNormMode = "average",
        **options: Any,
    ) -> None:
        super().__init__()
        check_teacher(decay, batchnorm)
        self.training = False
        self._begin(EMA(student, decay, **options), batchnorm)
        self._norms: Sequence[_BatchNorm] = ()
        # Set where the student computes in another dtype: to autocast to, or to cast inputs to.
        self._half: torch.dtype | None = None
        self._wide: torch.dtype | None = None
        self._device = ""
        self._looking = False
        self._current()

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes a module on the averages of its own EMA, which follows the student's copy."""
        return self.__dict__ | {"_modules": {}, "_norms": ()}

    @property
    def module(self) -> ModuleT:
        """The averaged module itself, always current, in evaluation mode; see ``EMA.module``."""
        return self._current()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The averaged module's answer, without gradients to its weights or to its inputs."""
        module = self._current()
        # Nothing where dtypes agree: a disabled autocast would end one that is around the call.
        cast = torch.autocast(self._device, self._half) if self._half else nullcontext()
        args, kwargs = tree_map_only(Tensor, self._as_input, (args, kwargs))
        # no_grad, because the student's backward needs the answer, which inference_mode would forbid.
        with torch.no_grad(), cast:
            try:
                for one in module.modules():  # other code may have called train() on each module it found
                    one.training = False
                for norm in self._norms:  # batch statistics, and nothing is written
                    norm.training, norm.track_running_stats = True, False
                return module(*args, **kwargs)
            finally:
                for norm in self._norms:
                    norm.training, norm.track_running_stats = False, True

    def attach(self, optimizer: Optimizer | Sequence[Optimizer]) -> Attachment:
        """Update after each step that the optimizer takes, instead of calling ``update``. See ``EMA.attach``.

        Args:
            optimizer: the one that trains the student, or those that step together.

        Returns:
            A handle whose ``remove()`` ends it.
        """
        return self.ema.attach(optimizer)

    def get_extra_state(self) -> Tensor:
        """Counters, schedule and history: bytes in a tensor, since safetensors files hold nothing else."""
        from polyak._core.save_and_load import state_without_tensors  # see ``PersistentEMA``

        file = io.BytesIO()
        torch.save(state_without_tensors(self.ema), file)
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Does nothing: it is loaded together with the tensors."""

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; the averaged one is made current first."""
        if not self._looking:  # a student that holds its teacher is searched to make it current
            with suppress(SwapError):  # while the student holds another average: as it was
                self._current()
        found: Any = super()
        return found.named_modules(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Teacher[ModuleT]:
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._current()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load the EMA, all of it or nothing, before torch copies the tensors one by one.

        Without an extra state, as in a checkpoint of the student alone, its counters stay.
        """
        self._current()
        if (extra := state_dict.get(f"{prefix}_extra_state")) is not None:
            from polyak._core.state_dict import with_tensors  # see ``PersistentEMA``

            begins = f"{prefix}module."
            saved = {key.removeprefix(begins): t for key, t in state_dict.items() if key.startswith(begins)}
            self.ema.load_state_dict(with_tensors(unpacked(extra), saved), strict)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _as_input(self, tensor: Tensor) -> Tensor:
        detached = tensor.detach()
        return detached.to(self._wide) if self._wide and tensor.is_floating_point() else detached

    def _current(self) -> ModuleT:
        """Register the module on the present averages: it is another when the student moved or changed."""
        self._looking = True
        try:
            module = self.ema.module
        finally:
            self._looking = False
        if self._modules.get("module") is not module:
            self._modules["module"] = module
            mine, theirs = list(module.parameters()), list(self.ema.model.parameters())
            self._half, self._device = half_of([*mine, *theirs]), mine[0].device.type
            self._wide = None if self._half or mine[0].dtype == theirs[0].dtype else mine[0].dtype
            found = [one for one in module.modules() if isinstance(one, _BatchNorm)]
            norms = [norm for norm in found if norm.track_running_stats]  # the others never use any
            self._norms = norms if self.batchnorm == "batch" else ()
        return module


def unpacked(extra: Any) -> dict[str, Any]:
    """The values that ``get_extra_state`` packed.

    Raises:
        CheckpointError: they cannot be read.
    """
    try:
        return torch.load(io.BytesIO(bytes(extra.tolist())), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise anything
        raise CheckpointError(f"the extra state is not that of a polyak.Teacher: {error!r}") from error


def half_of(tensors: Sequence[Tensor]) -> torch.dtype | None:
    """The 16-bit dtype in which tensors that have it and others compute together; None if they agree."""
    dtypes = {tensor.dtype for tensor in tensors}
    halves = dtypes & {torch.bfloat16, torch.float16}
    return halves.pop() if halves and len(dtypes) > 1 else None
