"""Where tensors lie, as DLPack's C interface and as Python reads it: both see every change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak._core.change_detection import _PythonCheck, tensor_check
from polyak._kernel import _native

EXCHANGE: Any = getattr(Tensor, "__dlpack_c_exchange_api__", None)
needs_exchange = pytest.mark.skipif(EXCHANGE is None, reason="torch has it since 2.10")
READS = (Tensor.data_ptr, attrgetter("nbytes")), (attrgetter("dtype"), Tensor.stride)
WAYS = [pytest.param(EXCHANGE, marks=needs_exchange, id="C"), pytest.param(None, id="Python")]


def tensors() -> list[Tensor]:
    return [
        torch.zeros(3, 4),
        nn.Parameter(torch.ones(2)),
        torch.tensor(1),
        torch.zeros(5, dtype=torch.complex64),
    ]


CHANGES: dict[str, Callable[[list[Tensor]], object]] = {
    "shared": lambda held: held[0].share_memory_(),
    "pointed elsewhere": lambda held: setattr(held[1], "data", held[1].data.clone()),
    "resized": lambda held: held[0].resize_(2, 4),
    "another dtype on the same memory": lambda held: setattr(held[0], "data", held[0].view(torch.int32)),
    "other strides on the same memory": lambda held: setattr(
        held[0], "data", held[0].data.as_strided((3, 4), (1, 3))
    ),
    "a number moved": lambda held: setattr(held[2], "data", held[2].clone()),
    "storage freed": lambda held: held[3].untyped_storage().resize_(0),
}


@pytest.mark.parametrize("exchange", WAYS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_seen(exchange: object, change: Callable[[list[Tensor]], object]) -> None:
    held = tensors()
    unchanged = tensor_check(held, exchange, *READS)
    assert unchanged()
    held[0].add_(1)  # values are no place
    assert unchanged()
    change(held)
    assert not unchanged()


@pytest.mark.parametrize("exchange", WAYS)
def test_no_tensors_have_not_moved(exchange: object) -> None:
    assert tensor_check([], exchange, *READS)()


@needs_exchange
def test_tensors_that_dlpack_has_no_words_for_are_read() -> None:
    odd = torch.zeros(4, dtype=torch.uint8).view(torch.bits8)
    unchanged = tensor_check([*tensors(), odd], EXCHANGE, *READS)
    assert isinstance(unchanged, _PythonCheck)
    assert unchanged()


@needs_exchange
def test_an_interface_that_gives_other_addresses_is_not_believed() -> None:
    held = tensors()
    with pytest.raises(ValueError, match="another address"):
        _native.layouts(EXCHANGE, held, [t.data_ptr() + 4 for t in held])
    assert isinstance(tensor_check(held, EXCHANGE, (lambda t: 0, READS[0][1]), READS[1]), _PythonCheck)


@needs_exchange
def test_wrong_arguments_are_refused() -> None:
    held = tensors()
    layouts = _native.layouts(EXCHANGE, held, [t.data_ptr() for t in held])
    for wrong in [(), (EXCHANGE, held), (EXCHANGE, held, "x"), (EXCHANGE, tuple(held), layouts)]:
        with pytest.raises(TypeError):
            _native.unmoved(*wrong)
    for exchange in [None, object(), 3]:
        with pytest.raises((TypeError, ValueError)):
            _native.unmoved(exchange, held, layouts)
    with pytest.raises((IndexError, SystemError)):
        _native.layouts(EXCHANGE, held, [])
    with pytest.raises(Exception):  # noqa: B017  # whichever torch raises
        _native.layouts(EXCHANGE, [1], [1])
    assert not _native.unmoved(EXCHANGE, [1], layouts)
    assert not _native.unmoved(EXCHANGE, held[:-1], layouts)
    assert not _native.unmoved(EXCHANGE, [*held, held[0]], layouts)
    assert not _native.unmoved(EXCHANGE, held, layouts[:-1])
    assert not _native.unmoved(EXCHANGE, held, b"")


@needs_exchange
def test_looking_holds_on_to_nothing() -> None:
    held = tensors()
    layouts = _native.layouts(EXCHANGE, held, [t.data_ptr() for t in held])
    before = [sys.getrefcount(one) for one in (*held, layouts, EXCHANGE)]
    for _ in range(100):
        assert _native.unmoved(EXCHANGE, held, layouts)
    assert [sys.getrefcount(one) for one in (*held, layouts, EXCHANGE)] == before
