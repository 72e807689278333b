"""What tells that a model changed, in C and in Python: both must answer alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak._core.change_detection import (
    DictSnapshot,
    _attributes_unchanged,
    _dicts_unchanged,
    snapshot_attributes,
    snapshot_dicts,
)
from polyak._kernel import _native

DICTS: dict[str, Callable[[DictSnapshot], bool]] = {"C": _native.dicts_unchanged, "Python": _dicts_unchanged}
ATTRIBUTES: dict[str, Callable[..., bool]] = {
    "C": _native.attributes_unchanged,
    "Python": _attributes_unchanged,
}
each_dicts = pytest.mark.parametrize("unchanged", DICTS.values(), ids=DICTS)
each_attributes = pytest.mark.parametrize("unchanged", ATTRIBUTES.values(), ids=ATTRIBUTES)
Stores = list[dict[str, Any]]


def stores() -> Stores:
    return [{}, {"a": [1], "b": None}, {"c": [1], "always": [2]}, {}]


def put(i: int, key: str, value: object) -> Callable[[Stores], object]:
    return lambda held: held[i].__setitem__(key, value)


def moved(held: Stores) -> None:
    held[1]["c"] = held[2].pop("c")


def reordered(held: Stores) -> None:
    held[1]["a"] = held[1].pop("a")


CHANGES: dict[str, Callable[[Stores], object]] = {
    "replaced by an equal one": put(1, "a", [1]),
    "replaced by None": put(2, "c", None),
    "no longer None": put(1, "b", [3]),
    "added to an empty one": put(3, "d", [4]),
    "added to the first": put(0, "d", [4]),
    "removed": lambda held: held[1].pop("a"),
    "the last removed": lambda held: held[2].pop("always"),
    "renamed": lambda held: held[2].__setitem__("z", held[2].pop("always")),
    "moved to another": moved,
    "in another order": reordered,
    "emptied": lambda held: held[2].clear(),
}


@each_dicts
def test_what_is_left_alone_is_held(unchanged: Callable[[DictSnapshot], bool]) -> None:
    then = snapshot_dicts(stores())
    assert unchanged(then)
    assert unchanged(then)
    assert unchanged(snapshot_dicts([]))


@each_dicts
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_dictionaries_is_seen(
    unchanged: Callable[[DictSnapshot], bool], change: Callable[[Stores], object]
) -> None:
    held = stores()
    then = snapshot_dicts(held)
    change(held)
    assert not unchanged(then)


@each_dicts
def test_of_what_changes_by_itself_only_the_key_matters(unchanged: Callable[[DictSnapshot], bool]) -> None:
    held = stores()
    then = snapshot_dicts(held, changing=lambda store, key: store is held[2] and key == "always")
    held[2]["always"] = [5]
    assert unchanged(then)
    held[2]["c"] = [5]
    assert not unchanged(then)
    held = stores()
    then = snapshot_dicts(held, changing=lambda store, key: True)
    del held[2]["always"]
    assert not unchanged(then)


keys = st.sampled_from(["a", "b", "c", "d"])
few = st.lists(st.dictionaries(keys, st.integers(0, 3), max_size=4), max_size=4)


@given(few, st.lists(st.tuples(st.integers(0, 3), keys, st.integers(0, 4)), max_size=3))
def test_both_answer_what_a_copy_answers(held: Stores, edits: list[tuple[int, str, int]]) -> None:
    then, copy = snapshot_dicts(held), [list(store.items()) for store in held]
    for i, key, value in edits:
        if i < len(held) and value == 4:
            held[i].pop(key, None)
        elif i < len(held):
            held[i][key] = value
    same = [list(store.items()) for store in held] == copy  # small integers are the same objects
    assert {name: unchanged(then) for name, unchanged in DICTS.items()} == dict.fromkeys(DICTS, same)


@each_attributes
def test_what_reads_the_same_agrees_and_what_does_not_is_seen(unchanged: Callable[..., bool]) -> None:
    objects = [[1], [2], [3], [4]]
    then = snapshot_attributes((len, str), objects)
    assert unchanged(then)
    assert unchanged(then, 1, 3)
    objects[2][0] = 5  # the list's own objects are kept, not the list
    assert not unchanged(then)
    assert not unchanged(then, 2, 3)
    assert unchanged(then, 0, 2)
    assert unchanged(then, 3, 100)
    assert unchanged(then, 100, 200)
    assert unchanged(snapshot_attributes((len,), objects))
    assert unchanged(snapshot_attributes((), objects))
    assert unchanged(snapshot_attributes((len,), []))


class Touchy:
    def __eq__(self, other: object) -> bool:
        raise ArithmeticError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


@each_attributes
def test_what_reading_or_comparing_raises_is_raised(unchanged: Callable[..., bool]) -> None:
    objects: list[list[Any]] = [[1], [2]]
    then = snapshot_attributes((lambda one: one[0],), objects)
    objects[1].clear()
    with pytest.raises(IndexError):
        unchanged(then)
    assert unchanged(then, 0, 1)
    objects[1].append(Touchy())
    with pytest.raises(ArithmeticError):
        unchanged(then)


def test_wrong_arguments_are_refused() -> None:
    then, read = snapshot_dicts(stores()), snapshot_attributes((len,), [[1], [2]])
    for wrong in [(), (1, 2, 3, 4, 5), then[:4], tuple(then._replace(sizes=[])), then._replace(values=[])]:
        with pytest.raises((TypeError, ValueError)):
            _native.dicts_unchanged(wrong)
    for wrong in [then._replace(sizes=["x"] * 4), then._replace(stores=[1, 2, 3, 4])]:
        with pytest.raises((TypeError, SystemError)):
            _native.dicts_unchanged(wrong)
    for arguments in [(), ((),), (read, 0), (read, "0", 1), (read, -1, 1), (read._replace(values=()),)]:
        with pytest.raises((TypeError, ValueError)):
            _native.attributes_unchanged(*arguments)
    with pytest.raises(IndexError):
        _native.attributes_unchanged(read._replace(values=([1],)))
    with pytest.raises(TypeError):
        _native.attributes_unchanged(read._replace(reads=(None,)))


def test_looking_holds_on_to_nothing() -> None:
    held, objects, result = stores(), [[1] * 1000, [2] * 2000], object()
    then, read = snapshot_dicts(held), snapshot_attributes((len, lambda one: result), objects)
    watched = [held[1]["a"], objects[0], result, then.stores, then, read]
    before = list(map(sys.getrefcount, watched))
    for _ in range(100):
        assert _native.dicts_unchanged(then)
        assert _native.attributes_unchanged(read)
        assert _native.attributes_unchanged(read, 0, 1)
    assert list(map(sys.getrefcount, watched)) == before
