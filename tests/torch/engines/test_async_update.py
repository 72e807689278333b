"""Concurrent updates read whole steps and give the bits of the plain path.

The device is simulated: a "stream" is a thread that works late, and θ stays in the host's memory. What
waits for what is the same code as on a GPU. The last tests run on a real one where there is one.
"""

from __future__ import annotations

import gc
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak
from polyak._core.save_and_load import capture
from polyak.torch._engines import updater as updater
from polyak.torch._engines.base import Pair
from polyak.torch._engines.blocked import Blocked
from polyak.torch._engines.pinned import pinned_like

LATE = 0.02  # seconds; an unordered update is this much too late


class LateWorker:
    """A stream that begins every job late, or when a gate opens.

    The simulated device has no queue of its own: it waits itself.
    """

    def __init__(self, gate: threading.Event | None = None) -> None:
        self._thread, self._gate = ThreadPoolExecutor(1), gate
        self.used: set[int] = set()

    def run(self, job: Callable[[], object]) -> Future[None]:
        def late() -> None:
            if self._gate is None:
                time.sleep(LATE)
            else:
                assert self._gate.wait(timeout=60)
            job()

        return self._thread.submit(late)

    def wait_event(self, event: Future[None]) -> None:
        event.result()

    def wait(self, event: Future[None]) -> None:
        event.result()

    def record_stream(self, tensors: Sequence[Tensor]) -> None:
        self.used |= {tensor.data_ptr() for tensor in tensors}  # addresses: this must keep nothing alive

    def pinned_like(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return pinned_like(tensors, pin=False)


def simulated_placement(how: str, pair: Pair) -> str:
    """As ``updater.placement`` on a GPU: buffers are not updated while a forward pass writes them."""
    return "inline" if how == "overlap" and pair.buffer else how


@pytest.fixture(params=["offload", "overlap"])
def simulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(updater, "placement", lambda pair, overlap: simulated_placement(request.param, pair))
    monkeypatch.setattr(updater, "worker_of", lambda device: LateWorker())
    return request.param


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, after: Callable[[], None]) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
        after()


def nothing() -> None:
    pass


def averages(ema: polyak.EMA) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in ema.tracks["average"].tensors.items()}


OPTIONS: list[dict[str, object]] = [
    {},
    {"dtype": torch.bfloat16},
    {"dtype": "split"},
    {"compensated": True},
    {"every": 3},
    {"decay": polyak.Debiased(0.9)},
    {"decay": polyak.ByName({"0.*": 0.9, "*.bias": polyak.Debiased(0.9), "*": 0.5})},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("attached", [True, False])
def test_the_bits_are_those_of_the_plain_path(
    simulated: str, options: dict[str, object], attached: bool
) -> None:
    options = {"decay": 0.9} | options
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    ema = polyak.EMA(model, overlap=True, **options)
    if attached:
        ema.attach(optimizer)
    train(model, optimizer, 7, nothing if attached else ema.update)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updater, "placement", lambda pair, overlap: "inline")
        twin = network()
        inline = polyak.EMA(twin, **options)
        train(twin, torch.optim.SGD(twin.parameters(), 0.5), 7, inline.update)
    for name, tensor in averages(inline).items():
        assert torch.equal(ema.tracks["average"].tensors[name], tensor), name
    assert simulated[:7] in ema.metrics()["engine"]


@pytest.mark.parametrize("decay", [0.9, polyak.ByName({"*running_mean": 0.5, "*": 0.9})], ids=str)
def test_copied_buffers_come_along(simulated: str, decay: float | polyak.ByName) -> None:
    model = network()
    ema = polyak.EMA(model, decay)
    train(model, torch.optim.SGD(model.parameters(), 0.5), 3, ema.update)
    assert int(ema.module[1].num_batches_tracked) == 3


def test_an_update_never_reads_half_stepped_weights(simulated: str) -> None:
    """The optimizer's next step must wait, or the late copy sees the weights after it."""
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    ema = polyak.EMA(model, 0.0, overlap=True)
    ema.attach(optimizer)
    for value in (1.0, 2.0):
        model.weight.grad = torch.full_like(model.weight, -1.0)
        with torch.no_grad():
            model.weight.fill_(value - 1)
        optimizer.step()
    assert ema.tracks["average"].tensors["weight"].unique().tolist() == [2.0]


def test_the_order_matters_to_this_test(simulated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(updater, "worker_of", lambda device: LateWorker(gate))
    monkeypatch.setattr(updater.Updater, "before_step", lambda self: None)
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    ema = polyak.EMA(model, 0.0, overlap=True)
    ema.attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer.step()
    with torch.no_grad():
        model.weight.fill_(5.0)  # as an unordered next step would
    gate.set()
    assert ema.tracks["average"].tensors["weight"].unique().tolist() == [5.0]


def test_without_overlap_the_weights_may_be_written_at_once(simulated: str) -> None:
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    ema = polyak.EMA(model, 0.0)
    ema.attach(optimizer)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        model.weight.fill_(5.0)  # clipping, say
    assert ema.tracks["average"].tensors["weight"].unique().tolist() == [1.0]


READERS: dict[str, Callable[[polyak.EMA], object]] = {
    "tracks": lambda ema: ema.tracks["average"].tensors["weight"].clone(),
    "state_dict": lambda ema: ema.state_dict()["tracks"]["average"]["tensors"]["weight"].clone(),
    "module": lambda ema: ema.module.weight.clone(),
    "call": lambda ema: ema(torch.eye(4)).T.clone(),
    "capture": lambda ema: capture(ema, "average", "float32").content.tensors["weight"].clone(),
}


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_the_average_finds_it_finished(simulated: str, reader: str) -> None:
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    ema = polyak.EMA(model, 0.0, overlap=True)
    ema.attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)
    with torch.no_grad():
        model.weight.fill_(3.0)
    optimizer.step()
    assert READERS[reader](ema).unique().tolist() == [3.0]


def test_only_the_properties_that_hand_out_averages_wait(
    simulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ema, waits, wait = polyak.EMA(nn.Linear(4, 4), 0.0), list[str](), updater.Updater.wait

    def noted(self: updater.Updater) -> None:
        waits.append(name)
        wait(self)

    monkeypatch.setattr(updater.Updater, "wait", noted)
    properties = [name for name, kind in inspect.getmembers(polyak.EMA) if isinstance(kind, property)]
    for name in properties:
        getattr(ema, name)
    name = "repr"
    repr(ema)
    assert {"step", "live", "decay", "model"} < set(properties)
    assert set(waits) == {"module", "tracks"}


def test_where_averages_are_on_the_device_its_stream_waits_and_not_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, placement = LateWorker(), "overlap"
    monkeypatch.setattr(updater, "placement", lambda pair, overlap: placement)
    monkeypatch.setattr(updater, "worker_of", lambda device: worker)
    waits: list[str] = []
    monkeypatch.setattr(worker, "wait", lambda event: (waits.append("host"), event.result()))
    monkeypatch.setattr(worker, "wait_event", lambda event: (waits.append("stream"), event.result()))
    ema = in_flight(1.0)[1]
    assert not waits
    assert ema.tracks
    assert ema.module
    assert set(waits) == {"stream"}
    placement = "offload"
    assert in_flight(1.0)[1].tracks
    assert "host" in waits  # so the other half of this test can fail


def test_a_swap_finds_it_finished_and_the_model_may_change_dtype(simulated: str) -> None:
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    ema = polyak.EMA(model, 0.0, overlap=True)
    ema.attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)
    with torch.no_grad():
        model.weight.fill_(3.0)
    optimizer.step()
    with ema.average_parameters():
        assert model.weight.unique().tolist() == [3.0]
    model.double()
    with torch.no_grad():
        model.weight.fill_(4.0)
    optimizer.step()
    assert ema.tracks["average"].tensors["weight"].unique().tolist() == [4.0]


def test_what_cannot_be_stored_is_counted_there_too(simulated: str) -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.ones(3))})
    ema = polyak.EMA(model, 0.5)
    for poisoned in (True, True, False):
        with torch.no_grad():
            model["a"].fill_(float("nan") if poisoned else 1.0)
        ema.update()
    metrics = ema.metrics()
    assert (metrics["skipped"], metrics["skipped_tensors"]) == (2, {"a": 2})
    assert ema.tracks["average"].tensors["a"].tolist() == [1, 1, 1]


def test_raise_looks_before_anything_is_begun(simulated: str) -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(3))})
    ema = polyak.EMA(model, 0.5, on_nonfinite="raise")
    with torch.no_grad():
        model["a"].fill_(float("nan"))
    with pytest.raises(polyak.NonFiniteError, match="a is not finite"):
        ema.update()
    assert ema.step == 0


def test_an_error_on_the_thread_is_raised_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updater, "placement", lambda pair, overlap: "offload")
    monkeypatch.setattr(updater, "worker_of", lambda device: LateWorker())
    model = nn.Linear(4, 4)
    ema = polyak.EMA(model, 0.5, engine="blocked")
    healthy, calls = Blocked.update, []

    def failing_once(self: Blocked, *args: Any) -> Tensor | None:
        calls.append(args)
        if len(calls) == 1:
            raise MemoryError("no room on the host")
        return healthy(self, *args)

    monkeypatch.setattr(Blocked, "update", failing_once)
    ema.update()
    with pytest.raises(MemoryError, match="no room on the host"):
        ema.update()
    ema.update()
    assert ema.metrics()["step"] == 2


def test_the_host_goes_on_while_it_is_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updater, "placement", lambda pair, overlap: "offload")
    gate = threading.Event()
    monkeypatch.setattr(updater, "worker_of", lambda device: LateWorker(gate))
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    ema = polyak.EMA(model, 0.0, overlap=True)
    ema.attach(optimizer)
    model(torch.ones(1, 4)).sum().backward()
    threads, before = set(threading.enumerate()), model.weight.detach().clone()
    optimizer.step()
    model(torch.ones(1, 4)).sum().backward()
    assert [t for t in set(threading.enumerate()) - threads if t.name.startswith("polyak")]
    gate.set()  # only now is θ copied
    assert not torch.equal(model.weight, before)
    assert torch.equal(ema.tracks["average"].tensors["weight"], model.weight)


def test_a_detached_optimizer_no_longer_guards(simulated: str) -> None:
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    ema = polyak.EMA(model, 0.0, overlap=True)
    handle = ema.attach(optimizer)
    handle.remove()
    handle.remove()
    with torch.no_grad():
        model.weight.fill_(1.0)
        ema.update()
        model.weight.fill_(5.0)
    assert ema.tracks["average"].tensors["weight"].unique().tolist() == [1.0]


@pytest.fixture
def gate(simulated: str, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Concurrent updates begin when it is set."""
    gate = threading.Event()
    monkeypatch.setattr(updater, "worker_of", lambda device: LateWorker(gate))
    return gate


def in_flight(value: float) -> tuple[nn.Linear, polyak.EMA, Any]:
    """A model whose weights are ``value``, and an update of its EMA that has not begun."""
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    ema = polyak.EMA(model, 0.0, overlap=True)
    handle = ema.attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)
    with torch.no_grad():
        model.weight.fill_(value)
    optimizer.step()
    return model, ema, handle


def test_removing_the_handle_waits_for_the_update_under_way(gate: threading.Event) -> None:
    model, ema, handle = in_flight(1.0)
    threading.Timer(0.1, gate.set).start()
    handle.remove()
    with torch.no_grad():
        model.weight.fill_(5.0)
    assert ema.tracks["average"].tensors["weight"].unique().tolist() == [1.0]


def assign(model: nn.Linear) -> None:
    model.load_state_dict({"weight": torch.full((4, 4), 7.0)}, assign=True)


def point(model: nn.Linear) -> None:
    model.weight.data = torch.full((4, 4), 7.0)


REPLACED: dict[str, Callable[[nn.Linear], object]] = {
    "p.data": point,
    "load_state_dict": assign,
    "to": lambda model: model.to(torch.float64),
}


@pytest.mark.parametrize("replaced", REPLACED)
def test_memory_that_the_model_gave_up_is_still_there_for_an_update_under_way(
    gate: threading.Event, replaced: str
) -> None:
    model, ema, _ = in_flight(1.0)
    REPLACED[replaced](model)
    junk = [torch.full((4, 4), 9.0) for _ in range(64)]  # takes memory that was freed
    gate.set()
    assert ema.tracks["average"].tensors["weight"].unique().tolist() == [1.0]
    del junk
    ema.update()
    assert ema.tracks["average"].tensors["weight"].unique().tolist() == model.weight.unique().tolist()


def test_an_average_dropped_while_its_update_is_under_way_lets_it_finish(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = LateWorker(gate)
    monkeypatch.setattr(updater, "worker_of", lambda device: worker)
    model, ema, handle = in_flight(1.0)
    del ema, handle
    model._forward_hooks.clear()
    gc.collect()
    gate.set()
    worker.run(lambda: None).result()  # after whatever was under way
    assert model.weight.unique().tolist() == [1.0]


def test_a_worker_knows_all_the_memory_that_its_jobs_use(
    simulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = LateWorker()
    monkeypatch.setattr(updater, "worker_of", lambda device: worker)
    model = network()
    ema = polyak.EMA(model, 0.9, overlap=True, compensated=True)
    averaged = [*model.parameters()] if simulated == "overlap" else [*model.parameters(), *model.buffers()]
    assert {tensor.data_ptr() for tensor in averaged} <= worker.used
    if simulated == "overlap":  # offloaded averages are the host's
        track, names = ema.tracks["average"], dict(model.named_parameters())
        kept = [parts[name] for parts in (track.tensors, track.residuals) for name in names]
        assert {tensor.data_ptr() for tensor in kept} <= worker.used


def test_a_step_in_a_graph_is_refused_before_anything_waits(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update in flight would be waited for, which no graph can hold; here it would wait forever."""
    model, ema, handle = in_flight(1.0)
    monkeypatch.setattr(updater.Updater, "capturing", lambda self: True)
    with pytest.raises(polyak.ConfigError, match="captured in a CUDA graph while its EMA runs"):
        ema._averages.updaters.before_step()
    monkeypatch.undo()
    gate.set()
    handle.remove()
    assert model.weight.unique().tolist() == [1.0]


def test_only_accelerators_have_side_streams() -> None:
    theta = torch.ones(3)
    assert updater.placement(Pair("w", theta, (theta.clone(),)), overlap=True) == "inline"


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@gpu
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("device", ["cpu", None])
def test_a_gpu_does_the_same(device: str | None, overlap: bool) -> None:
    model = network().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    ema = polyak.EMA(model, 0.9, device=device, overlap=overlap)
    plain = polyak.EMA(model, 0.9)
    ema.attach(optimizer)
    plain.attach(optimizer)
    torch.manual_seed(1)
    for _ in range(50):
        optimizer.zero_grad()
        model(torch.randn(16, 8, device="cuda")).square().mean().backward()
        optimizer.step()
    for name, tensor in averages(plain).items():
        torch.testing.assert_close(ema.tracks["average"].tensors[name].cuda(), tensor, rtol=3e-7, atol=1e-7)
