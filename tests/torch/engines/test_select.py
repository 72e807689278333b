"""Every tensor gets the fastest engine that can take it, and ``metrics`` says which and why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import polyak
from polyak._kernel import _native
from polyak.torch._engines import select as select

ROOT = Path(__file__).parents[3]


def named(model: nn.Module, **options: object) -> str:
    return polyak.EMA(model, 0.9, **options).metrics()["engine"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("storage", [None, torch.float32, torch.float64, torch.bfloat16, "split"])
def test_dense_tensors_go_to_the_kernel(dtype: torch.dtype, storage: object) -> None:
    assert named(nn.Conv2d(3, 4, 3).to(dtype), dtype=storage) == f"native ({_native.variants()[0]})"
    lying = nn.Conv2d(3, 4, 3).to(dtype).to(memory_format=torch.channels_last)
    assert named(lying, dtype=storage) == f"native ({_native.variants()[0]})"


def test_complex_tensors_go_to_blocks_and_it_says_why() -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(3, dtype=torch.complex64))})
    said = named(model)
    assert said.startswith("blocked (")
    assert "w, torch.complex64" in said


def test_tensors_with_holes_go_to_blocks_and_are_averaged() -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(6, 8)[:, ::2])})
    ema = polyak.EMA(model, 0.5)
    assert ema.metrics()["engine"].startswith("blocked (the C kernel does not support w, torch.float32")
    with torch.no_grad():
        model["w"].copy_(torch.arange(24.0).view(6, 4))
    ema.update()
    assert torch.equal(ema.tracks["average"].tensors["w"], torch.arange(24.0).view(6, 4) / 2)


def test_each_tensor_is_chosen_for_by_itself() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.zeros(3, dtype=torch.complex64), "c": torch.zeros(0)}
    model = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})
    ema = polyak.EMA(model, 0.5)
    native, blocked = ema.metrics()["engine"].split("; ")
    assert native.startswith("native")
    assert "does not support b" in blocked
    with torch.no_grad():
        model["a"].fill_(2)
        model["b"].fill_(4)
    ema.update()
    assert ema.tracks["average"].tensors["a"].tolist() == [1, 1, 1]
    assert ema.tracks["average"].tensors["b"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("engine", ["foreach", "blocked", "native"])
def test_the_engine_asked_for_is_taken(engine: str) -> None:
    assert named(nn.Linear(3, 3), engine=engine).startswith(engine)


def test_native_asked_for_leaves_what_it_cannot_take_to_others() -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(3, dtype=torch.complex64))})
    assert named(model, engine="native").startswith("blocked")


def test_an_unknown_engine_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        polyak.ConfigError, match=r"engine='fast': must be one of auto, foreach, blocked, nat"
    ):
        polyak.EMA(nn.Linear(2, 2), 0.9, engine="fast")


def test_triton_asked_for_where_it_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "load_triton", lambda: None)
    with pytest.raises(polyak.ConfigError, match=r'engine="triton": .*triton 3.2 or newer'):
        polyak.EMA(nn.Linear(2, 2), 0.9, engine="triton")


WITHOUT = """
import sys
sys.modules["polyak._kernel._native"] = None
import torch
from torch import nn
import polyak

for dtype in (None, torch.float64, torch.bfloat16, torch.float16, "split"):
    model = nn.Linear(300, 300)
    ema = polyak.EMA(model, {"a": 0.5, "b": 0.9}, dtype=dtype)
    assert ema.metrics()["engine"].startswith("blocked (the C kernel was not built: with a C compiler")
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
        model.bias[0] = float("nan")
    ema.update()
    for track, moved in {"a": 0.5, "b": 0.1}.items():
        apart = ema.tracks[track].value("weight").float() - first
        assert abs(apart.mean().item() - moved) < 1e-3
    assert ema.metrics()["skipped_tensors"] == {"bias": 1}
    again = polyak.EMA(model, {"a": 0.5, "b": 0.9}, dtype=dtype)
    again.load_state_dict(ema.state_dict())
    again.update(), ema.update()
    assert torch.equal(again.tracks["b"].tensors["weight"], ema.tracks["b"].tensors["weight"])
try:
    polyak.EMA(model, 0.9, engine="native")
except polyak.ConfigError as error:
    print(error)
"""


def test_without_the_kernel_all_goes_to_blocks_and_it_says_what_is_missing() -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(
        'engine="native": the C kernel was not built: with a C compiler, pip install'
    )


OLD = """
import torch
import triton

triton.__version__ = "3.1.0"
import polyak

print(polyak.EMA(torch.nn.Linear(2, 2)).metrics()["engine"])
try:
    polyak.EMA(torch.nn.Linear(2, 2), engine="triton")
except polyak.ConfigError as error:
    print(error)
"""


def test_an_old_triton_is_as_none() -> None:
    done = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, check=True)
    assert 'engine="triton": triton 3.2 or newer is not installed' in done.stdout
