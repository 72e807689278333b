"""Prefixes that wrappers add to a model's names: torch.compile, FSDP, checkpointing, DataParallel."""

from __future__ import annotations

# Child names under which a wrapper keeps the model it wraps; torch reserves them.
CHILDREN = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PREFIXES = ("module.", "_orig_mod.")  # put before every name by DataParallel, AveragedModel, torch.compile


def without_wrappers(name: str) -> str:
    """A parameter's name without the children that wrappers add.

    Examples:
        >>> without_wrappers("net._fsdp_wrapped_module.weight")
        'net.weight'
    """
    return ".".join(key for key in name.split(".") if key not in CHILDREN)
