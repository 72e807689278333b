"""The plan: what changes in the model after construction, and what noticing it costs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from polyak import ConfigError, PlanError
from polyak.torch import EMA
from polyak.torch.tensor_map import TensorMap

from .conftest import Beside, array, network


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def averages(ema: EMA) -> dict[str, Tensor]:
    return ema.tracks["average"].tensors


# --- memory moved, same structure: the average goes on -----------------------------------------------

MOVES: dict[str, Callable[[nn.Module], object]] = {
    "half, float": lambda m: m.half().float(),
    "half": lambda m: m.half(),
    "double": lambda m: m.double(),
    "bfloat16": lambda m: m.bfloat16(),
    "half, bfloat16": lambda m: m.half().bfloat16(),
    "channels last": lambda m: m.to(memory_format=torch.channels_last),
    "load_state_dict": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "load_state_dict(assign)": lambda m: m.load_state_dict(
        {k: v + 1 for k, v in m.state_dict().items()}, assign=True
    ),
    "data replaced": lambda m: [setattr(p, "data", p.data.clone()) for p in m.parameters()],
    "one flat memory": lambda m: _flatten(m),
    "requires_grad_": lambda m: m.requires_grad_(False),
    "deep-copied in place": lambda m: m.__setitem__(0, _copied(m[0])),
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "compiled in place": lambda m: m.compile(backend="eager"),
    "share_memory": lambda m: m.share_memory(),
}


def _flatten(model: nn.Module) -> None:
    parameters = list(model.parameters())
    flat = torch.cat([p.data.reshape(-1) for p in parameters])
    for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.data = piece.view_as(p)


def _copied(module: nn.Module) -> nn.Module:
    twin = nn.Linear(2, 3)
    twin.load_state_dict(module.state_dict())
    return twin


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_after_every_move_the_average_follows_the_living_tensors(
    move: Callable[[nn.Module], object], dtype: torch.dtype
) -> None:
    """A cached list of tensors goes stale here, and its updates go to dead storage for ever."""
    side = Beside(network().to(dtype))
    side.run(2)
    move(side.model)
    for _ in range(3):
        with torch.no_grad():
            for tensor in (*side.model.parameters(), *side.model[1].buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=side.random))
        side.update()
    side.check()
    assert torch.equal(side.ema.module[1].num_batches_tracked, side.model[1].num_batches_tracked)


def test_dead_storage_is_never_updated() -> None:
    """The tensors of before the move stay as they were, whatever is averaged after it."""
    model = network()
    ema = EMA(model, 0.9)
    old = [p.data for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.data = torch.full_like(p, 5.0)
    dead = [t.clone() for t in old]
    for _ in range(3):
        ema.update()
        with ema.average_parameters():
            pass
    ema.copy_to()
    assert all(torch.equal(a, b) for a, b in zip(old, dead, strict=True))
    weight = array(averages(ema)["0.weight"])
    np.testing.assert_allclose(weight, 0.9**3 * array(dead[0]) + (1 - 0.9**3) * 5, rtol=1e-5)


@pytest.mark.parametrize("read", ["in C", "in Python"])
def test_another_dtype_on_the_same_memory_is_noticed_in_every_part_of_a_large_model(
    read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No accident, so Python, which torch before 2.10 needs, looks at a part of the model in each update."""
    if read == "in Python":
        monkeypatch.setattr("polyak.torch.tensors._EXCHANGE", None)
    for turned in (0, 70, 149):
        model = nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.half)) for _ in range(150)])
        ema = EMA(model, 0.0)
        ema.update()
        model[turned].data = model[turned].data.view(torch.bfloat16)
        for _ in range(5):  # 64 each of the parameters and their averages
            ema.update()
        assert torch.equal(averages(ema)[str(turned)], model[turned].detach().float())


def test_the_same_address_handed_out_again_is_noticed() -> None:
    """An allocator gives the memory a parameter left to the parameter's next form."""
    side = Beside(nn.Linear(1000, 1, bias=False))
    side.run(1)
    for change in (nn.Module.half, nn.Module.bfloat16, nn.Module.float, nn.Module.half, nn.Module.double):
        change(side.model)
        side.run(1).check()


def test_parts_that_grew_wider_average_beside_parts_that_were() -> None:
    """A float32 average of a float64 parameter, in one call with a float64 one."""
    side = Beside(nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2)))
    side.model[1].double()
    side.run(3)
    assert {t.dtype for t in averages(side.ema).values()} == {torch.float32, torch.float64}
    side.check()


def test_the_precision_of_the_average_is_kept_when_the_model_is_cast() -> None:
    model = network()
    ema = EMA(model, 0.9)
    kept = {name: t.data_ptr() for name, t in averages(ema).items()}
    for change in (nn.Module.half, nn.Module.double, nn.Module.float):
        change(model)
        ema.update()
        assert {name: t.data_ptr() for name, t in averages(ema).items()} == kept
        assert {t.dtype for t in averages(ema).values()} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_average_built_before_the_model_moves_follows_it_to_the_device() -> None:
    side = Beside(network())
    side.run(2)
    side.model.cuda()
    side.update()
    assert {t.device.type for t in averages(side.ema).values()} == {"cuda"}
    side.check()


# --- tensors that cannot be followed: PlanError with the name ----------------------------------------


def _resize_by_data(model: nn.Module) -> None:
    model[2].weight.data = torch.zeros(5, 3)


def _resize_by_slicing(model: nn.Module) -> None:
    """As pruning does: same address, fewer rows; one row would broadcast into all of them."""
    model[2].weight.data = model[2].weight.data[:1]


def _resize_by_replacing(model: nn.Module) -> None:
    model[2].weight = nn.Parameter(torch.zeros(1, 3))


def _resize_in_place(model: nn.Module) -> None:
    """In the same memory, where no address tells."""
    weight = model[2].weight.requires_grad_(False)
    weight.resize_(1, 3).requires_grad_(True)


def _resize_module(model: nn.Module) -> None:
    model[2] = nn.Linear(3, 1)


def _become_complex(model: nn.Module) -> None:
    model[2].weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.complex64))


RESIZES = [
    _resize_by_data,
    _resize_by_slicing,
    _resize_by_replacing,
    _resize_in_place,
    _resize_module,
    _become_complex,
]


@pytest.mark.parametrize("resize", RESIZES)
def test_a_resized_parameter_is_refused_by_name_at_every_call(resize: Callable[[nn.Module], None]) -> None:
    model = network()
    ema = EMA(model, 0.9)
    ema.update()
    kept = {name: t.clone() for name, t in averages(ema).items()}
    resize(model)

    def enter() -> None:
        with ema.average_parameters():
            pass

    for verb in (ema.update, ema.update, enter, lambda: ema.module, ema.update, ema.copy_to):
        with pytest.raises(PlanError, match=r"2\.weight is now .* but its average is \(2, 3\)"):
            verb()
    assert ema.step == 1
    assert all(torch.equal(t, kept[name]) for name, t in averages(ema).items()), "nothing is changed"
    assert ema.live == "raw"


@pytest.mark.parametrize("resize", RESIZES)
def test_reset_is_the_way_out_that_the_error_names(resize: Callable[[nn.Module], None]) -> None:
    model = network()
    ema = EMA(model, 0.9)
    kept = averages(ema)["0.weight"].clone()
    with torch.no_grad():
        model[0].weight.zero_()
    ema.update()
    resize(model)
    with pytest.raises(PlanError, match=r'ema\.reset\("2\.weight"\)'):
        ema.update()
    ema.reset(["2.weight", "2.bias"] if resize is _resize_module else "2.weight")
    assert averages(ema)["2.weight"].shape == model[2].weight.shape
    ema.update()
    torch.testing.assert_close(averages(ema)["0.weight"], 0.81 * kept)


def test_moving_to_the_meta_device_is_refused_at_every_call() -> None:
    model = network()
    ema = EMA(model, 0.9)
    kept = {name: t.clone() for name, t in averages(ema).items()}
    model.to("meta")
    for _ in range(3):
        with pytest.raises(PlanError, match=r"0\.weight is on the meta device"):
            ema.update()
    assert all(torch.equal(t, kept[name]) for name, t in averages(ema).items())
    assert ema.step == 0


def test_freezing_everything_keeps_averaging_and_dropping_everything_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    ema = EMA(model, 0.9)
    model.requires_grad_(False)
    ema.update()
    model[0] = nn.ReLU()
    for _ in range(2):
        with pytest.raises(PlanError, match="Sequential has nothing to average"):
            ema.update()


# --- added, removed, unfrozen, renamed: a declared rule each -----------------------------------------


def test_an_added_parameter_joins_at_its_value_with_a_history_of_its_own() -> None:
    model = network()
    ema = EMA(model, 0.9)
    for _ in range(3):
        ema.update()
    model.append(nn.Linear(2, 1))
    start = array(model[3].weight)
    ema.update()
    np.testing.assert_array_equal(array(averages(ema)["3.weight"]), start)
    with torch.no_grad():
        model[3].weight.zero_()
    ema.update()
    np.testing.assert_allclose(array(averages(ema)["3.weight"]), 0.9 * start, rtol=1e-6)
    track = ema.tracks["average"]
    assert track.joined == {"3.weight": 4, "3.bias": 4}
    weights = track.profile_of("3.weight").weights()
    np.testing.assert_allclose(weights[weights > 0], [0.9, 0.1])
    np.testing.assert_allclose(track.profile_of("0.weight").weights(), track.profile.weights())


def test_adding_a_parameter_does_not_shift_the_pairs_behind_it() -> None:
    """Libraries that pair by position average each tensor into its neighbour from here on."""
    side = Beside(network())
    side.run(2)
    side.model[0].register_parameter("aaa", nn.Parameter(torch.randn(3)))
    for _ in range(3):
        side.train()
        side.ema.update()
        live = {n: a for n, a in side.live().items() if n in side.state.average}
        side.state = _reference_update(side, live)
    assert averages(side.ema)["0.aaa"].shape == (3,)
    for name, expected in side.state.average.items():
        np.testing.assert_allclose(array(averages(side.ema)[name]), expected, rtol=1e-5, atol=1e-6)


def _reference_update(side: Beside, live: dict[str, Any]) -> Any:
    from polyak import reference

    return reference.update(side.state, live)


def test_a_removed_parameter_leaves_and_comes_back_as_a_newcomer() -> None:
    model = network()
    ema = EMA(model, 0.9)
    ema.update()
    layer = model[2]
    del model[2]
    ema.update()
    assert not any(name.startswith("2.") for name in averages(ema))
    with torch.no_grad():
        layer.weight.fill_(7)
    model.append(layer)
    ema.update()
    assert bool((averages(ema)["2.weight"] == 7).all())
    assert ema.tracks["average"].joined["2.weight"] == 3


def test_an_unfrozen_parameter_joins_at_its_value() -> None:
    model = network()
    model[0].requires_grad_(False)
    ema = EMA(model, 0.9)
    ema.update()
    assert "0.weight" not in averages(ema)
    with torch.no_grad():
        model[0].weight.fill_(3)
    model[0].weight.requires_grad_(True)
    ema.update()
    assert bool((averages(ema)["0.weight"] == 3).all())
    assert "0.bias" not in averages(ema)
    assert ema.tracks["average"].joined == {"0.weight": 2}


def test_unfreezing_one_of_two_tied_parameters_is_noticed() -> None:
    model = nn.Module()
    model.free = nn.Parameter(torch.zeros(2))
    model.a = nn.Parameter(torch.ones(2), requires_grad=False)
    model.b = nn.Parameter(model.a.data, requires_grad=False)
    ema = EMA(model, 0.9)
    assert set(averages(ema)) == {"free"}
    model.b.requires_grad_(True)
    ema.update()
    assert set(averages(ema)) == {"free", "a"}


def test_a_frozen_parameter_goes_on_being_averaged() -> None:
    """Freezing shifts every pair behind it where parameters are filtered and paired by position."""
    side = Beside(network())
    side.run(2)
    side.model[0].requires_grad_(False)
    side.run(3).check()


def test_a_frozen_parameter_goes_on_being_averaged_when_a_load_replaces_it() -> None:
    side = Beside(network())
    side.run(2)
    side.model[0].requires_grad_(False)
    side.model.load_state_dict({k: v + 1 for k, v in side.model.state_dict().items()}, assign=True)
    assert not side.model[0].weight.requires_grad
    side.run(3).check()


class Adapter(nn.Module):
    """A layer inside a low-rank adapter, as LoRA libraries inject it."""

    def __init__(self, base: nn.Linear, freeze: bool) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(1, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, 1))
        if freeze:
            base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.t() @ self.up.t()


@pytest.mark.parametrize("freeze", [False, True], ids=["trained", "frozen"])
def test_a_layer_wrapped_by_an_adapter_brings_its_average_along(freeze: bool) -> None:
    model = network()
    ema = EMA(model, 0.9)
    with torch.no_grad():
        model[0].weight.zero_()
    ema.update()
    expected = averages(ema)["0.weight"].clone()
    assert expected.abs().sum() > 0
    model[0] = Adapter(model[0], freeze)
    ema.update()
    held = averages(ema)
    assert {"0.base.weight", "0.base.bias", "0.down", "0.up"} < set(held)
    assert "0.weight" not in held
    torch.testing.assert_close(held["0.base.weight"], 0.9 * expected)
    assert torch.equal(held["0.down"], model[0].down)
    assert ema.tracks["average"].joined == {"0.down": 2, "0.up": 2}
    torch.testing.assert_close(ema.module[0].base.weight, held["0.base.weight"])


def test_an_adapter_merged_and_removed_again_gives_the_name_back() -> None:
    model = network()
    ema = EMA(model, 0.9)
    start = averages(ema)["0.weight"].clone()
    layer = model[0]
    model[0] = Adapter(layer, True)
    ema.update()
    model[0] = layer
    ema.update()
    torch.testing.assert_close(averages(ema)["0.weight"], start)
    assert "0.base.weight" not in averages(ema)


def test_a_renamed_module_is_saved_under_its_new_name() -> None:
    """Same tensors in the same order: only the names tell."""
    model = nn.Sequential()
    model.add_module("old", nn.Linear(2, 2))
    ema = EMA(model, 0.9)
    start = averages(ema)["old.weight"].clone()
    with torch.no_grad():
        model.old.weight.zero_()
    layer = model.old
    del model.old
    model.add_module("new", layer)
    ema.update()
    assert set(averages(ema)) == {"new.weight", "new.bias"}
    torch.testing.assert_close(averages(ema)["new.weight"], 0.9 * start)
    assert set(ema.module.state_dict()) == set(model.state_dict())


def test_a_parameter_that_moves_into_an_empty_module_is_noticed() -> None:
    """As many entries as before, in other places."""
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    ema = EMA(model, 0.9)
    weight = model[2].weight
    del model[2].weight
    model[0].weight = weight
    ema.update()
    assert set(averages(ema)) == {"0.weight", "1.weight"}


def test_a_parameter_that_becomes_a_buffer_is_noticed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    ema = EMA(model, 0.9)
    weight = model[1].weight
    del model[1].weight
    model[1].register_buffer("weight", weight.data)
    ema.update()
    assert set(averages(ema)) == {"0.weight", "0.bias"}
    assert torch.equal(ema.module[1].weight, weight)


def test_a_parametrization_added_later_is_followed() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    ema = EMA(model, 0.9)
    start = averages(ema)["0.weight"].clone()
    parametrize.register_parametrization(model[0], "weight", nn.Identity())
    ema.update()
    assert set(averages(ema)) == {"0.parametrizations.weight.original"}
    x = torch.ones(1, 2)
    torch.testing.assert_close(ema(x), x @ start.t())


@pytest.mark.parametrize(
    "come_apart", [nn.Module.half, lambda m: setattr(m, "b", nn.Parameter(m.b.data + 0))]
)
def test_tied_parameters_that_come_apart_each_go_on_with_their_average(
    come_apart: Callable[[nn.Module], object],
) -> None:
    model = nn.Module()
    model.a = nn.Parameter(torch.ones(2))
    model.b = nn.Parameter(model.a.data)
    ema = EMA(model, 0.5)
    with torch.no_grad():
        model.a.zero_()
    ema.update()
    assert averages(ema)["a"].tolist() == [0.5, 0.5]
    come_apart(model)
    with torch.no_grad():
        model.b.fill_(1)
    ema.update()
    assert averages(ema)["a"].tolist() == [0.25, 0.25]
    assert averages(ema)["b"].tolist() == [0.75, 0.75]
    assert averages(ema)["a"].data_ptr() != averages(ema)["b"].data_ptr()


def test_parameters_tied_later_are_averaged_once() -> None:
    model = nn.Module()
    model.a, model.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    ema = EMA(model, 0.9)
    ema.update()
    model.b = model.a
    with torch.no_grad():
        model.a.zero_()
    ema.update()
    assert set(averages(ema)) == {"a"}
    torch.testing.assert_close(averages(ema)["a"], torch.full((2,), 0.9))
    assert ema.module.a is ema.module.b


def test_a_replaced_buffer_is_followed() -> None:
    side = Beside(network())
    side.run(1)
    for _ in range(3):
        side.model[1].running_mean = torch.rand(3)
        side.model[1].num_batches_tracked = torch.tensor(41)
        side.update()
        assert side.ema.module[1].num_batches_tracked == 41
    side.check()


def test_a_buffer_replaced_in_every_forward_is_followed() -> None:
    class Codebook(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("usage", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.usage = self.usage + 1
            return super().forward(x)

    model = Codebook()
    ema = EMA(model, 0.9)
    module = ema.module
    for i in range(3):
        model(torch.ones(1, 2))
        ema.update()
        assert ema.module.usage.tolist() == [i + 1] * 2
    assert torch.equal(module.weight, averages(ema)["weight"]), "a module in use keeps its averages"


def test_a_resized_copied_buffer_is_copied_in_its_new_shape() -> None:
    model = network()
    model.register_buffer("queue", torch.zeros(4))
    ema = EMA(model, 0.9)
    model.queue = torch.ones(6)
    ema.update()
    assert ema.module.queue.tolist() == [1] * 6


def test_every_track_keeps_up_with_a_changing_model() -> None:
    model = network()
    ema = EMA(model, {"short": 0.5, "long": 0.9})
    model.append(nn.Linear(2, 2))
    model.half()
    ema.update()
    for track in ema.tracks.values():
        assert set(track.tensors) > {"3.weight", "0.weight"}
        assert track.tensors["3.weight"].dtype == torch.float32
    short, long = (ema.tracks[name].tensors for name in ("short", "long"))
    assert short["3.weight"].data_ptr() != long["3.weight"].data_ptr()


def test_globs_hold_for_what_comes_later() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ema = EMA(model, 0.9, include="*.weight", exclude="0.*")
    model.append(nn.Linear(2, 2))
    ema.update()
    assert set(averages(ema)) == {"1.weight", "2.weight"}


def test_a_glob_that_matches_nothing_is_an_error_that_shows_the_names() -> None:
    with pytest.raises(
        ConfigError, match=r"include='head\.\*' matches no tensor; the model's names are 0\.weight"
    ):
        EMA(network(), 0.9, include="head.*")


# --- what an update costs ----------------------------------------------------------------------------


def wide(tensors: int) -> nn.Module:
    model = nn.ParameterDict({str(i): nn.Parameter(torch.randn(80, 80)) for i in range(tensors)})
    return nn.Sequential(model, nn.BatchNorm1d(4))


def calls_in(function: Callable[[], object]) -> Counter[str]:
    """Every Python and C function called, by kind."""
    counted: Counter[str] = Counter()

    def see(frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            counted[event] += 1

    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return counted


def most_calls(tensors: int) -> int:
    """Half a call per tensor: less than any walk, even at C speed, and far less than one operation each."""
    return 100 + tensors // 2


def test_the_call_counter_counts_a_walk() -> None:
    """The proof that the next test can fail: walking the module once exceeds its bound."""
    model = wide(750)
    assert calls_in(model.state_dict).total() > most_calls(750)
    assert calls_in(lambda: list(model.parameters())).total() > most_calls(750)
    assert calls_in(lambda: [p.data_ptr() for p in model[0].values()]).total() > most_calls(750)


@pytest.mark.parametrize("settings", [{}, {"buffers": "average"}, {"on_nonfinite": "raise"}, {"every": 1}])
@pytest.mark.parametrize("tensors", [10, 750])
def test_an_update_makes_less_than_one_call_per_tensor(settings: dict[str, Any], tensors: int) -> None:
    ema = EMA(wide(tensors), 0.999, **settings)
    for _ in range(3):  # the decays of the next updates are computed once for all of them
        ema.update()
    calls = calls_in(ema.update)
    assert calls.total() <= most_calls(tensors), calls


WALKS = (
    "state_dict",
    "parameters",
    "named_parameters",
    "buffers",
    "named_buffers",
    "modules",
    "named_modules",
    "children",
    "named_children",
    "_named_members",
    "apply",
    "_apply",
    "__getattr__",
)


@pytest.fixture
def no_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walking a module in any way, or planning anew, fails the test."""
    for name in WALKS:
        monkeypatch.setattr(nn.Module, name, lambda *args, **kwargs: pytest.fail("walked the module"))
    monkeypatch.setattr("polyak.torch.average_set.TensorMap", lambda *args: pytest.fail("planned anew"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"on_nonfinite": "raise"}, {"every": 2}])
def test_an_update_never_walks_the_module(
    request: pytest.FixtureRequest, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    ema = EMA(network().to(dtype), 0.9, **settings)
    request.getfixturevalue("no_walks")
    for _ in range(4):
        ema.update()
    assert ema.step == 4


def test_a_walk_would_be_caught(request: pytest.FixtureRequest) -> None:
    """The proof that the test above can fail."""
    model = network()
    ema = EMA(model, 0.9)
    model.half()
    request.getfixturevalue("no_walks")
    with pytest.raises(pytest.fail.Exception, match="walked the module"):
        model.state_dict()
    with pytest.raises(pytest.fail.Exception, match="planned anew"):
        ema.update()


def test_an_unchanged_model_is_not_replanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swapping, loading and validating in between are no change."""
    model = network()
    ema = EMA(model, 0.9)

    def planned(of: nn.Module, *args: Any) -> TensorMap:
        if of is model:
            pytest.fail("planned again")
        return TensorMap(of, *args)  # of the average's own module

    monkeypatch.setattr("polyak.torch.average_set.TensorMap", planned)
    for _ in range(2):
        model(torch.randn(4, 2)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        ema.update()
        with ema.average_parameters():
            model.eval()
        model.train().load_state_dict(model.state_dict())
        ema.load_state_dict(ema.state_dict())
        model.zero_grad()
        assert ema.module is not None
