"""Where Triton cannot run, an EMA runs without it and says why. The GPUs here are fake tensors, or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import polyak
from polyak.errors import ConfigError
from polyak.torch._engines import select as select
from polyak.torch._engines.base import Pair
from polyak.torch._engines.foreach import Foreach

pytest.importorskip("triton", minversion="3.2")

from polyak.torch._engines import triton

ROOT = Path(__file__).parents[3]
absent = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def on_gpu() -> Pair:
    with FakeTensorMode():
        theta = torch.zeros(3, 3, device="cuda")
        return Pair("w", theta, (theta.clone(),))


@pytest.fixture(autouse=True)
def forgotten() -> None:
    triton._failure.cache_clear()


@absent
def test_a_driver_that_refuses_leaves_the_tensor_to_foreach_and_metrics_say_why() -> None:
    pair = on_gpu()
    assert triton.takes(pair)
    assert select.engine_for(pair, "auto", skip=True) == "foreach"
    reason = select.describe(Foreach([pair], 0), "auto", skip=True)
    assert reason.startswith("foreach (Triton does not run here: ")


@absent
def test_triton_asked_for_by_name_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r'engine="triton": Triton does not run here: .*"auto" takes'):
        select.engine_for(on_gpu(), "triton", skip=True)


def test_pascal_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce GTX 1080")
    assert triton.failure(on_gpu(), skip=True).startswith("GeForce GTX 1080 is too old")


@absent
def test_what_the_launch_itself_raises_is_the_reason() -> None:
    """Past every check, Triton finds no driver for the CPU it is given."""
    pair = Pair("w", torch.zeros(3), (torch.zeros(3),))
    assert "0 active drivers" in triton.failure(pair, skip=True)


def test_each_variant_of_the_kernel_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton, "_launch_nothing", lambda *variant: tried.append(variant[1:]))
    for _ in range(3):
        assert select.engine_for(on_gpu(), "auto", skip=True) == "triton"
    select.engine_for(on_gpu(), "auto", skip=False)
    float32 = ("float32", ("float32", None), 1)
    assert tried == [(*float32, True, False), (*float32, False, False)]


def test_an_engine_asked_for_by_another_name_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_launch_nothing", lambda *variant: pytest.fail("launched"))
    assert select.engine_for(on_gpu(), "foreach", skip=True) == "foreach"


INTERPRETED = """
import torch, polyak
from torch._subclasses.fake_tensor import FakeTensorMode
from polyak.torch._engines import select as choose, triton
from polyak.torch._engines.base import Pair

print(polyak.EMA(torch.nn.Linear(2, 2), 0.9).metrics()["engine"])
ema = polyak.EMA(torch.nn.Linear(2, 2), 0.5, engine="triton")
with torch.no_grad():
    ema.model.weight.add_(1)
before = ema.tracks["average"].tensors["weight"].clone()
ema.update()
assert torch.allclose(ema.tracks["average"].tensors["weight"], before + 0.5)
print(ema.metrics()["engine"])
with FakeTensorMode():
    theta = torch.zeros(3, device="cuda")
    print(triton.failure(Pair("w", theta, (theta.clone(),)), True))
"""


def test_the_interpreter_runs_only_when_asked_for_by_name_and_never_on_a_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    auto, asked, gpu = done.stdout.splitlines()
    assert auto.startswith("native")
    assert asked == "triton (requested)"
    assert gpu.startswith("TRITON_INTERPRET was set at import")


def test_an_interpreter_asked_for_too_late_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert polyak.EMA(nn.Linear(2, 2), 0.9).metrics()["engine"].startswith("native")
