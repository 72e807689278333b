"""A server on Ray: what it counts, what it refuses, what readers get."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import polyak
from polyak.server import Client, Server, cluster, start
from polyak.server.ledger import Push
from polyak.server.shard import Message
from tests.schedules.strategies import SCHEDULES

pytestmark = pytest.mark.usefixtures("address")
FIRST = {"a": np.zeros(5, np.float32), "b": np.zeros((2, 3), np.float32), "n": np.array(0)}


def theta(value: float) -> dict[str, Any]:
    return {
        "a": np.full(5, value, np.float32),
        "b": np.full((2, 3), -value, np.float32),
        "n": np.array(int(value)),
    }


@pytest.fixture(scope="module")
def shared(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for tests that change nothing, or do not mind what others changed."""
    folder = tmp_path_factory.mktemp("shared")
    with start(FIRST, 0.9, folder=folder, name="shared", shards=2, max_staleness=50, max_ahead=100) as server:
        server.client("good").push(theta(1), step=100)
        yield server


@pytest.fixture(scope="module")
def stranger(shared: Server) -> subprocess.Popen[str]:
    """Somebody with a wrong token, whom Ray lets wait for 20 seconds: begun early, looked at last."""
    return apart(STRANGER, shared.address)


@pytest.mark.usefixtures("stranger")
def test_three_workers_are_weighted_as_the_schedule_says(address: str, name: str, folder: Path) -> None:
    """Each pushes twelve steps, four at a time; `test_counting.py` has every order of turns."""
    with start(FIRST, polyak.HalfLife(steps=4), folder=folder, name=name, shards=2) as server:
        clients = [server.client(f"worker-{w}") for w in range(3)]
        for begin in range(1, 13, 4):
            for worker in (1, 2, 0):
                for step in range(begin, begin + 4):
                    clients[worker].push(theta(step * (worker + 1)), step=step, samples=worker + 1)
        newest = server.stop()
    assert newest.version == 36
    weights = [(w + 1) * 2 ** (-(12 - s) / 4) for w in range(3) for s in range(1, 13)]
    values = [s * (w + 1) for w in range(3) for s in range(1, 13)]
    found = newest.tensors["a"][0]
    assert found == pytest.approx(np.average(values, weights=weights), rel=1e-5)
    np.testing.assert_array_equal(newest.tensors["b"], np.full((2, 3), -found))


@pytest.mark.parametrize("kind", ["Piecewise", "Custom"])
def test_a_schedule_of_parts_or_a_function_counts_at_the_server(
    kind: str, address: str, name: str, folder: Path
) -> None:
    """One shard, one worker, late and in time; `test_counting.py` has every schedule."""
    decay, steps = SCHEDULES[kind], [1, 2, 3, 5, 4, 6, 7, 3]
    server = start({"w": np.zeros(8)}, decay, folder=folder, name=name)
    worker = server.client("worker")
    for place, step in enumerate(steps):
        worker.push({"w": np.eye(8)[place]}, step=step)
    newest = server.stop()
    own = polyak.Profile.from_decay(decay, 7).weights()[steps]
    np.testing.assert_allclose(newest.tensors["w"], own / own.sum(), atol=1e-12)
    assert newest.profile is not None
    expected = np.bincount(steps, own / own.sum())
    np.testing.assert_allclose(newest.profile.weights(), expected, atol=1e-9)


def test_an_id_is_counted_once_and_only_its_newest_client_speaks_for_a_worker(
    address: str, name: str, folder: Path
) -> None:
    with start(FIRST, polyak.Uniform(), folder=folder, name=name) as server:
        before = server.client("w")
        assert [before.push(theta(v), step=1).id for v in (1, 2)] == [1, 2]
        after = server.client("w")  # the worker was started again
        again = after.push(theta(2), step=1, id=2)
        assert (again.accepted, again.version) == (True, 2)
        assert after.push(theta(3), step=1).id == 3
        with pytest.raises(polyak.ServerError, match="another client has this name"):
            before.push(theta(9), step=1)
        after.flush()
        assert server.metrics()["repeated"] == 1
        assert after.pull().tensors["a"][0] == pytest.approx(2)


def test_a_late_push_counts_as_in_time_and_a_stale_one_is_refused(shared: Server) -> None:
    worker = shared.client("late")
    late = worker.push(theta(1), step=60)
    assert (late.accepted, late.staleness) == (True, 40)
    version = worker.metrics()["version"]
    stale = worker.push(theta(1), step=49)
    assert not stale.accepted
    assert "max_staleness=50" in stale.reason
    ahead = worker.push(theta(1), step=201)
    assert not ahead.accepted
    assert "max_ahead=100" in ahead.reason
    figures = worker.metrics()
    assert (figures["too_stale"], figures["too_far_ahead"], figures["version"]) == (1, 1, version)
    assert worker.push(theta(1), step=99).accepted
    worker.flush()


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a name is missing": ({"a": FIRST["a"], "b": FIRST["b"]}, {}, "n missing"),
    "a name is unknown": ({**FIRST, "c": FIRST["a"]}, {}, "c not in it"),
    "a shape differs": ({**FIRST, "a": np.zeros(6, np.float32)}, {}, r"a has shape \(6,\)"),
    "huge": ({**FIRST, "a": np.zeros(1 << 20, np.float32)}, {}, "a has shape"),
    "integers to average": ({**FIRST, "a": np.zeros(5, np.int64)}, {}, "a is int64"),
    "floats to copy": ({**FIRST, "n": np.array(1.5)}, {}, "n is float64"),
    "objects": ({**FIRST, "a": np.array([None] * 5)}, {}, "a is object"),
    "NaN at the end": ({**FIRST, "b": np.array([[0, 0, 0], [0, 0, np.nan]], np.float32)}, {}, "b not finite"),
    "too large": ({**FIRST, "a": np.full(5, 1e300)}, {}, "a not finite"),
    "step 0": (FIRST, {"step": 0}, "step=0"),
    "step 10**30": (FIRST, {"step": 10**30}, "step=1000000"),
    "half a step": (FIRST, {"step": 1.5}, "whole numbers"),
    "no samples": (FIRST, {"samples": 0}, "samples=0"),
    "NaN samples": (FIRST, {"samples": float("nan")}, "samples=nan"),
    "a profile of the future": (FIRST, {"profile": polyak.Profile.raw(101)}, "ends at 101"),
    "half a profile": (FIRST, {"profile": polyak.Profile.raw(1) * 0.5}, "add up to 1"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_push_changes_nothing(shared: Server, what: str) -> None:
    model, given, words = BAD[what]
    options: dict[str, Any] = {"step": 100, **given}
    worker, good = shared.client("bad"), shared.client("good")
    version = worker.metrics()["version"]
    with pytest.raises(polyak.ServerError, match=words):
        worker.push(model, **options)
    assert worker.metrics()["version"] == version
    assert good.push(theta(1), step=100).version == version + 1
    good.flush()
    assert np.isfinite(good.pull().tensors["b"]).all()


def test_what_no_client_sends_is_refused_where_the_shard_is(shared: Server) -> None:
    """A worker with the token, but code of its own."""
    shard, ledger = cluster.find("shared/0"), cluster.find("shared/ledger")
    version = shared.metrics()["version"]
    digest = shared.client("honest")._layout.digest  # pyright: ignore[reportPrivateUsage]
    raw = np.zeros(20, np.uint8)
    for message in (
        "pickled",
        Message(digest + 1, ["F32", "F32"], [raw, raw]),
        Message(digest, ["F32"], [raw]),
        Message(digest, ["F32", "F32"], [raw[:19], raw]),
        Message(digest, ["F32", "I32"], [raw, raw]),
        Message(digest, ["F32", object()], [raw, raw]),  # type: ignore[list-item]
        Message(digest, ["F32", "F32"], [[0] * 20, raw]),  # type: ignore[list-item]
    ):
        with pytest.raises(polyak.ServerError):
            cluster.ask(shard, "stage", "w", 1, message, timeout=60)
    for push in (
        "pickled",
        Push("w", 1, 1, 0, 100, 1.0, "[]", 0, False),
        Push("", 1, 1, 0, 100, 1.0, "", 0, False),
    ):
        with pytest.raises(polyak.ServerError):
            cluster.ask(ledger, "count", push, timeout=60)
    # A push that only one of the shards has seen is not counted.
    honest = Push("half", 1, 1, 0, 100, 1.0, "", 0, False)
    assert cluster.ask(ledger, "count", honest, timeout=60).outcome == "gap"
    assert shared.metrics()["version"] <= version


def test_readers_see_versions_that_are_kept_and_none_twice(address: str, name: str, folder: Path) -> None:
    with start(FIRST, 0.5, folder=folder, name=name, shards=3, keep=2, every=0) as server:
        worker, reader = server.client("worker"), server.client()
        followed = reader.follow(every=0.01)
        seen = [next(followed).version]
        for step in (1, 2, 3):
            worker.push(theta(step), step=step)
            average = next(followed)
            seen.append(average.version)
            assert average.step == step
            assert average.tensors["n"] == step
        assert seen == [0, 1, 2, 3]
        assert reader.pull(version=2).tensors["a"][0] == pytest.approx((1 * 0.5 + 2) / 1.5)
        with pytest.raises(polyak.ServerError, match=r"version 1 is gone; there are \[2, 3\]"):
            reader.pull(version=1)
        with pytest.raises(polyak.ConfigError, match="this client is a reader"):
            reader.push(theta(1), step=4)


def test_pushed_averages_bring_their_profiles(address: str, name: str, folder: Path, tmp_path: Path) -> None:
    """Two workers average on their own, and push that every few steps: once in memory, once as a file."""
    nets = [nn.Linear(3, 1) for _ in range(2)]
    emas = [polyak.EMA(net, polyak.Debiased(0.5)) for net in nets]
    for step in range(1, 5):
        for i, (net, ema) in enumerate(zip(nets, emas, strict=True)):
            nn.init.constant_(net.weight, step * (i + 1))
            ema.update()
    with start(nets[0], polyak.Uniform(), folder=folder, name=name) as server:
        worker = server.client("worker")
        worker.push(emas[0].module, step=4, profile=emas[0].tracks["average"].profile)
        emas[1].save(tmp_path / "average.safetensors")
        worker.push(polyak.load(tmp_path / "average.safetensors"), samples=3)
        newest = server.stop()
    own = polyak.Profile.from_decay(polyak.Debiased(0.5), 4).weights()
    assert newest.profile is not None
    np.testing.assert_allclose(newest.profile.weights(), own, atol=1e-9)
    expected = own @ np.arange(5) * (1 + 3 * 2) / 4
    np.testing.assert_allclose(newest.tensors["weight"], expected, rtol=1e-6)
    read = polyak.load(folder / f"{name}.safetensors")
    assert read.header.profile == newest.profile
    assert read.header.decay == polyak.Uniform()


def test_a_module_is_pushed_and_pulled(address: str, name: str, folder: Path) -> None:
    """BatchNorm's statistics are averaged, its counter and the vectors of spectral norm copied."""

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        sn = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        net = nn.Sequential(
            nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(4), sn
        )
        net(torch.randn(8, 1, 4, 4))
        return net

    one, other, into = made(1), made(2), made(3).to(torch.bfloat16)
    with start(one, polyak.Uniform(), folder=folder, name=name, shards=3) as server:
        worker = server.client("worker")
        worker.push(one, step=1)
        other(torch.randn(8, 1, 4, 4))
        worker.push(other, step=2)
        worker.flush()
        newest = worker.pull(into)
    expected = {key: value.float() for key, value in one.state_dict().items()}
    for key, value in other.state_dict().items():
        copied = "num_batches" in key or key.endswith(("_u", "_v"))
        wanted = value.float() if copied else (expected[key] + value) / 2
        assert newest.tensors[key] == pytest.approx(wanted.numpy(), abs=1e-6)
        found = into.state_dict()[key]
        assert torch.equal(found, torch.from_numpy(newest.tensors[key]).to(found.dtype))


def test_half_the_bytes(address: str, name: str, folder: Path) -> None:
    values = np.linspace(-1, 1, 101, dtype=np.float32)
    with start({"w": values, "n": np.array(1)}, 0.9, folder=folder, name=name, shards=2) as server:
        worker = server.client("worker", compress="bf16")
        worker.push({"w": values, "n": np.array(2)}, step=1)
        worker.flush()
        newest = worker.pull()
        assert server.metrics()["bytes"] == (101 * 4 + 8) // 2
    np.testing.assert_allclose(newest.tensors["w"], torch.from_numpy(values).bfloat16().float(), atol=1e-9)
    assert newest.tensors["n"] == 2


def test_pushes_under_way_are_bounded(address: str, name: str, folder: Path) -> None:
    size = sum(array.nbytes for array in FIRST.values())
    with start(FIRST, 0.9, folder=folder, name=name, every=1000) as server:
        for worker, options, most in (
            ("few", {"unacknowledged": 3}, 3),
            ("small", {"max_bytes": 2 * size}, 2),
        ):
            client = server.client(worker, **options)
            kept: list[int] = []
            for step in range(1, 10):
                client.push(theta(step), step=step)
                kept.append(len(client.unacknowledged))
            assert max(kept) == most
            client.flush()
            assert client.unacknowledged == []


def test_complex_wide_and_empty_tensors(address: str, name: str, folder: Path) -> None:
    first = {"c": np.zeros(3, np.complex64), "d": np.zeros(2), "e": np.zeros((0, 4), np.float32)}
    with start(first, polyak.Uniform(), folder=folder, name=name, shards=4) as server:
        worker = server.client("worker")
        for value in (1 + 2j, 3 - 4j):
            pushed = {
                "c": np.full(3, value, np.complex64),
                "d": np.full(2, value.real + 1e-12),
                "e": first["e"],
            }
            worker.push(pushed, step=1)
        tensors = server.stop().tensors
    np.testing.assert_array_equal(tensors["c"], np.full(3, 2 - 1j, np.complex64))
    np.testing.assert_allclose(tensors["d"], 2 + 1e-12, rtol=1e-15)
    assert tensors["e"].shape == (0, 4)


def test_a_folder_goes_on_with_the_same_tensors_and_schedule_only(
    address: str, name: str, folder: Path
) -> None:
    with start(FIRST, polyak.Uniform(), folder=folder, name=name, shards=1) as server:
        server.client("w").push(theta(2), step=1)
    with pytest.raises(polyak.ConfigError, match="of other tensors"):
        start({"a": FIRST["a"]}, polyak.Uniform(), folder=folder, name=name)
    with pytest.raises(polyak.ConfigError, match="Give another folder, or the same schedule"):
        start(FIRST, 0.9, folder=folder, name=name)
    with start(FIRST, polyak.Uniform(), folder=folder, name=name, shards=3) as server:
        worker = server.client("w")
        assert worker.push(theta(4), step=1).id == 2
        worker.flush()
        assert worker.pull().tensors["a"][0] == pytest.approx(3)


SERVE = """
import sys, numpy as np, polyak
from polyak.server import start
with start({"w": np.zeros(4)}, polyak.Uniform(), folder=sys.argv[1], shards=2, store=200 << 20) as server:
    worker = server.client("worker")
    for value in (1.0, 2.0):
        worker.push({"w": np.full(4, value)}, step=1)
    worker.flush()
    print(worker.pull().version, worker.pull().tensors["w"].tolist())
"""
STRANGER = """
import sys, polyak
from polyak.server import Client
try:
    Client(sys.argv[1], "f" * 64, name="shared")
except polyak.ServerError as error:
    print("refused:", error)
"""


def apart(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A script in a process that knows nothing of this one's cluster."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen[str]) -> str:
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return said


def test_the_whole_cluster_is_stopped_and_started(folder: Path) -> None:
    assert output(apart(SERVE, str(folder))).endswith("2 [1.5, 1.5, 1.5, 1.5]\n")
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    assert output(apart(SERVE, str(folder))).endswith("4 [1.5, 1.5, 1.5, 1.5]\n")


def test_a_wrong_token_is_refused(shared: Server, stranger: subprocess.Popen[str]) -> None:
    assert "refused: address=" in output(stranger)


def test_a_name_that_nobody_serves_is_refused(shared: Server) -> None:
    with pytest.raises(polyak.ServerError, match="runs no nobody/ledger"):
        Client(shared.address, name="nobody")
    with pytest.raises(polyak.ServerError, match="is connected to"):
        Client("192.0.2.99:1234")
