"""A run continued from a resumable file, in a new process, ends as if it had never been cut."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import polyak
from polyak._files.write import write_arrays
from polyak._foreign.open_any import open_weights
from tests.states import flat, opened
from tests.torch.resume_cases import CASES, advance, begin

HALF = 10  # in the middle of every=3 and every=4


def poison(model: nn.Module, step: int) -> None:
    """Every fifth step one element is not finite: what was skipped is counted, and resumed."""
    if step % 5 == 3:
        with torch.no_grad():
            model[0].weight[0, 0] = float("nan")


def run(case: str, first: int, last: int, folder: Path, resume: bool) -> polyak.EMA:
    model, optimizer, ema = begin(CASES[case])
    if resume:
        live = torch.load(folder / "live.pt", weights_only=True)
        model.load_state_dict(live["model"])
        optimizer.load_state_dict(live["optimizer"])
        assert not ema.load(folder / "ema.safetensors")
    for step in range(first, last):
        kept = model[0].weight.detach().clone()
        x = torch.randn(10, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        poison(model, step)
        ema.update(samples=10, tokens=10 + step % 3)
        if step % 5 == 3:
            with torch.no_grad():
                model[0].weight.copy_(kept)
    if not resume:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "live.pt")
    return ema


def finish(root: Path) -> None:
    for folder in sorted(root.iterdir()):
        case = json.loads((folder / "case.json").read_text())
        run(case, HALF, 23, folder, resume=True).save(folder / "resumed.safetensors", resumable=True)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every case's first half in a file, in one or in shards; then one new process that finishes all."""
    root, folders = tmp_path_factory.mktemp("resumable"), dict[str, Path]()
    for i, case in enumerate(CASES):
        folders[case] = root / str(i)
        folders[case].mkdir()
        (folders[case] / "case.json").write_text(json.dumps(case))
        ema = run(case, 0, HALF, folders[case], resume=False)
        size = 100 if i % 2 else None
        ema.save(folders[case] / "ema.safetensors", resumable=True, max_shard_size=size)
        assert (folders[case] / "ema.safetensors").exists() == (size is None)
    command = [
        sys.executable,
        "-c",
        f"import tests.torch.test_resume_file as t; t.finish(t.Path({str(root)!r}))",
    ]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=120)
    return folders


def assert_equal(one: Any, other: Any) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[key].dtype, key
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


@pytest.mark.parametrize("case", CASES)
def test_continuing_from_the_file_equals_never_having_stopped(
    resumed: dict[str, Path], tmp_path: Path, case: str
) -> None:
    whole = run(case, 0, 23, tmp_path, resume=False)
    again = begin(CASES[case])[2]
    assert not again.load(resumed[case] / "resumed.safetensors")
    expected, got = opened(whole.state_dict()), opened(again.state_dict())
    assert got.pop("run") != expected.pop("run")  # the run goes on under its first id
    assert_equal(got, expected)
    assert got["skipped"] == expected["skipped"]
    acted = CASES[case].get("every", 1) == 1 and CASES[case].get("start", 0) == 0
    assert not acted or expected["skipped"][0] == 4
    half = begin(CASES[case])[2]
    half.load(resumed[case] / "ema.safetensors")
    assert half.step == HALF
    assert half.run == again.run


def trained(case: str = "tracks") -> tuple[nn.Module, polyak.EMA]:
    model, optimizer, ema = begin(CASES[case])
    advance(model, optimizer, ema, 0, 7)
    return model, ema


def test_the_file_holds_exactly_the_state(tmp_path: Path) -> None:
    _, ema = trained()
    ema.save(tmp_path / "a", resumable=True)
    again = begin(CASES["tracks"])[2]
    again.load(tmp_path / "a")
    assert_equal(again.state_dict(), ema.state_dict())


def test_a_resumable_file_and_an_average_are_not_taken_for_each_other(tmp_path: Path) -> None:
    _, ema = trained()
    ema.save(tmp_path / "average.safetensors")
    ema.save(tmp_path / "raw.safetensors", track="raw")
    ema.save(tmp_path / "state.safetensors", resumable=True)
    with pytest.raises(polyak.CheckpointError, match=r"whole training state.*ema\.load"):
        polyak.load(tmp_path / "state.safetensors")
    for role in ("average", "raw"):
        with pytest.raises(polyak.CheckpointError, match=rf"holds {role} weights.*resumable=True"):
            ema.load(tmp_path / f"{role}.safetensors")


@pytest.mark.parametrize("other", ["constant", "power", "bfloat16", "copied buffers", "mid-accumulation"])
def test_the_state_of_another_average_is_refused_whole(tmp_path: Path, other: str) -> None:
    trained()[1].save(tmp_path / "a", resumable=True)
    model, optimizer, ema = begin(CASES[other])
    advance(model, optimizer, ema, 0, 3)
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in flat(ema.state_dict()).items()}
    with pytest.raises(polyak.CheckpointError):
        ema.load(tmp_path / "a")
    assert_equal(flat(ema.state_dict()), before)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.slow
def test_a_damaged_state_changes_nothing(tmp_path: Path, sharded: bool) -> None:
    _, ema = trained()
    ema.save(tmp_path / "a", resumable=True, max_shard_size=100 if sharded else None)
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in flat(ema.state_dict()).items()}
    for file in tmp_path.iterdir():
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            try:
                ema.load(tmp_path / "a")
            except polyak.CheckpointError:
                pass
            else:  # only white space and the size in an index say nothing of the tensors
                assert file.suffix == ".json", place
            assert_equal(flat(ema.state_dict()), before)
        file.write_bytes(whole)
    assert not ema.load(tmp_path / "a")


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "no tracks": lambda state: state.pop("tracks"),
    "tracks": lambda state: state.update(tracks=[1]),
    "names no tracks": lambda state: state["tracks"].update(a=5),
    "not that of a polyak.EMA": lambda state: state["tracks"]["a"].pop("clock"),
    "clock='x'": lambda state: state["tracks"]["a"].update(clock="x"),
    "step=-1": lambda state: state.update(step=-1),
}


@pytest.mark.parametrize("says", BROKEN)
def test_a_header_that_lies_with_right_checksums_is_refused(tmp_path: Path, says: str) -> None:
    """Checksums tell damage, not malice."""
    _, ema = trained()
    ema.save(tmp_path / "a", resumable=True)
    with open_weights(tmp_path / "a") as weights:
        arrays = {name: tensor.read() for name, tensor in weights.tensors.items()}
        header = json.loads(weights.metadata["polyak"])
    BROKEN[says](header["state"])
    write_arrays(tmp_path / "a", arrays, {"polyak": json.dumps(header)})
    with pytest.raises(polyak.CheckpointError) as refused:
        ema.load(tmp_path / "a")
    assert says in str(refused.value)


# Every dtype torch has, through ema.save and back -----------------------------------------------------

DTYPES = [
    dtype
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype) and name == str(dtype).removeprefix("torch.")
]
BYTES_WIDE = {  # those the format has a name for
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16",
    "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu",
}  # fmt: skip
NAMED = [dtype for dtype in DTYPES if str(dtype).removeprefix("torch.") in BYTES_WIDE]


class Holder(nn.Module):
    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("held", tensor)


def test_no_dtype_of_the_format_is_forgotten() -> None:
    assert len(NAMED) >= 18
    assert torch.float8_e5m2 in NAMED


@pytest.mark.parametrize("dtype", NAMED, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5, 7)], ids=str)
def test_every_dtype_is_saved_bit_by_bit(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape)) * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    bits = torch.randint(high, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tensor = bits.view(dtype).view(shape)
    ema = polyak.EMA(Holder(tensor), 0.9, buffers="copy")
    ema.save(tmp_path / "a.safetensors")
    theirs = load_file(tmp_path / "a.safetensors")["held"]
    assert (theirs.dtype, tuple(theirs.shape)) == (dtype, shape)
    assert torch.equal(theirs.view(-1).view(torch.uint8), bits)
    ours = polyak.load(tmp_path / "a.safetensors").tensors["held"]
    assert ours.shape == shape
    assert ours.tobytes() == bits.numpy().tobytes()
    ema.save(tmp_path / "state.safetensors", resumable=True)
    again = polyak.EMA(
        Holder(torch.zeros(count, dtype=torch.uint8).view(dtype).view(shape)), 0.9, buffers="copy"
    )
    again.load(tmp_path / "state.safetensors")
    back = again.state_dict()["copies"]["held"]
    assert torch.equal(back.reshape(-1).view(torch.uint8), bits)


def test_a_tensor_of_more_than_two_gigabytes_is_saved(tmp_path: Path) -> None:
    size = (1 << 31) + 5
    big = torch.zeros(size, dtype=torch.uint8)
    big[0], big[1 << 31], big[-1] = 1, 2, 3
    model = nn.Linear(1, 1)
    model.held = nn.Parameter(big, requires_grad=False)  # the average has no copy of what is frozen
    ema = polyak.EMA(model, 0.9)
    ema.save(tmp_path / "a.safetensors")
    del ema, model, big
    held = polyak.load(tmp_path / "a.safetensors").tensors["held"]
    (tmp_path / "a.safetensors").unlink()
    assert held.shape == (size,)
    assert np.flatnonzero(held).tolist() == [0, 1 << 31, size - 1]
    assert held[[0, 1 << 31, -1]].tolist() == [1, 2, 3]
