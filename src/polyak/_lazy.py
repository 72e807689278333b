"""Names of a package that are imported from their modules when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package that does not import all it offers.

    Python calls a module's ``__getattr__`` for a name that the module does not hold (PEP 562). What was
    imported is kept in the package, so each name is looked up once. Type checkers and readers need the
    imports as well, under ``TYPE_CHECKING``::

        if TYPE_CHECKING:
            from polyak.torch.teacher import Teacher as Teacher

        __getattr__, __dir__ = lazy_names(__name__, {"polyak.torch.teacher": ("Teacher",)})

    Args:
        package: its ``__name__``.
        names: those that each module defines, by the module's full name. None may be called like its module:
            importing ``polyak.schedules.replay`` sets that name in ``polyak.schedules`` to the module.

    Returns:
        The two functions.
    """
    module_of = {name: module for module, defined in names.items() for name in defined}

    def first_use(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return first_use, listed
