"""What an update asks of a device, counted: calls, and waits of the host. Nothing here is timed.

Meta tensors take the paths of a GPU and hold no values, so whatever waits for one fails at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import polyak
from polyak.torch import tensors
from polyak.torch._engines.base import Pair
from polyak.torch._engines.copies import Copies
from polyak.torch._engines.foreach import Foreach, bad_names
from polyak.torch._engines.pinned import packed, pinned_like

F32, BF16, I8 = torch.float32, torch.bfloat16, torch.int8


class Calls(TorchDispatchMode):
    """Counts operations that a device would be given; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways in which the host reads a tensor's value, as they are taken."""
    taken: list[str] = []

    def counting(name: str) -> None:
        original = getattr(Tensor, name)

        def read(self: Tensor) -> Any:
            taken.append(name)
            return original(self)

        monkeypatch.setattr(Tensor, name, read)

    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        counting(name)
    return taken


def pair(name: str, size: int, live: torch.dtype, store: torch.dtype, low: torch.dtype | None) -> Pair:
    theta, average = (torch.empty(size, dtype=dtype, device="meta") for dtype in (live, store))
    return Pair(name, theta, (average,), () if low is None else (torch.empty_like(theta, dtype=low),))


MODELS = {"one tensor": [10_000_000], "161 tensors": [62_112] * 161}


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("live", [F32, BF16])
def test_foreach_updates_ten_million_elements_in_a_few_calls(
    live: torch.dtype, skip: bool, sizes: list[int]
) -> None:
    engine = Foreach([pair(str(i), size, live, F32, None) for i, size in enumerate(sizes)], 0)
    with Calls() as calls:
        engine.update((0.1,), 1, skip)
    assert calls.count <= (18 if skip else 5)


@pytest.mark.parametrize(("store", "low", "bound"), [(BF16, None, 40), (BF16, I8, 50), (F32, F32, 24)])
def test_what_is_rounded_goes_tensor_by_tensor_in_large_pieces(
    store: torch.dtype, low: torch.dtype | None, bound: int
) -> None:
    engine = Foreach([pair("w", 10_000_000, F32, store, low)], 0)
    with Calls() as calls:
        engine.update((0.1,), 1, skip=True)
    assert calls.count <= bound


@pytest.mark.parametrize("tensors", [1, 64])
def test_raise_waits_once_for_all_tensors_of_all_dtypes(waits: list[str], tensors: int) -> None:
    thetas = [torch.ones(1000, dtype=(F32, BF16, torch.float64)[i % 3]) for i in range(tensors)]
    pairs = [Pair(str(i), theta, (theta.float(),)) for i, theta in enumerate(thetas)]
    assert bad_names(pairs) == []
    assert waits == ["tolist"]


def test_only_where_something_may_be_wrong_a_look_goes_on() -> None:
    thetas = [torch.ones(5), torch.tensor([1.0, torch.nan]), torch.full((3,), 1e300, dtype=torch.float64)]
    thetas += [torch.full((3,), 7e4), torch.tensor([-torch.inf])]
    pairs = [Pair(str(i), theta, (theta.float(),)) for i, theta in enumerate(thetas)]
    pairs.append(Pair("float16", torch.full((3,), 7e4), (torch.zeros(3, dtype=torch.float16),)))
    assert bad_names(pairs) == ["1", "2", "4", "float16"]


@pytest.mark.parametrize("tracks", [1, 3])
def test_metrics_wait_once_for_all_distances_and_once_for_the_counts(waits: list[str], tracks: int) -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(10)])
    ema = polyak.EMA(model, {f"{i}": 0.9 for i in range(tracks)}, engine="foreach")
    ema.update()
    waits.clear()
    metrics = ema.metrics()
    assert waits == ["tolist", "tolist"]
    assert len([key for key in metrics if key.endswith("distance")]) == tracks


def test_an_average_is_made_with_one_wait_for_all_tensors_and_tracks(waits: list[str]) -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(10)])
    polyak.EMA(model, {"a": 0.9, "b": 0.99}, engine="foreach")
    assert waits == ["tolist"]


def test_while_an_element_was_never_finite_the_device_is_waited_for_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    ema = polyak.EMA(model, 0.5)
    looks: list[int] = []
    look = tensors.all_finite

    def looking(given: Sequence[Tensor]) -> list[bool]:
        looks.append(ema.step)
        return look(given)

    monkeypatch.setattr(tensors, "all_finite", looking)
    for step in range(300):
        if step == 250:
            with torch.no_grad():
                model.weight.fill_(4.0)
        ema.update()
    assert len(looks) == len({1, 2, 4, 8, 16, 32, 64, 128, 256, 100, 200})
    assert ema.tracks["average"].tensors["weight"].unique().tolist() == [4.0]


def test_copied_buffers_of_mixed_dtypes_take_a_call_per_dtype() -> None:
    kinds = (torch.int64, torch.bool, F32)
    sources = [torch.ones(3).to(kinds[i % 3]) for i in range(30)]
    targets = [torch.zeros_like(source) for source in sources]
    copies = Copies(zip(targets, sources, strict=True))
    with Calls() as calls:
        copies.run()
    assert calls.count == 3
    assert all(map(torch.equal, targets, sources))


def test_the_default_device_changes_nothing() -> None:
    """Whatever is made for the host says so: another default device is neither used nor waited for."""
    torch.manual_seed(0)
    for options in ({}, {"dtype": BF16}, {"dtype": "split"}, {"compensated": True}):
        for engine in ("auto", "blocked", "foreach"):
            model = nn.Sequential(nn.Linear(600, 900), nn.BatchNorm1d(900)).bfloat16()
            twin = nn.Sequential(nn.Linear(600, 900), nn.BatchNorm1d(900)).bfloat16()
            twin.load_state_dict(model.state_dict())
            other = polyak.EMA(twin, 0.9, engine=engine, **options)
            torch.set_default_device("meta")
            try:
                ema = polyak.EMA(model, 0.9, engine=engine, **options)
                for average in (ema, other):
                    if average is other:
                        torch.set_default_device(None)
                    with torch.no_grad():
                        average.model[0].weight.add_(1)
                        average.model[0].bias[0] = float("nan")
                    average.update()
                    average.metrics()
            finally:
                torch.set_default_device(None)
            for name, tensor in other.tracks["average"].tensors.items():
                assert torch.equal(tensor, ema.tracks["average"].tensors[name]), (options, engine, name)


def test_what_a_backend_lacks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyak.torch.store._NO_FLOAT64", ("cpu",))  # as if the host were an MPS device
    polyak.EMA(nn.Linear(2, 2), 0.9, dtype="split")
    with pytest.raises(polyak.ConfigError, match=r"compensated=True with averages on cpu: .* float64"):
        polyak.EMA(nn.Linear(2, 2), 0.9, compensated=True)


def shapes(layers: int, width: int, hidden: int, vocabulary: int) -> list[int]:
    """Bytes of a transformer's tensors in float32: embedding, head, and four kinds of matrices a layer."""
    layer = [3 * width * width, width * width, width * hidden, hidden * width, width, width, hidden]
    return [4 * size for size in [vocabulary * width, *layer * layers, vocabulary * width]]


TRANSFORMERS = {
    "ViT-B": shapes(12, 768, 3072, 1000),
    "GPT-2": shapes(12, 768, 3072, 50257),
    "8 B": shapes(32, 4096, 14336, 128256),
    "161 equal": MODELS["161 tensors"],
}


@pytest.mark.parametrize("sizes", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_pinned_memory_is_the_size_of_what_is_in_it(sizes: list[int]) -> None:
    slabs, places = packed(sizes)
    rounded = sum(1 << (slab - 1).bit_length() for slab in slabs)  # what torch's allocator makes of them
    assert rounded == sum(slabs)
    assert rounded <= 1.06 * sum(sizes)
    taken = sorted((slab, first, first + size) for (slab, first), size in zip(places, sizes, strict=True))
    for (slab, _, end), (slab_, first_, _) in pairwise(taken):
        assert slab != slab_ or end <= first_, "blocks overlap"
    assert all(end <= slabs[slab] for slab, _, end in taken)


def test_pinned_tensors_have_the_layout_of_their_models() -> None:
    likes = [
        torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.arange(12.0).view(3, 4).t(),
        torch.arange(10)[::2],
        torch.tensor(3, dtype=torch.int64),
        torch.zeros(0),
        torch.ones(7, dtype=torch.bool),
    ]
    made = pinned_like(likes, pin=False)
    for like, tensor in zip(likes, made, strict=True):
        tensor.copy_(like)
    assert all(map(torch.equal, made, likes))
    assert [t.stride() for t in made[:2]] == [t.stride() for t in likes[:2]]
