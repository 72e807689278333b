"""Two real processes that train together over gloo, each with an average of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

import polyak
from polyak.paddle import EMA

from .process_worker import STEPS, network

KINDS = ("DataParallel", "fleet", "fleet, sharding", "group_sharded")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def start(kind: str, rank: int, ports: list[int], folder: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PADDLE_DISTRI_BACKEND": "gloo",
        "PADDLE_MASTER": f"127.0.0.1:{ports[2]}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(ports[2]),
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINERS_NUM": "2",
        "PADDLE_TRAINER_ENDPOINTS": ",".join(f"127.0.0.1:{port}" for port in ports[:2]),
        "PADDLE_CURRENT_ENDPOINT": f"127.0.0.1:{ports[rank]}",
    }
    command = [sys.executable, "-m", "tests.paddle.process_worker", kind, str(folder)]
    with (folder / f"{rank}.log").open("w") as log:
        return subprocess.Popen(
            command, cwd=Path(__file__).parents[2], env=environment, stdout=log, stderr=subprocess.STDOUT
        )


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote after a training."""
    folder, ports = tmp_path_factory.mktemp("processes"), free_ports(3)
    processes = [start(request.param, rank, ports, folder) for rank in (0, 1)]
    try:
        for rank, process in enumerate(processes):
            assert process.wait(timeout=120) == 0, (folder / f"{rank}.log").read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder


@pytest.mark.parametrize("folder", ["group_sharded"], indirect=True)
@pytest.mark.parametrize("rank", [0, 1])
def test_slices_and_pieces_are_refused_with_the_way_out(folder: Path, rank: int) -> None:
    wrapped, inner, column = json.loads((folder / f"refusals{rank}.json").read_text())
    assert wrapped.startswith('the layer is wrapped by GroupShardedStage3 (level="p_g_os")')
    assert inner.startswith('0.weight belongs to GroupShardedStage3 (level="p_g_os")')
    for answer in (wrapped, inner):
        assert 'level="os_g" or "os" keeps parameters whole' in answer
    assert column.startswith("weight is a piece of a tensor-parallel layer (mp_degree)")
    assert 'exclude="weight"' in column


@pytest.mark.parametrize("listed", ["", "listed"])
def test_both_processes_hold_equal_averages_under_the_layers_own_names(folder: Path, listed: str) -> None:
    one, other = (np.load(folder / f"{listed}{rank}.npz") for rank in (0, 1))
    assert set(one) == set(other) == set(network().state_dict())
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_what_one_process_saved_loads_without_a_wrapper(folder: Path) -> None:
    kept = np.load(folder / "0.npz")
    loaded = polyak.load(folder / "average.safetensors")
    layer = network()
    missing, unexpected = layer.set_state_dict({k: paddle.to_tensor(v) for k, v in loaded.tensors.items()})
    assert not missing
    assert not unexpected
    for name, tensor in layer.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), kept[name])
    ema = EMA(layer, {"short": 0.5, "long": 0.9})
    assert not ema.load(folder / "state.safetensors")
    assert ema.step == STEPS
    for name, tensor in ema.tracks["short"].tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), kept[name])


def test_one_call_makes_buffers_equal(folder: Path) -> None:
    """Averaged ones become the mean of both processes, copied ones those of the first."""
    found = {name: [np.load(folder / f"{name}{rank}.npz") for rank in (0, 1)] for name in ("before", "after")}
    assert [one["1._mean"].tolist() for one in found["before"]] == [[0.5, 0.5], [1.5, 1.5]]
    for one in found["after"]:
        assert [one[key].tolist() for key in ("1._mean", "1._variance", "table")] == [
            [1, 1],
            [1.5, 1.5],
            [1, 1],
        ]


def test_a_skipped_step_and_an_unequal_average_are_named_by_every_process(folder: Path) -> None:
    for rank in (0, 1):
        steps, values, live = (folder / f"verify{rank}.txt").read_text().splitlines()
        assert steps.startswith("PlanError rank 1 has seen 1 steps, rank 0 2. Every rank has to call")
        assert values.startswith("PlanError 0.weight differs between rank 0 and rank 1. ")
        assert live.startswith("PlanError rank 0: verify: the model" if rank else "SwapError verify: ")
