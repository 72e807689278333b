"""Whether a plan's modules and tensors are unchanged: checked before every update, so written in C.

The Python versions here define the behaviour, and run where the kernel was not built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

ANYTHING = object()  # stands for a value that may be replaced by any other


class DictSnapshot(NamedTuple):
    """The contents of dictionaries: keys and values of all of them, one after the other."""

    stores: list[dict[str, Any]]
    sizes: list[int]
    keys: list[str]
    values: list[Any]
    anything: object = ANYTHING


class AttributeSnapshot(NamedTuple):
    """The results of ``read(object)``: for each of ``reads`` a list over the objects."""

    reads: tuple[Callable[[Any], object], ...]
    objects: list[Any]
    values: tuple[list[object], ...]


def snapshot_dicts(
    stores: Iterable[dict[str, Any]], changing: Callable[[dict[str, Any], str], bool] | None = None
) -> DictSnapshot:
    """The present contents of dictionaries; of values that are ``changing(store, key)`` only the key."""
    held = list(stores)
    places = [(store, key, value) for store in held for key, value in store.items()]
    values = [ANYTHING if changing and changing(store, key) else value for store, key, value in places]
    return DictSnapshot(held, list(map(len, held)), [key for _, key, _ in places], values)


def joined(one: DictSnapshot, other: DictSnapshot) -> DictSnapshot:
    """The contents of both, which one call then compares."""
    return DictSnapshot(
        one.stores + other.stores, one.sizes + other.sizes, one.keys + other.keys, one.values + other.values
    )


def snapshot_attributes(
    reads: Sequence[Callable[[Any], object]], objects: Iterable[Any]
) -> AttributeSnapshot:
    """The present results of reading these objects."""
    held = list(objects)
    return AttributeSnapshot(tuple(reads), held, tuple([list(map(read, held)) for read in reads]))


def _dicts_unchanged(then: DictSnapshot) -> bool:
    """Whether the dictionaries hold the same objects under the same keys, in the same order."""
    if list(map(len, then.stores)) != then.sizes:
        return False
    if list(chain.from_iterable(map(dict[str, Any].keys, then.stores))) != then.keys:
        return False
    values = chain.from_iterable(map(dict[str, Any].values, then.stores))
    return all(now is held or held is ANYTHING for now, held in zip(values, then.values, strict=True))


def _attributes_unchanged(then: AttributeSnapshot, first: int = 0, last: int | None = None) -> bool:
    """Whether the objects, or only those from ``first`` to ``last``, still read the same."""
    part = then.objects[first:last]
    now = [list(map(read, part)) for read in then.reads]
    return now == [values[first:last] for values in then.values]


# Whether tensors still have the addresses, dtypes and layouts they had when the check was made.
UnchangedCheck: TypeAlias = Callable[[], bool]
Reads: TypeAlias = Sequence[Callable[[Any], object]]


class _PythonCheck:
    """Addresses and layouts of tensors, read in Python.

    Args:
        tensors: any.
        places: read of all tensors at each call. The size is included, because an allocator may reuse an
            address.
        forms: a dtype or stride change on the same storage is rare and as costly to detect as everything
            else, so each call checks only the next 64 tensors.
    """

    def __init__(self, tensors: list[Any], places: Reads, forms: Reads) -> None:
        self._places, self._forms = snapshot_attributes(places, tensors), snapshot_attributes(forms, tensors)
        self._turn = 0

    def __call__(self) -> bool:
        first, last = self._turn, self._turn + _AT_ONCE
        if not (attributes_unchanged(self._places) and attributes_unchanged(self._forms, first, last)):
            return False  # and again at the next call, which asks whether that was so
        self._turn = last if last < len(self._forms.objects) else 0
        return True


_AT_ONCE = 64  # tensors whose forms one call checks


class _LayoutCheck(NamedTuple):
    """The same in C, where checking the whole layout costs no more than reading an address in Python."""

    exchange: object
    tensors: list[Any]
    layouts: bytes

    def __call__(self) -> bool:
        return _native is not None and _native.unmoved(*self)


def tensor_check(tensors: Iterable[Any], exchange: object, places: Reads, forms: Reads) -> UnchangedCheck:
    """A check of the tensors' addresses and layouts.

    Args:
        tensors: dense ones of one framework.
        exchange: the framework's ``__dlpack_c_exchange_api__``, None where it has none.
        places: what to read without it, the address first; see ``_PythonCheck``.
        forms: likewise.
    """
    held = list(tensors)
    if _native is not None and exchange is not None:
        try:
            return _LayoutCheck(exchange, held, _native.layouts(exchange, held, list(map(places[0], held))))
        except Exception:  # DLPack cannot describe one of them (quantised), or gives another address
            pass
    return _PythonCheck(held, places, forms)


def check_of_all(
    dicts: DictSnapshot, attributes: AttributeSnapshot, tensors: UnchangedCheck
) -> UnchangedCheck:
    """A check of dictionaries, attributes and tensors, in one call of C where possible."""
    if _native is not None and isinstance(tensors, _LayoutCheck):
        return partial(_native.unchanged, dicts, attributes, *tensors)
    return lambda: dicts_unchanged(dicts) and attributes_unchanged(attributes) and tensors()


try:
    from polyak._kernel import _native
except ImportError:  # not built
    _native = None
    dicts_unchanged, attributes_unchanged = _dicts_unchanged, _attributes_unchanged
else:
    dicts_unchanged, attributes_unchanged = _native.dicts_unchanged, _native.attributes_unchanged
