"""Losses between a student and its teacher, as far as they are more than one call of torch.

``0.5·mse_loss(student, teacher)`` is torch's own. In all of them gradients go to the student alone.
"""

from __future__ import annotations

import math

from polyak.errors import ConfigError, MissingExtraError

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError("PyTorch", "torch") from error

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.torch.ranks import mean_over

__all__ = ["DINO", "byol", "consistency", "distillation", "ramp"]


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """The squared distance of two directions.

    ``‖p/‖p‖ - z/‖z‖‖² = 2 - 2·cos(p, z)``, averaged

    Args:
        prediction: of the student's predictor, [..., features].
        target: of the teacher, the same shape.

    Returns:
        A number between 0 and 4.

    Examples:
        >>> byol(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(2.)

    Source: Grill et al. 2020, arXiv 2006.07733, equation 2.
    """
    return (2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=-1)).mean()


def consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two models' probabilities.

    ``mean (softmax(s) - softmax(t))²``

    Args:
        student: logits, [..., classes].
        teacher: logits of the same shape.

    Returns:
        A number between 0 and 2/classes.

    Examples:
        >>> consistency(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 100.0]]))
        tensor(0.2500)

    Source: Tarvainen & Valpola 2017, arXiv 1703.01780, §2.
    """
    return F.mse_loss(student.softmax(-1), teacher.detach().softmax(-1))


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The divergence of softened probabilities.

    ``T²·KL(softmax(t/T) ‖ softmax(s/T))``, averaged; T² keeps the size of gradients whatever T is.

    Args:
        student: logits, [..., classes].
        teacher: logits of the same shape.
        temperature: T > 0; at 1 the probabilities are those of the models.

    Returns:
        A number, at least 0.

    Raises:
        ConfigError: ``temperature`` is not positive.

    Examples:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> float(distillation(logits, logits, temperature=4.0))
        0.0

    Source: Hinton et al. 2015, arXiv 1503.02531, §2.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature}: must be positive.")
    ours, theirs = (x.flatten(0, -2).div(temperature).log_softmax(-1) for x in (student, teacher.detach()))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def ramp(step: int, length: int) -> float:
    """A weight that rises from 0.0067 to 1: a teacher knows little at the start.

    ``exp(-5·(1-x)²)``, ``x = min(step/length, 1)``

    Args:
        step: of training, from 0.
        length: the steps it rises for, at least 1.

    Returns:
        The weight of the teacher's loss.

    Raises:
        ConfigError: ``step`` is negative, or ``length`` not positive.

    Examples:
        >>> ramp(500, 1000), ramp(2000, 1000)
        (0.2865047968601901, 1.0)

    Source: Laine & Aila 2017, arXiv 1610.02242, §2.
    """
    if step < 0 or length <= 0:
        raise ConfigError(f"ramp({step}, {length}): needs a step of at least 0 and a positive length.")
    return math.exp(-5 * (1 - min(step / length, 1)) ** 2)


class DINO(nn.Module):
    """The cross-entropy of a student's answer with its teacher's, centred and sharpened.

    ``-Σ softmax((t-c)/τₜ)·log softmax(s/τₛ)``, averaged; then ``c ← m·c + (1-m)·mean t``

    The centre keeps one output from winning everywhere, the low τₜ keeps all from being equal; without both
    the answers collapse. In training mode each call moves the centre once, after it was used, to the mean
    over all processes: so compare all pairs of views in one call.

    Args:
        dim: outputs of the head.
        student_temperature: τₛ > 0.
        teacher_temperature: τₜ > 0, below τₛ.
        momentum: m, from 0 to 1.

    Raises:
        ConfigError: a temperature is not positive, or ``momentum`` is outside [0, 1].

    Examples:
        >>> loss = DINO(4)
        >>> student, teacher = torch.zeros(2, 4, requires_grad=True), torch.tensor([[8.0, 0, 0, 0]] * 2)
        >>> loss(student, teacher).backward()
        >>> loss.center
        tensor([0.8000, 0.0000, 0.0000, 0.0000])

    Source: Caron et al. 2021, arXiv 2104.14294, algorithm 1.
    """

    center: Tensor

    def __init__(
        self,
        dim: int,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if not (student_temperature > 0 and teacher_temperature > 0 and 0 <= momentum <= 1):
            raise ConfigError(
                f"DINO(student_temperature={student_temperature}, teacher_temperature={teacher_temperature}, "
                f"momentum={momentum}): needs positive temperatures and a momentum from 0 to 1."
            )
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(dim))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of these outputs.

        Args:
            student: [..., dim].
            teacher: the same shape.

        Returns:
            A number, at least 0.
        """
        teacher = teacher.detach()
        target = ((teacher - self.center) / self.teacher_temperature).softmax(-1)
        loss = -(target * (student / self.student_temperature).log_softmax(-1)).sum(-1).mean()
        if self.training:
            self._move(teacher.flatten(0, -2).mean(0))
        return loss

    @torch.no_grad()
    def _move(self, mean: Tensor) -> None:
        if dist.is_initialized():
            mean = mean_over(None, mean)
        self.center.lerp_(mean.to(self.center.dtype), 1 - self.momentum)
