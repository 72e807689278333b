"""Two processes under DDP keep one average, one of them writes it, and both go on from what it wrote."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import apart
from tests.tensors import same


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def two(trainer: str, out: Path, worker: str = "ddp_worker") -> list[dict[str, Any]]:
    """What the two processes had at their end."""
    side_by_side(f"from tests.trainers.{worker} import *; main({trainer!r}, Path({str(out)!r}))")
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)]


def side_by_side(code: str) -> None:
    """Run it in two processes that are told of each other as ``torchrun`` tells them."""
    together = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    ended = apart(code, *(together | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")))
    assert [status for status, _ in ended] == [0, 0], "\n".join(told for _, told in ended)[-3000:]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("trainer", "kept", "others"),
    [
        ("accelerate", "custom_checkpoint_0.pkl", {"random_states_1.pkl"}),
        ("ignite", "checkpoint_4.pt", set()),
        (
            "transformers",
            "checkpoint-4/polyak.safetensors",
            {f"checkpoint-{n}/rng_state_1.pth" for n in (4, 8)},
        ),
    ],
)
def test_two_processes_keep_one_average(trainer: str, kept: str, others: set[str], tmp_path: Path) -> None:
    pytest.importorskip(trainer)
    first, second = two(trainer, tmp_path)
    assert first["steps"] == second["steps"] == [8, 8]
    whole, resumed = first["averages"]
    assert same(whole, second["averages"][0])
    assert same(whole, resumed)
    assert same(whole, second["averages"][1])
    assert kept in files(tmp_path / "0")
    assert files(tmp_path / "1") == others, (
        "each process writes the state of its random numbers, nothing else"
    )
