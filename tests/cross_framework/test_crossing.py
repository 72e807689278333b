"""An average saved from one framework is the same network in the other."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import polyak
from tests.cross_framework.make import FOLDER, inputs

HERE, THERE = ("paddle", "torch") if find_spec("paddle") else ("torch", "paddle")


def convert(source: Path, out: Path, names: str) -> polyak.Average:
    command = [
        str(Path(sys.executable).parent / "polyak"),
        "convert",
        str(source),
        str(out),
        "--names",
        names,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return polyak.load(out)


def loaded(found: polyak.Average):
    """The network here, with these weights and no others."""
    if HERE == "torch":
        import torch

        from tests.cross_framework import torch_net

        net = torch_net.Net()
        state = {name: torch.from_numpy(array.copy()) for name, array in found.tensors.items()}
        # Paddle counts no batches.
        net.load_state_dict(state | {"conv.1.num_batches_tracked": net.conv[1].num_batches_tracked})
        return net, torch_net.output
    import paddle

    from tests.cross_framework import paddle_net

    net = paddle_net.Net()
    missing, unexpected = net.set_state_dict({k: paddle.to_tensor(v) for k, v in found.tensors.items()})
    assert (missing, unexpected) == ([], [])
    return net, paddle_net.output


def test_the_outputs_are_those_of_the_other_framework(tmp_path: Path) -> None:
    found = convert(FOLDER / f"{THERE}.safetensors", tmp_path / "here.safetensors", f"{THERE}-to-{HERE}")
    net, output = loaded(found)
    said = output(net, *inputs())
    np.testing.assert_allclose(said, np.load(FOLDER / f"{THERE}.npy"), rtol=0, atol=1e-5)
    assert found.header.step == 30
    assert found.header.profile == polyak.load(FOLDER / f"{THERE}.safetensors").header.profile


def test_going_back_is_bit_equal(tmp_path: Path) -> None:
    convert(FOLDER / f"{THERE}.safetensors", tmp_path / "here.safetensors", f"{THERE}-to-{HERE}")
    back = convert(tmp_path / "here.safetensors", tmp_path / "back.safetensors", f"{HERE}-to-{THERE}")
    first = polyak.load(FOLDER / f"{THERE}.safetensors")
    kept = {name for name in first.tensors if "num_batches" not in name}
    assert back.tensors.keys() == kept
    for name in kept:
        np.testing.assert_array_equal(back.tensors[name], first.tensors[name])


def test_the_files_here_are_what_is_made_today(tmp_path: Path) -> None:
    """On another processor the training may differ in its last bits, so only names, shapes and roles."""
    from tests.cross_framework.make import make

    make(tmp_path)
    kept, fresh = (polyak.load(folder / f"{HERE}.safetensors") for folder in (FOLDER, tmp_path))
    assert {k: v.shape for k, v in kept.tensors.items()} == {k: v.shape for k, v in fresh.tensors.items()}
    assert kept.header.profile == fresh.header.profile


@pytest.mark.parametrize("name", ["torch", "paddle"])
def test_the_average_is_no_raw_model(name: str) -> None:
    assert polyak.load(FOLDER / f"{name}.safetensors").header.role == "average"
