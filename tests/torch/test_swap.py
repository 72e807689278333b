"""The average inside the live model: what is exchanged, what survives, and what is refused meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from polyak import SwapError
from polyak.torch import EMA, update_batchnorm

from .conftest import Beside, array, network, trained

Peak = Callable[[Callable[[], object]], int]
X = torch.linspace(-1, 1, 6).view(3, 2)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


def snapshot(model: nn.Module) -> dict[str, tuple[int, Tensor]]:
    """Address and values of every tensor."""
    return {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}


def assert_restored(model: nn.Module, before: dict[str, tuple[int, Tensor]]) -> None:
    after = snapshot(model)
    assert after.keys() == before.keys()
    for name, (address, values) in before.items():
        assert after[name][0] == address, name
        assert after[name][1].dtype == values.dtype, name
        assert torch.equal(after[name][1], values), name


# --- storage exchange --------------------------------------------------------------------------------


def test_the_live_model_points_at_the_averages_own_memory() -> None:
    model = network()
    ema = trained(model)
    averages = ema.tracks["average"].tensors
    before = snapshot(model)
    with ema.average_parameters() as live:
        assert live is model
        for name, tensor in model.state_dict().items():
            if name in averages:
                assert tensor.data_ptr() == averages[name].data_ptr(), name
            assert tensor.data_ptr() != before[name][0]
    assert_restored(model, before)


def test_swapping_allocates_nothing(peak_bytes: Peak) -> None:
    """Other libraries keep a second copy of the model while the average is in."""
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)])
    ema = trained(model)

    def swap() -> None:
        with ema.average_parameters():
            pass

    swap()
    assert peak_bytes(swap) < 1024


def test_what_needs_a_cast_costs_one_cast_model_and_no_backup(peak_bytes: Peak) -> None:
    model = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(8)]).bfloat16()
    ema = trained(model)
    size = sum(p.numel() for p in model.parameters()) * 2

    def swap() -> None:
        with ema.average_parameters():
            pass

    assert size <= peak_bytes(swap) < 1.1 * size


def test_the_values_in_the_model_are_those_of_the_reference() -> None:
    side = Beside(network()).run()
    with side.ema.average_parameters():
        for name, expected in side.state.average.items():
            torch.testing.assert_close(
                torch.from_numpy(array(side.tensors()[name])),
                torch.from_numpy(expected),
                rtol=1e-5,
                atol=1e-6,
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_dtype_holds_the_rounded_average(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    ema = trained(model, dtype=torch.float32)
    before = snapshot(model)
    with ema.average_parameters():
        for name, average in ema.tracks["average"].tensors.items():
            assert model.state_dict()[name].dtype == dtype
            assert torch.equal(model.state_dict()[name], average.to(dtype))
    assert_restored(model, before)
    assert all(t.dtype == torch.float32 for t in ema.tracks["average"].tensors.values())


def test_averages_stored_in_16_bits_are_cast_for_a_float32_model() -> None:
    model = network()
    ema = trained(model, dtype=torch.bfloat16)
    before = snapshot(model)
    with ema.average_parameters():
        assert model[0].weight.dtype == torch.float32
        assert torch.equal(model[0].weight, ema.tracks["average"].tensors["0.weight"].float())
    assert_restored(model, before)


# --- leaving -----------------------------------------------------------------------------------------


class Stop(BaseException):
    """What no ``except Exception`` catches, like KeyboardInterrupt."""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, Stop])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exception_in_evaluation_restores_the_raw_weights(
    error: type[BaseException], dtype: torch.dtype
) -> None:
    """In several libraries the average stays in the live model, and training goes on from it."""
    model = network().to(dtype)
    ema = trained(model)
    before = snapshot(model)
    with pytest.raises(error), ema.average_parameters():
        raise error
    assert_restored(model, before)
    assert ema.live == "raw"
    ema.update()


def test_closing_a_generator_restores_the_raw_weights() -> None:
    model = network()
    ema = trained(model)
    before = snapshot(model)

    def batches() -> Iterator[Tensor]:
        with ema.average_parameters():
            while True:
                yield model.eval()(X)

    generator = batches()
    next(generator)
    assert ema.live == "average"
    generator.close()
    assert_restored(model, before)


def test_an_exception_half_way_into_the_exchange_restores_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import polyak.torch.swap as swap

    model = network()
    ema = trained(model)
    before = snapshot(model)
    calls: list[int] = []
    point_all = swap._point_all

    def failing(lives: Sequence[Tensor], memories: Sequence[Tensor]) -> None:
        calls.append(len(lives))
        if len(calls) == 1:
            point_all(lives[:3], memories[:3])
            raise Stop
        point_all(lives, memories)

    monkeypatch.setattr(swap, "_point_all", failing)
    with pytest.raises(Stop), ema.average_parameters():
        pass
    monkeypatch.undo()
    assert len(calls) > 1, "the way back went through it as well"
    assert_restored(model, before)
    assert ema.live == "raw"
    ema.update()
    with ema.average_parameters():
        assert ema.live == "average"


def test_blocks_nest_and_only_the_outermost_restores() -> None:
    """A nested block that saves what it finds would save the average as the raw weights."""
    model = network()
    ema = trained(model)
    before = snapshot(model)
    with ema.average_parameters():
        inside = snapshot(model)
        with pytest.raises(ValueError), ema.average_parameters():  # noqa: PT012
            assert_restored(model, inside)
            raise ValueError
        assert_restored(model, inside)
        assert ema.live == "average"
    assert_restored(model, before)


def test_blocks_left_out_of_order_keep_the_average_until_the_last() -> None:
    model = network()
    ema = trained(model)
    before = snapshot(model)

    def block() -> Iterator[None]:
        with ema.average_parameters():
            yield

    first, second = block(), block()
    next(first)
    next(second)
    first.close()
    assert ema.live == "average"
    assert model[0].weight.data_ptr() == ema.tracks["average"].tensors["0.weight"].data_ptr()
    second.close()
    assert ema.live == "raw"
    assert_restored(model, before)


def test_it_works_as_a_decorator() -> None:
    model = network().eval()
    ema = trained(model)

    @ema.average_parameters()
    def evaluate() -> Tensor:
        return model(X)

    for _ in range(2):
        torch.testing.assert_close(evaluate(), ema(X))
        assert ema.live == "raw"


@pytest.mark.parametrize("build", [network, lambda: nn.LSTM(2, 3)], ids=["plain", "LSTM"])
@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.double], ids=["half", "double"])
def test_a_cast_inside_the_block_is_undone(
    build: Callable[[], nn.Module], change: Callable[[nn.Module], object]
) -> None:
    model = build()
    ema = trained(model)
    before = snapshot(model)
    averages = {name: t.clone() for name, t in ema.tracks["average"].tensors.items()}
    with pytest.warns(RuntimeWarning, match="got other memory"), ema.average_parameters():
        change(model)
    assert_restored(model, before)
    for name, average in ema.tracks["average"].tensors.items():
        assert torch.equal(average, averages[name])


def test_validating_under_inference_mode_leaves_everything_trainable() -> None:
    """Also when the block is where a changed model is noticed and new averages are made."""
    model = network()
    model[2].requires_grad_(False)
    ema = trained(model)
    model[2].requires_grad_(True)
    before = snapshot(model)
    with torch.inference_mode(), ema.average_parameters():
        model.eval()(X)
        ema(X)
    assert_restored(model, before)
    model.train()(X).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    ema.update()
    assert ema.metrics()["skipped"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_ema_made_under_inference_mode_can_be_updated_outside(dtype: torch.dtype) -> None:
    model = network()
    with torch.inference_mode():
        ema = EMA(model, 0.9, dtype=dtype)
        ema.update()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    ema.update()
    assert ema.metrics()["skipped"] == 1


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("update", lambda ema, path: ema.update()),
        ("save", lambda ema, path: ema.save(path)),
        ("state_dict", lambda ema, path: ema.state_dict()),
        ("load_state_dict", lambda ema, path: ema.load_state_dict({})),
        ("copy_to", lambda ema, path: ema.copy_to()),
        ("reset", lambda ema, path: ema.reset()),
        ("reset", lambda ema, path: ema.reset("0.weight")),
    ],
)
def test_what_would_mix_up_raw_and_average_is_refused_while_swapped(
    verb: str, call: Callable[[EMA, str], object], tmp_path: os.PathLike[str]
) -> None:
    ema = trained(network())
    step, before = ema.step, {n: t.clone() for n, t in ema.tracks["average"].tensors.items()}
    path = os.path.join(tmp_path, "a.safetensors")
    with ema.average_parameters():
        with pytest.raises(SwapError, match=rf"^{verb}: the model holds the average 'average' now.*Leave"):
            call(ema, path)
        assert ema.live == "average"
    assert not os.path.exists(path)
    assert ema.step == step
    assert all(torch.equal(t, before[n]) for n, t in ema.tracks["average"].tensors.items())
    ema.update()


def test_an_attached_optimizer_cannot_step_the_average() -> None:
    model = network()
    ema = EMA(model, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema.attach(optimizer)
    model(X).sum().backward()
    with (
        pytest.warns(RuntimeWarning, match=r"something wrote to weight|something wrote to 0\.weight"),
        pytest.raises(SwapError, match="update"),
        ema.average_parameters(),
    ):
        optimizer.step()


def test_a_second_ema_over_the_same_model_is_refused_meanwhile() -> None:
    """It would take the first one's average for raw weights."""
    model = network()
    first, second = trained(model), EMA(model, 0.5)
    before = snapshot(model)
    kept = {name: t.clone() for name, t in second.tracks["average"].tensors.items()}
    with first.average_parameters():
        with pytest.raises(SwapError, match=r"0\.weight already holds another average"):
            second.average_parameters().__enter__()
        for verb in (second.update, second.copy_to, second.reset):
            with pytest.raises(SwapError, match="holds the average of another EMA now"):
                verb()
        assert (first.live, second.live) == ("average", "raw")
    assert_restored(model, before)
    assert all(torch.equal(t, kept[n]) for n, t in second.tracks["average"].tensors.items())
    second.update()
    with second.average_parameters():
        assert second.live == "average"


def test_an_ema_over_a_part_of_the_model_is_refused_meanwhile_too() -> None:
    model = network()
    whole, part = trained(model), EMA(model[2], 0.5)
    with whole.average_parameters(), pytest.raises(SwapError):
        part.update()
    with part.average_parameters(), pytest.raises(SwapError, match=r"2\.weight already holds"):
        whole.average_parameters().__enter__()
    whole.update()
    part.update()


def test_an_ema_over_another_model_is_not_disturbed() -> None:
    one, other = trained(network()), trained(network())
    with one.average_parameters(), other.average_parameters():
        assert (one.live, other.live) == ("average", "average")
    with one.average_parameters():
        other.update()


def test_two_tracks_go_in_one_after_the_other_but_not_into_each_other() -> None:
    model = network()
    ema = EMA(model, {"short": 0.5, "long": 0.99})
    with torch.no_grad():
        model[0].weight.zero_()
    ema.update()
    before = snapshot(model)
    for name in ("short", "long"):
        with ema.average_parameters(name):
            assert ema.live == name
            assert model[0].weight.data_ptr() == ema.tracks[name].tensors["0.weight"].data_ptr()
            other = "long" if name == "short" else "short"
            with pytest.raises(SwapError, match=f"track '{name}' is live; leave its block"):
                ema.average_parameters(other).__enter__()
            assert ema.live == name
        assert_restored(model, before)
    short, long = (ema.tracks[n].tensors["0.weight"] for n in ("short", "long"))
    assert not torch.equal(short, long)


# --- what survives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimizer_state_gradients_flags_and_views_survive(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).to(dtype)
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ema = EMA(model, 0.9)
    model(X.to(dtype)).sum().backward()
    optimizer.step()
    ema.update()
    model(X.to(dtype)).sum().backward()
    parameters = list(model.parameters())
    gradients = [None if p.grad is None else (p.grad, p.grad.clone()) for p in parameters]
    moments = {id(p): s["exp_avg"].clone() for p, s in optimizer.state.items()}
    view = model[1].weight.data[0]
    with ema.average_parameters():
        assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
        assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
        with torch.no_grad():
            model(X.to(dtype))
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None) == (gradient is None)
        if gradient is not None:
            assert p.grad is gradient[0]
            assert torch.equal(p.grad, gradient[1])
    assert all(torch.equal(s["exp_avg"], moments[id(p)]) for p, s in optimizer.state.items())
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    optimizer.step()
    assert torch.equal(view, model[1].weight.data[0]), "a view taken before still sees the parameter"


def test_training_with_evaluations_equals_training_without() -> None:
    """Step by step, bit by bit."""

    def run(evaluate: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, foreach=True)
        ema = EMA(model, 0.9)
        for _ in range(5):
            model.train()(torch.randn(4, 2)).square().sum().backward()
            if evaluate:
                with ema.average_parameters(), torch.no_grad():
                    model.eval()(X)
            optimizer.step()
            optimizer.zero_grad()
            ema.update()
        return [t.clone() for t in (*model.state_dict().values(), *ema.module.state_dict().values())]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_tied_weights_stay_tied() -> None:
    model = nn.Module()
    model.a = nn.Parameter(torch.randn(3))
    model.b = model.a
    model.c = nn.Parameter(model.a.data)
    ema = trained(model)
    average = ema.tracks["average"].tensors["a"]
    address = model.a.data_ptr()
    with ema.average_parameters():
        assert model.a is model.b
        assert model.a.data_ptr() == model.c.data_ptr() == average.data_ptr()
    assert model.a.data_ptr() == model.c.data_ptr() == address


def flat_model(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    flat = torch.randn(10).to(dtype)
    model = nn.Module()
    model.a = nn.Parameter(flat[:4].view(2, 2))
    model.b = nn.Parameter(flat[4:])
    return model, flat


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_views_of_one_memory_stay_in_it(dtype: torch.dtype) -> None:
    """Code that reads the flat buffer sees the average, and the raw weights afterwards."""
    model, flat = flat_model(dtype)
    ema = trained(model)
    raw = flat.clone()
    averages = ema.tracks["average"].tensors
    expected = torch.cat([averages["a"].reshape(-1), averages["b"]]).to(dtype)
    with pytest.raises(ValueError), ema.average_parameters():  # noqa: PT012
        assert torch.equal(flat, expected)
        assert not torch.equal(flat, raw)
        assert model.a.data_ptr() == flat.data_ptr()
        raise ValueError
    assert torch.equal(flat, raw)
    assert model.a.data_ptr() == flat.data_ptr()
    assert model.b.data_ptr() == flat[4:].data_ptr()
    assert torch.equal(averages["b"].to(dtype), expected[4:])


def test_a_cast_inside_the_block_does_not_tear_a_flat_memory_apart() -> None:
    model, flat = flat_model()
    ema = trained(model)
    raw = flat.clone()
    with pytest.warns(RuntimeWarning, match="got other memory"), ema.average_parameters():
        model.half()
    assert torch.equal(flat, raw)
    assert model.a.data_ptr() == flat.data_ptr()
    assert model.a.dtype == torch.float32


def test_overlapping_views_are_restored() -> None:
    memory = torch.randn(6)
    model = nn.Module()
    model.a = nn.Parameter(memory[:4])
    model.b = nn.Parameter(memory[2:])
    model.c = nn.Parameter(memory.view(2, 3).t())
    ema = trained(model)
    raw = memory.clone()
    with ema.average_parameters():
        torch.testing.assert_close(model.a, ema.tracks["average"].tensors["a"], rtol=1e-6, atol=1e-6)
        assert torch.equal(model.a[2:], model.b[:2])
    assert torch.equal(memory, raw)


@pytest.mark.parametrize("layers", [1, 2])
def test_an_lstm_runs_on_the_average_and_back(layers: int) -> None:
    model = nn.LSTM(2, 3, num_layers=layers)
    ema = trained(model)
    before = snapshot(model)
    with torch.no_grad():
        raw = model(X)[0]
        with ema.average_parameters():
            torch.testing.assert_close(model(X)[0], ema(X)[0])
            assert not torch.allclose(model(X)[0], raw)
        assert torch.equal(model(X)[0], raw)
    assert_restored(model, before)
    model(X)[0].sum().backward()


def test_frozen_and_excluded_tensors_are_not_touched() -> None:
    model = network()
    model[0].requires_grad_(False)
    ema = trained(model, exclude="2.bias")
    with ema.average_parameters():
        held = ema.tracks["average"].tensors
        untouched = [model[0].weight, model[0].bias, model[2].bias]
        assert all(t.data_ptr() not in {h.data_ptr() for h in held.values()} for t in untouched)
    assert set(held) == {"1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight"}


def test_batch_norm_runs_on_averaged_statistics_with_the_models_counter() -> None:
    model = network()
    ema = trained(model)
    with ema.average_parameters():
        assert torch.equal(model[1].running_var, ema.module[1].running_var)
        assert model[1].num_batches_tracked == ema.module[1].num_batches_tracked


def test_measuring_batch_norm_inside_the_block_changes_the_average_and_not_the_model() -> None:
    model = network()
    ema = trained(model)
    before = snapshot(model)
    with ema.average_parameters():
        update_batchnorm(model, [torch.randn(8, 2)])
        measured = model[1].running_mean.clone()
    assert_restored(model, before)
    assert torch.equal(ema.tracks["average"].tensors["1.running_mean"], measured)


# --- compiled models ---------------------------------------------------------------------------------


def compiled_whole() -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    return model, torch.compile(model, backend="eager")


def compiled_in_place() -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    model.compile(backend="eager")
    return model, model


def compiled_parts() -> tuple[nn.Module, nn.Module]:
    inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    model = nn.Sequential(inner, nn.Linear(3, 2))
    fast = nn.Sequential(torch.compile(inner, backend="eager"), torch.compile(model[1], backend="eager"))
    return model, fast


@pytest.mark.parametrize("build", [compiled_whole, compiled_in_place, compiled_parts])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_modules_see_the_weights_that_are_live(
    build: Callable[[], tuple[nn.Module, nn.Module]], dtype: torch.dtype
) -> None:
    plain, fast = build()
    fast.to(dtype)
    x = X.to(dtype)
    with torch.no_grad():
        fast(x)
        ema = trained(fast)
        raw = fast(x)
        assert torch.equal(raw, plain.forward(x))
        for _ in range(2):
            with ema.average_parameters():
                weights = {name: t.clone() for name, t in plain.state_dict().items()}
                inside = fast(x)
            expected = torch.func.functional_call(build()[0].to(dtype), weights, (x,))
            torch.testing.assert_close(inside, expected)
            assert not torch.allclose(inside, raw)
            assert torch.equal(fast(x), raw)


def test_swapping_does_not_recompile() -> None:
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    model = torch.compile(nn.Linear(2, 2), backend=backend)
    ema = trained(model)
    with torch.no_grad():
        model(X)
        compiled = len(graphs)
        for _ in range(3):
            with ema.average_parameters():
                model(X)
            model(X)
    assert compiled >= 1
    assert len(graphs) == compiled


def test_a_buffer_that_the_block_replaces_is_put_back() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + 1
            return super().forward(x)

    model = Counting()
    ema = trained(model, buffers="average")
    before = snapshot(model)
    with ema.average_parameters():
        model(X)
    assert_restored(model, before)


def test_a_module_is_not_built_on_another_emas_average() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    head, whole = EMA(model, 0.5, include="1.*"), EMA(model, 0.5)
    with whole.average_parameters(), pytest.raises(SwapError, match="the average of another EMA"):
        _ = head.module
    assert torch.equal(head.module[0].weight, model[0].weight)


# --- what others do to the tensors meanwhile ------------------------------------------------------------


def scaled(model: nn.Module) -> None:
    with torch.no_grad():
        model[2].weight.mul_(2)


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "in place": scaled,
    "multi-tensor": lambda model: torch._foreach_mul_([p.detach() for p in model.parameters()], 2),
    "load_state_dict": lambda model: model.load_state_dict(network().state_dict()),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_others_write_to_the_parameters_in_a_block_is_named(write: str, dtype: torch.dtype) -> None:
    """A schedule-free optimizer's eval() and train() do."""
    model = network().to(dtype)
    ema = trained(model)
    before = snapshot(model)
    with (
        pytest.raises(SwapError, match=r"something wrote to \d\.weight.*ema\.reset\(\)"),
        ema.average_parameters(),
    ):
        WRITES[write](model)
    assert_restored(model, before)
    assert ema.live == "raw"

    @ema.average_parameters()
    def fails() -> None:
        WRITES[write](model)
        raise ValueError

    with pytest.warns(RuntimeWarning, match="something wrote"), pytest.raises(ValueError):
        fails()
    assert_restored(model, before)
    with ema.average_parameters(), torch.no_grad():
        model.eval()(X.to(dtype))


def test_batch_norm_in_training_mode_is_named() -> None:
    model = network()
    ema = trained(model)
    with (
        pytest.warns(RuntimeWarning, match=r"wrote to 1\.num_batches_tracked.*model\.eval"),
        ema.average_parameters(),
    ):
        model(X)


@pytest.mark.usefixtures("process_group")
def test_buffers_that_ddp_broadcasts_are_not_written_to() -> None:
    """Up to torch 2.9 a broadcast counts as a write, also of what was there."""
    net = network()
    ema = trained(net)

    def broadcast() -> None:
        for buffer in net.buffers():
            buffer.copy_(buffer.clone())

    net.eval()
    with ema.average_parameters():
        broadcast()

    @ema.average_parameters()
    def write() -> None:
        broadcast()
        net[1].running_mean.add_(1)

    with pytest.warns(RuntimeWarning, match=r"wrote to 1\.running_mean\. The raw"):
        write()


def test_averages_of_two_halves_go_in_together() -> None:
    model = network().eval()
    first, last = (
        EMA(model, 0.5, include="0.*", buffers="ignore"),
        EMA(model, 0.5, include="2.*", buffers="ignore"),
    )
    before = snapshot(model)
    with first.average_parameters(), last.average_parameters(), last.average_parameters():
        assert (first.live, last.live) == ("average", "average")
        for name, ema in (("0.weight", first), ("2.weight", last)):
            average = ema.tracks["average"].tensors[name]
            assert model.get_parameter(name).data_ptr() == average.data_ptr()
    assert_restored(model, before)
