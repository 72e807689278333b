"""What people call an averaged copy of a model: keys of a checkpoint, and names of child modules."""

from __future__ import annotations

import re

_AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?|avg|shadow)(_|$)|_ema$|^ema", re.IGNORECASE)
_OPTIMIZER = re.compile(r"^opt(im(izer)?s?)?(_states?)?(_dict)?$", re.IGNORECASE)
# The averaged copy's name → that of the model it follows, where the copy is not called an average.
_PARTNERS = (
    (re.compile(r"(.*)teacher(.*)"), (r"\1student\2",)),  # DINO, mean teachers
    (re.compile(r"(.*encoder)_k"), (r"\1_q",)),  # MoCo
    (re.compile(r"(.*encoder)_m"), (r"\1",)),  # ALBEF
    (re.compile(r"momentum_(.*)"), (r"base_\1", r"online_\1", r"\1")),
    (re.compile(r"target_(.*)"), (r"online_\1", r"context_\1")),  # BYOL, I-JEPA
    (re.compile(r"key_(.*)"), (r"query_\1",)),
)


def is_average(name: str) -> bool:
    """Whether a name calls what it names an average.

    Examples:
        >>> is_average("model_ema"), is_average("model_avg"), is_average("cinema")
        (True, True, False)
    """
    return _AVERAGE.search(name) is not None


def is_optimizer(name: str) -> bool:
    """Whether a key is one under which optimizers are kept."""
    return _OPTIMIZER.match(name) is not None


def partners(name: str) -> tuple[str, ...]:
    """The names of the model that a module of this name would be the average of.

    Examples:
        >>> partners("teacher_backbone"), partners("encoder_k"), partners("head")
        (('student_backbone',), ('encoder_q',), ())
    """
    for pattern, templates in _PARTNERS:
        if (match := pattern.fullmatch(name)) is not None:
            return tuple(match.expand(template) for template in templates)
    return ()
