"""The Python side of the C kernel, shared by ``polyak.torch`` and ``polyak.paddle``."""

from __future__ import annotations

from typing import Any

from polyak._kernel.pair import Pair

try:
    from polyak._kernel import native
except ImportError:  # no C compiler was there when polyak was installed
    native = None

# pip would install the wheel it kept from last time, or one that was built without the kernel.
NO_KERNEL = (
    "the C kernel was not built: with a C compiler, "
    "pip install --force-reinstall --no-deps --no-cache-dir --no-binary polyak polyak"
)


def why_not(pair: Pair[Any], device: object) -> str:
    """Why the C kernel does not update this pair."""
    if native is None:
        return NO_KERNEL
    return f"the C kernel does not support {pair.name}, {pair.live.dtype} on {device}, or not in this layout"
