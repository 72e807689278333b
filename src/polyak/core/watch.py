"""Whether what a plan was made from is still there: asked before every update, so at the speed of C.

Where the kernel was built its two functions answer; these here say what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

ANYTHING = object()  # stands for a value that may be replaced by any other


class Contents(NamedTuple):
    """What dictionaries held: keys and values of all of them, one after the other."""

    stores: list[dict[str, Any]]
    sizes: list[int]
    keys: list[str]
    values: list[Any]
    anything: object = ANYTHING


class Readings(NamedTuple):
    """What ``read(object)`` gave, for each of ``reads`` a list over the objects."""

    reads: tuple[Callable[[Any], object], ...]
    objects: list[Any]
    values: tuple[list[object], ...]


def contents(
    stores: Iterable[dict[str, Any]], changing: Callable[[dict[str, Any], str], bool] | None = None
) -> Contents:
    """What dictionaries hold now; of what is ``changing(store, key)`` only the key matters."""
    held = list(stores)
    places = [(store, key, value) for store in held for key, value in store.items()]
    values = [ANYTHING if changing and changing(store, key) else value for store, key, value in places]
    return Contents(held, list(map(len, held)), [key for _, key, _ in places], values)


def readings(reads: Sequence[Callable[[Any], object]], objects: Iterable[Any]) -> Readings:
    """What reading these objects gives now."""
    held = list(objects)
    return Readings(tuple(reads), held, tuple([list(map(read, held)) for read in reads]))


def _holds(then: Contents) -> bool:
    """Whether the dictionaries hold the same objects under the same keys, in the same order."""
    if list(map(len, then.stores)) != then.sizes:
        return False
    if list(chain.from_iterable(map(dict[str, Any].keys, then.stores))) != then.keys:
        return False
    values = chain.from_iterable(map(dict[str, Any].values, then.stores))
    return all(now is held or held is ANYTHING for now, held in zip(values, then.values, strict=True))


def _agree(then: Readings, first: int = 0, last: int | None = None) -> bool:
    """Whether the objects, or only those from ``first`` to ``last``, still read the same."""
    part = then.objects[first:last]
    now = [list(map(read, part)) for read in then.reads]
    return now == [values[first:last] for values in then.values]


try:
    from polyak.core import _native
except ImportError:  # not built
    holds, agree = _holds, _agree
else:
    holds, agree = _native.holds, _native.agree
