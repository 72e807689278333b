"""An update captured in a CUDA graph: on a tape anywhere, and for real on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", minversion="3.2")

from tests.torch.engines import graph_worker as worker
from tests.torch.engines.test_triton import gpu, worked


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=gpu)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return worked("graph_worker", (request.param,), tmp_path_factory.mktemp("graph"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, NaN too."""
    return a.keys() == b.keys() and all(torch.equal(bits(a[key]), bits(b[key])) for key in a)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize("options", worker.OPTIONS)
def test_a_replay_is_an_update(found: dict[str, Any], options: str) -> None:
    called, replayed = found["runs"][options]["called"], found["runs"][options]["replayed"]
    assert replayed["step"] == worker.STEPS
    assert replayed["trained"] == worker.STEPS - worker.BEFORE, "with or without an update"
    assert replayed["metrics"] == called["metrics"]
    assert replayed["profiles"] == called["profiles"]
    assert replayed["watched"] == called["watched"], "whoever watches sees the update that was counted"
    assert same(replayed["tensors"], called["tensors"])


def test_nan_was_met_on_the_way(found: dict[str, Any]) -> None:
    assert found["runs"]["one decay"]["replayed"]["metrics"]["skipped"] == "1"


def test_a_graph_replayed_by_itself_averages_and_counts_nothing(found: dict[str, Any]) -> None:
    assert len(found["unannounced"]) == len(worker.UNANNOUNCED)
    for before, after in found["unannounced"]:
        assert after == before


def test_what_cannot_be_captured_is_refused(found: dict[str, Any]) -> None:
    told = found["refused"]
    assert "before it ran once" in told["fresh"]
    assert 'on_nonfinite="raise" waits' in told["strict"]
    assert "the engine foreach cannot be captured" in told["plain"]
    assert told["plain"].startswith("ConfigError")
    assert told["stale"].startswith("PlanError: the model's tensors or averages moved after the last update")


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("how", ["load_state_dict", "reset", "moved"])
def test_a_graph_of_an_engine_left_behind_is_refused_at_every_step(
    found: dict[str, Any], every: int, how: str
) -> None:
    behind = found["left behind"][every][how]
    assert len(behind["said"]) == 2 * every
    assert all(said.startswith("PlanError: no update of the model's present") for said in behind["said"])
    assert behind["same"], "nothing was replayed or counted"
    assert behind["alive"], "the graph still points to its tables"


def test_a_buffer_that_no_graph_would_copy_is_refused_by_name(found: dict[str, Any]) -> None:
    assert found["host buffer"].startswith("ConfigError: table is a buffer on ")


def test_a_graph_of_tensors_left_behind_is_not_replayed(found: dict[str, Any]) -> None:
    assert found["refused"]["moved"].startswith("PlanError: no update of the model's present tensors")
    assert found["refused"]["never captured"].startswith("PlanError: no update of the model's present")
    assert found["refused"]["after it"] == "step 1, the same tensors"
