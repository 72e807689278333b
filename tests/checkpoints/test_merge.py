"""polyak.average_checkpoints: against the sum written out, from every layout, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import polyak
from polyak import CheckpointError, ConfigError, HalfLife, Profile, Recency, average_checkpoints
from polyak._dtypes import BY_NAME, is_float
from polyak._files import layout, weighted_sum
from polyak._files.checkpoint import Checkpoint, ComputedTensor, LazyTensor
from polyak._files.header import Header
from polyak._files.layout import Spec
from polyak._files.shards import write_sharded
from polyak._files.write import write_arrays
from polyak._foreign.open_any import open_weights
from polyak._foreign.recognize import step_in_name
from polyak.cli.describe import describe
from polyak.merge import inputs
from polyak.schedules import solve

Tensors = dict[str, np.ndarray]
FLOATS = [name for name, dtype in BY_NAME.items() if is_float(dtype) and name != "F8_E8M0"]
WHOLE = [name for name, dtype in BY_NAME.items() if not is_float(dtype)]
SMALL_PIECE = 16


def tensors_of(path: str | Path) -> Tensors:
    with open_weights(path) as weights:
        return {name: lazy.read() for name, lazy in weights.tensors.items()}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def single(folder: Path, tensors: Tensors) -> str | Path:
    write_arrays(folder / "model.safetensors", tensors, {})
    return folder / "model.safetensors"


def plain(folder: Path, tensors: Tensors) -> str | Path:
    """By the format's own package, without checksums, where it knows the dtypes."""
    if any(array.dtype.kind == "V" or array.dtype.kind == "c" for array in tensors.values()):
        return single(folder, tensors)
    save_file(tensors, folder / "plain.safetensors")
    return folder / "plain.safetensors"


def shards(folder: Path, tensors: Tensors) -> str | Path:
    specs = {name: Spec(array.dtype, array.shape) for name, array in tensors.items()}
    write_sharded(folder / "model.safetensors", specs, {}, lambda name: [tensors[name]], 100)
    return folder


def remote(folder: Path, tensors: Tensors) -> str | Path:
    import fsspec

    path = single(folder, tensors)
    fsspec.filesystem("memory").pipe(f"{path}", Path(path).read_bytes())
    return f"memory://{path}"


LAYOUTS: list[Callable[[Path, Tensors], str | Path]] = [single, plain, shards, remote]
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple) | st.just((3, 7, 11))


def draw_values(generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if not is_float(dtype):
        top = 1 if dtype.kind == "b" else np.iinfo(dtype).max
        return generator.integers(0, top, shape, np.uint64, endpoint=True).astype(dtype)
    values = generator.uniform(-1, 1, shape) * 10 ** generator.uniform(-2, 2)
    return (values + 1j * values[::-1] if dtype.kind == "c" and shape else np.asarray(values)).astype(dtype)


@st.composite
def checkpoint_sets(draw: st.DrawFn) -> tuple[list[Tensors], list[float]]:
    """Up to five checkpoints with the same names, shapes and kinds, and weights that sum to 1."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 5))
    made: list[Tensors] = [{} for _ in range(count)]
    real = [name for name in FLOATS if name != "C64"]
    for i in range(draw(st.integers(1, 4))):
        kinds = draw(st.sampled_from([real, ["C64"], WHOLE]))
        shape = draw(shapes)
        for tensors in made:
            dtype = BY_NAME[draw(st.sampled_from(kinds))]
            tensors[f"t{i}"] = draw_values(generator, shape, dtype)
    weights = np.array(draw(st.lists(st.floats(-1, 2), min_size=count, max_size=count)))
    weights[0] += 1 - weights.sum()
    return made, weights.tolist()


def tolerance(array: np.ndarray, inputs: Sequence[np.ndarray], weights: Sequence[float], wide: str) -> Any:
    """Half a unit of the result, and one rounding of the largest number met for each input."""
    limits = ml_dtypes.finfo(array.dtype)
    largest = max((np.abs(x.astype(np.complex128)).max() for x in inputs if x.size), default=0.0)
    added = 4 * len(inputs) * float(np.finfo(wide).eps) * largest * (1 + sum(map(abs, weights)))
    expected = np.abs(array.astype(np.complex128))
    return float(limits.eps) * expected + float(limits.smallest_subnormal) + added


@given(
    checkpoint_sets(),
    st.lists(st.sampled_from(LAYOUTS), min_size=5, max_size=5),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([None, "float32", "float64", "bfloat16", "float16"]),
)
@settings(deadline=None)
@pytest.mark.slow
def test_it_is_the_weighted_sum_from_any_mixture_of_layouts(
    drawn: tuple[list[Tensors], list[float]],
    layouts: list[Callable[[Path, Tensors], str | Path]],
    accumulate: Any,
    dtype: Any,
) -> None:
    checkpoints, weights = drawn
    with TemporaryDirectory() as name, patch.object(weighted_sum, "PIECE", SMALL_PIECE):
        paths: list[str | Path] = []
        for i, tensors in enumerate(checkpoints):
            folder = Path(name, str(i))
            folder.mkdir()
            paths.append(layouts[i](folder, tensors))
        out = Path(name, "out.safetensors")
        report = average_checkpoints(paths, out, weights, dtype, accumulate)
        made = tensors_of(out)
    assert report.weights == tuple(weight / math.fsum(weights) for weight in weights)
    assert {*report.averaged, *report.copied} == set(made) == set(checkpoints[0])
    for name, array in made.items():
        given_ = [tensors[name] for tensors in checkpoints]
        if name in report.copied:
            assert not is_float(array.dtype)
            assert same_bits(array, given_[-1])
            continue
        real = array.dtype.kind != "c"
        assert array.dtype == (np.dtype(dtype) if dtype and real else given_[0].dtype)
        expected = sum(w * x.astype(np.complex128) for w, x in zip(weights, given_, strict=True))
        error = np.abs(array.astype(np.complex128) - expected)
        assert np.all(error <= tolerance(array, given_, weights, accumulate))


@given(st.integers(0, 2**32), st.lists(st.floats(0, 9), min_size=0, max_size=4))
@settings(deadline=None)
@pytest.mark.slow
def test_what_is_equal_everywhere_comes_out_bit_for_bit(seed: int, others: list[float]) -> None:
    weights = [weight / (1 + sum(others)) for weight in (*others, 1)]
    generator = np.random.default_rng(seed)
    tensors = {name: draw_values(generator, (5, 9), BY_NAME[name]) for name in FLOATS}
    tensors["F8_E8M0"] = np.array([2.0, 0.25], BY_NAME["F8_E8M0"])
    with TemporaryDirectory() as name:
        path = single(Path(name), tensors)
        average_checkpoints([path] * len(weights), Path(name, "out.safetensors"), weights)
        made = tensors_of(Path(name, "out.safetensors"))
    assert all(same_bits(made[name], array) for name, array in tensors.items())


def two(folder: Path, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Path]:
    paths = [folder / "a.safetensors", folder / "b.safetensors"]
    for path, tensors in zip(paths, (first, second), strict=True):
        write_arrays(path, {name: np.asarray(value) for name, value in tensors.items()}, {})
    return paths


def test_float64_is_added_in_float64_unasked(tmp_path: Path) -> None:
    tiny = 2.0**-40
    paths = two(tmp_path, {"w": np.float64(1 + tiny)}, {"w": np.float64(1 + 3 * tiny)})
    average_checkpoints(paths, tmp_path / "o.safetensors")
    assert tensors_of(tmp_path / "o.safetensors")["w"] == 1 + 2 * tiny


def test_accumulating_in_float64_rounds_once(tmp_path: Path) -> None:
    """The mean lies just above a midpoint of bfloat16: by way of float32 it would round down, to even."""
    low, high = np.float32(1 + 2**-8), np.float32(1 + 2**-8 + 2**-22)
    weights = [1 - 2**-20, 2**-20]
    paths = two(tmp_path, {"w": low}, {"w": high})
    for accumulate, expected in (("float32", 1.0), ("float64", 1 + 2**-7)):
        average_checkpoints(paths, tmp_path / "o.safetensors", weights, "bfloat16", accumulate)  # pyright: ignore
        assert tensors_of(tmp_path / "o.safetensors")["w"] == expected


def test_a_mean_within_range_is_reached_without_leaving_it(tmp_path: Path) -> None:
    top = np.finfo(np.float32).max
    paths = two(tmp_path, {"w": top, "h": np.float16(65504)}, {"w": top, "h": np.float16(65504)})
    average_checkpoints([*paths, paths[0]], tmp_path / "o.safetensors")
    made = tensors_of(tmp_path / "o.safetensors")
    assert (made["w"], made["h"]) == (top, 65504)


# What is refused, and that nothing is written then.


def refusal(paths: Sequence[Any], out: Path, *arguments: Any, **words: Any) -> str:
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        average_checkpoints(paths, out, *arguments, **words)
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before
    return str(caught.value)


def test_all_differences_are_listed(tmp_path: Path) -> None:
    a, b = two(
        tmp_path,
        {"head": np.zeros((10, 4), "f4"), "n": np.int64(0), "z": np.complex64(0), "same": np.float32(1)}
        | {f"extra{i}": np.float32(0) for i in range(8)},
        {"head": np.zeros((1000, 4), "f4"), "n": np.float32(0), "z": np.float32(0), "same": np.float16(1)}
        | {"new": np.float32(0)},
    )
    assert refusal([a, b], tmp_path / "o.safetensors").splitlines() == [
        "the checkpoints do not hold the same tensors; nothing was written.",
        f"  {a} lacks new",
        f"  {b} lacks extra0, extra1, extra2, extra3, extra4, extra5 and 2 more",
        f"  n is int64 [] in {a}, float32 [] in {b}",
        f"  z is complex64 [] in {a}, float32 [] in {b}",
        f"  head is float32 [10, 4] in {a}, float32 [1000, 4] in {b}",
    ]


def test_a_long_list_of_differences_ends(tmp_path: Path) -> None:
    names = [f"t{i:02}" for i in range(50)]
    paths = two(tmp_path, dict.fromkeys(names, np.zeros(2)), dict.fromkeys(names, np.zeros(3)))
    lines = refusal(paths, tmp_path / "o.safetensors").splitlines()
    assert len(lines) == 22
    assert lines[-1] == "  … and 30 more"


@pytest.mark.parametrize("name", [name for name in FLOATS if name != "F8_E8M0"])
@pytest.mark.parametrize("weights", ["uniform", [1.0, 0.0]])
def test_nan_is_refused_with_its_place(name: str, weights: Any, tmp_path: Path) -> None:
    good = np.ones((40, 3), BY_NAME[name])
    bad = good.copy()
    bad[33, 1] = np.nan
    a, b = two(tmp_path, {"w": good}, {"w": bad})
    with patch.object(weighted_sum, "PIECE", SMALL_PIECE):
        message = refusal([a, b], tmp_path / "o.safetensors", weights)
    assert message.startswith(f"{b}: w is nan at (33, 1), so every average with it would be too.")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_infinity_is_refused_in_any_of_the_files(value: float, dtype: Any, tmp_path: Path) -> None:
    good, bad = np.ones(3, dtype), np.array([1, 1, value], dtype)
    for a, b in ((good, bad), (bad, good), (-bad, bad)):
        message = refusal(two(tmp_path, {"w": a}, {"w": b}), tmp_path / "o.safetensors")
        assert "at (2,), but not in all files, so every average" in message


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.complex64])
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_the_same_infinity_in_all_files_stays_it(
    dtype: Any, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are filled with -inf; elements beside it are averaged, in the same piece and in others."""
    made = []
    for value in (1.0, 2.0, 6.0):
        mask = np.full((5, 9), value, dtype)
        mask[1, 2], mask[4] = -np.inf, np.inf
        made.append({"mask": mask, "one": np.array(-np.inf, dtype), "w": np.full(3, value, dtype)})
    for i, tensors in enumerate(made):
        write_arrays(tmp_path / f"{i}.safetensors", tensors, {})
    monkeypatch.setattr(weighted_sum, "PIECE", SMALL_PIECE)
    if whole:
        monkeypatch.setattr(inputs, "open_weights", lambda path: held(open_weights(path), [0, 0]))
    average_checkpoints([tmp_path / f"{i}.safetensors" for i in range(3)], tmp_path / "o.safetensors")
    found = tensors_of(tmp_path / "o.safetensors")
    mean = made[0]["mask"].copy()
    mean[np.isfinite(mean)] = 3
    assert same_bits(found["mask"], mean)
    assert found["one"].item() == -np.inf
    assert found["w"].tolist() == [3, 3, 3]


def test_beside_an_infinity_a_nan_is_still_refused(tmp_path: Path) -> None:
    a = np.array([-np.inf, 1, 1], np.float32)
    b = np.array([-np.inf, 1, np.nan], np.float32)
    assert "w is nan at (2,), so" in refusal(two(tmp_path, {"w": a}, {"w": b}), tmp_path / "o.safetensors")


def test_files_without_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, tmp_path / "log.pt")
    save_file({}, tmp_path / "none.safetensors")
    for name in ("log.pt", "none.safetensors"):
        message = refusal([tmp_path / name] * 2, tmp_path / "o.safetensors")
        assert message.startswith(f"{tmp_path / name} holds no tensors")


MANY = """
import resource, sys
from pathlib import Path
from polyak import average_checkpoints as average
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
average(sorted(Path(sys.argv[1]).iterdir()), sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
@pytest.mark.slow
def test_a_thousand_files_need_few_descriptors(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(1000):
        save_file({"w": np.full(3, i, np.float32), "n": np.array(i)}, folder / f"step-{i:04d}.safetensors")
    subprocess.run([sys.executable, "-c", MANY, str(folder), str(tmp_path / "o.safetensors")], check=True)
    made = tensors_of(tmp_path / "o.safetensors")
    np.testing.assert_allclose(made["w"], 499.5, rtol=1e-6)
    assert made["n"] == 999


def test_leaving_the_range_of_the_result_is_refused(tmp_path: Path) -> None:
    paths = two(tmp_path, {"w": np.float32(1e5)}, {"w": np.float32(1e5)})
    assert refusal(paths, tmp_path / "o.safetensors", dtype="float16").startswith(
        "w: the average exceeds the range of float16, or a partial sum that of float32."
    )
    average_checkpoints(paths, tmp_path / "o.safetensors", dtype="bfloat16")


@pytest.mark.parametrize("tensor", ["w", "n"])
@pytest.mark.parametrize("place", [0, 20, 41])
def test_a_flipped_bit_in_a_file_of_polyaks_is_seen(tensor: str, place: int, tmp_path: Path) -> None:
    tensors = {"w": np.ones(42, np.float32), "n": np.ones(42, np.int64), "e": np.ones(0, np.float32)}
    paths = two(tmp_path, tensors, tensors)
    with open_weights(paths[1]) as weights:
        offset = weights.tensors[tensor].offset + place * weights.tensors[tensor].dtype.itemsize  # type: ignore
    raw = bytearray(paths[1].read_bytes())
    raw[offset] ^= 1
    paths[1].write_bytes(raw)
    with patch.object(weighted_sum, "PIECE", SMALL_PIECE):
        message = refusal(paths, tmp_path / "o.safetensors")
        assert message.startswith(f"{paths[1]} is damaged: {tensor} differs from what was written.")
        average_checkpoints([paths[0]] * 2, tmp_path / "o.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": []}, "paths=[]: must be a list of at least one"),
        ({"paths": "a.safetensors"}, "paths='a.safetensors': must be a list"),
        ({"out": "o.pt"}, "out='o.pt': must be a local file whose name ends in .safetensors"),
        ({"out": "memory://o.safetensors"}, "out='memory://o.safetensors': must be a local file"),
        ({"weights": "even"}, "weights='even': must be \"uniform\""),
        ({"weights": [1.0]}, "weights=[1.0]: 1 for 2 checkpoints; give one each"),
        ({"weights": [1, -1]}, "weights=[1.0, -1.0] sum to 0: must sum to more than 0"),
        ({"weights": [float("nan"), 1]}, "weights=[nan, 1.0] sum to nan"),
        ({"weights": [float("inf"), 1]}, "weights=[inf, 1.0] sum to inf"),
        ({"dtype": "int8"}, "dtype='int8': must be None or one of float64, float32, float16, bfloat16"),
        ({"accumulate": "float16"}, "accumulate='float16': must be"),
        ({"max_shard_size": "5 apples"}, "max_shard_size='5 apples'"),
    ],
)
def test_arguments_outside_their_rule(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    paths = two(tmp_path, {"w": np.float32(1)}, {"w": np.float32(2)})
    words: dict[str, Any] = {"paths": paths, "out": tmp_path / "o.safetensors", **change}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=re.escape(message)):
        average_checkpoints(**words)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_is_no_place_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "o.safetensors").mkdir()
    paths = two(tmp_path, {"w": np.float32(1)}, {"w": np.float32(2)})
    assert "must be a local file" in refusal(paths, tmp_path / "o.safetensors")


# Where it is written.


@pytest.mark.parametrize("files", [1, 3])
def test_a_header_is_arranged_once_for_each_file(
    files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange, calls = layout.arrange, list[Any]()
    for module in [m for m in sys.modules.values() if getattr(m, "arrange", None) is arrange]:
        monkeypatch.setattr(module, "arrange", lambda *call: calls.append(call) or arrange(*call))
    tensors = {f"t{i}": np.ones(10, np.float32) for i in range(3)}
    paths = two(tmp_path, tensors, tensors)
    calls.clear()
    average_checkpoints(paths, tmp_path / "o.safetensors", max_shard_size=None if files == 1 else 40)
    assert len(calls) == files


@pytest.mark.parametrize("size", [None, 100])
def test_the_result_may_replace_an_input(size: int | None, tmp_path: Path) -> None:
    a, b = ({f"t{i}": np.full(40, i + k, np.float32) for i in range(4)} for k in (0, 2))
    for folder, tensors in (("a", a), ("b", b)):
        (tmp_path / folder).mkdir()
        (single if size is None else shards)(tmp_path / folder, tensors)
    paths = [tmp_path / "a" / "model.safetensors", tmp_path / "b" / "model.safetensors"]
    average_checkpoints(paths, paths[0], max_shard_size=size)
    made = tensors_of(paths[0])
    assert all(np.all(made[f"t{i}"] == i + 1) for i in range(4))
    assert len(list((tmp_path / "a").iterdir())) == (1 if size is None else 5)


def test_shards_are_what_hugging_face_libraries_read(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.full(i, i, np.float32) for i in range(30)} | {"n": np.int64(3)}
    paths = two(tmp_path, tensors, tensors)
    average_checkpoints(paths, tmp_path / "o.safetensors", max_shard_size=300)
    index = json.loads((tmp_path / "o.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "numpy") as shard:
            np.testing.assert_array_equal(shard.get_tensor(name), tensors[name])


def test_what_all_headers_say_is_kept(tmp_path: Path) -> None:
    for name, own in (("a", "x"), ("b", "y")):
        save_file({"w": np.ones(2)}, tmp_path / name, {"format": "pt", "own": own, "polyak_sums": ""})
    with pytest.raises(CheckpointError):
        average_checkpoints(
            [tmp_path / "a", tmp_path / "b"], tmp_path / "o.safetensors"
        )  # sums that are none
    for name, own in (("a", "x"), ("b", "y")):
        save_file({"w": np.ones(2)}, tmp_path / name, {"format": "pt", "own": own})
    average_checkpoints([tmp_path / "a", tmp_path / "b"], tmp_path / "o.safetensors")
    with safe_open(tmp_path / "o.safetensors", "numpy") as made:
        assert set(made.metadata()) == {"format", "polyak", "polyak_sums"}
        assert made.metadata()["format"] == "pt"


KILLED = """
import os, signal, sys
from polyak import average_checkpoints as average
def progress(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
average(sys.argv[1:3], sys.argv[3], progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_half_way_it_leaves_what_was_there(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.ones(weighted_sum.PIECE, np.float32) for i in range(24)}
    paths = two(tmp_path, tensors, tensors)
    for out in (tmp_path / "o.safetensors", paths[0]):
        before = out.read_bytes() if out.exists() else None
        command = [sys.executable, "-c", KILLED, *map(str, paths), str(out)]
        assert subprocess.run(command, check=False).returncode == -9
        assert (out.read_bytes() if out.exists() else None) == before
        average_checkpoints(paths, out)  # and sweeps away what the killed one could not
        assert not list(tmp_path.glob(".*.part"))


def test_interrupted_it_leaves_neither_files_nor_threads(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.ones(100, np.float32) for i in range(50)}
    paths = two(tmp_path, tensors, tensors)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        average_checkpoints(paths, tmp_path / "o.safetensors", progress=interrupt)
    assert sorted(tmp_path.iterdir()) == paths
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("polyak")]


def test_progress_counts_the_bytes_read(tmp_path: Path) -> None:
    tensors = {"w": np.ones(50, np.float32), "n": np.ones(9, np.int64), "e": np.ones(0), "s": np.float16(1)}
    calls: list[tuple[int, int]] = []
    with patch.object(weighted_sum, "PIECE", SMALL_PIECE):
        average_checkpoints(
            two(tmp_path, tensors, tensors),
            tmp_path / "o.safetensors",
            progress=lambda *call: calls.append(call),
        )
    total = 2 * 200 + 72 + 2 * 2  # of the integers, only those of the last file are read
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert {of for _, of in calls} == {total}
    assert calls[-1][0] == total


# Tensors that a file can only give whole.


def counted(make: Callable[[np.ndarray], Any], alive: list[int]) -> Callable[[np.ndarray], Any]:
    """The same, keeping count of the arrays it is called with that are in memory: now, and at most."""

    def counting(array: np.ndarray) -> Any:
        alive[0] += 1
        alive[1] = max(alive)
        weakref.finalize(array, lambda: alive.__setitem__(0, alive[0] - 1))
        return make(array)

    return counting


def held(weights: Checkpoint, alive: list[int]) -> Checkpoint:
    """The same file, as one whose tensors are strided there; counts the arrays in memory."""

    def lazy(name: str, span: LazyTensor) -> ComputedTensor:
        keep = counted(lambda array: array, alive)
        return ComputedTensor(
            span.dtype, span.shape, lambda: keep(span.read().copy())
        )  # copied: it owns its memory

    return replace(weights, tensors={name: lazy(name, span) for name, span in weights.tensors.items()})


def test_tensors_given_whole_come_out_the_same_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path in paths:
        tensors = {name: draw_values(generator, (5, 9), BY_NAME[name]) for name in (*FLOATS, *WHOLE)}
        write_arrays(path, tensors | {"one": np.float32(generator.random()), "none": np.ones((0, 3))}, {})
    monkeypatch.setattr(weighted_sum, "PIECE", SMALL_PIECE)
    average_checkpoints(paths, tmp_path / "o.safetensors", [0.5, -0.5, 1.0])
    expected = tensors_of(tmp_path / "o.safetensors")
    alive = [0, 0]
    monkeypatch.setattr(inputs, "open_weights", lambda path: held(open_weights(path), alive))
    average_checkpoints(paths, tmp_path / "o.safetensors", [0.5, -0.5, 1.0])
    made = tensors_of(tmp_path / "o.safetensors")
    assert all(same_bits(made[name], array) for name, array in expected.items())
    assert alive == [0, 1]


def test_nan_in_a_tensor_given_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = two(tmp_path, {"w": np.ones(3)}, {"w": np.array([1, np.nan, 1])})
    monkeypatch.setattr(inputs, "open_weights", lambda path: held(open_weights(path), [0, 0]))
    message = refusal([a, b], tmp_path / "o.safetensors")
    assert message.startswith(f"{b}: w is nan at (1,)")


def test_of_tensors_given_whole_two_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean and one input; before and after the largest there are others as large."""
    count = 2_000_000  # beside which the megabyte through which a file is written is little
    by_name = {
        f"t{i}": ComputedTensor(np.dtype("f4"), (count,), lambda: np.ones(count, "f4")) for i in range(3)
    }
    by_name["n"] = ComputedTensor(np.dtype("i4"), (count,), lambda: np.ones(count, "i4"))
    monkeypatch.setattr(inputs, "open_weights", lambda path: Checkpoint(str(path), "pytorch", by_name))
    monkeypatch.setattr(weighted_sum, "PIECE", 1000)
    tracemalloc.start()
    average_checkpoints(["a", "b", "c"], tmp_path / "o.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2 * 4 * count <= peak < 2.4 * 4 * count


MEMORY = """
import sys
from polyak import average_checkpoints as average
average(sys.argv[1:4], sys.argv[4], dtype="bfloat16")
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(line.split()[1]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_a_tensor(tmp_path: Path) -> None:
    """Three inputs of one float32 tensor of 400 MB, holes on disk: far less than one of them in memory."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**8], "data_offsets": [0, 4 * 10**8]}}).encode()
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path in paths:
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with path.open("r+b") as file:
            file.truncate(8 + len(header) + 4 * 10**8)
    command = [sys.executable, "-c", MEMORY, *map(str, paths), str(tmp_path / "o.safetensors")]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (tmp_path / "o.safetensors").unlink()
    assert int(shown) < 200e6


# What the result says it is.


def raw(path: Path, step: int | None, run: str = "r", value: float = 0.0, **words: Any) -> Path:
    header = Header("raw", step, None, None if step is None else Profile.raw(step), "raw", run)
    write_arrays(path, {"w": np.array([value], np.float32)}, replace(header, **words).to_metadata())
    return path


def header_in(path: Path) -> Header:
    with open_weights(path) as weights:
        return Header.from_metadata(weights.metadata, str(path))


def test_profiles_are_mixed(tmp_path: Path) -> None:
    profiles = [Profile.from_decay(0.9, 30), Profile.from_decay(0.5, 50)]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, profile in zip(paths, profiles, strict=True):
        raw(path, profile.steps, role="average", profile=profile, joined={"w": 4})
    report = average_checkpoints(paths, tmp_path / "o.safetensors", [0.25, 0.75])
    header = header_in(tmp_path / "o.safetensors")
    assert header == report.header
    assert header == Header(
        "average", 50, None, Profile.mix(profiles, [0.25, 0.75]), "average", "r", {"w": 4}
    )
    assert polyak.load(tmp_path / "o.safetensors").header == header


@pytest.mark.parametrize("change", [{"profile": None, "role": "average"}, {"joined": {"w": 5}}])
def test_what_is_not_known_of_all_is_not_claimed(change: dict[str, Any], tmp_path: Path) -> None:
    a, b = raw(tmp_path / "a.safetensors", 10), raw(tmp_path / "b.safetensors", 20, "other", **change)
    for paths in ([a, b], [b, a]):
        header = average_checkpoints(paths, tmp_path / "o.safetensors").header
        assert (header.profile, header.joined, header.step, header.run) == (None, {}, 20, "")


def test_a_step_one_file_does_not_know_is_nobodys(tmp_path: Path) -> None:
    paths = [raw(tmp_path / "a.safetensors", 10), raw(tmp_path / "b.safetensors", None)]
    assert average_checkpoints(paths, tmp_path / "o.safetensors").header.step is None


def test_a_shard_is_no_checkpoint(tmp_path: Path) -> None:
    shards(tmp_path, {f"t{i}": np.ones(30, np.float32) for i in range(3)})
    shard = tmp_path / "model-00001-of-00003.safetensors"
    assert f"{shard} is one of several shards" in refusal([shard, shard], tmp_path / "o.safetensors")


def test_a_file_that_says_nothing_makes_a_result_that_says_nothing(tmp_path: Path) -> None:
    save_file({"w": np.ones(1, np.float32)}, tmp_path / "foreign")
    with safe_open(raw(tmp_path / "a.safetensors", 10), "numpy") as file:
        rewritten = {key: text for key, text in file.metadata().items() if key == "polyak"}
    save_file({"w": np.ones(1, np.float32)}, tmp_path / "rewritten", rewritten)
    for other in ("foreign", "rewritten"):
        header = average_checkpoints(
            [tmp_path / "a.safetensors", tmp_path / other], tmp_path / "o.safetensors"
        ).header
        files = [["a.safetensors", 10, 0.5], [other, None, 0.5]]
        state = {"weights_of_files": files}
        assert header == Header("average", None, None, None, "average", "", state=state)
    [note] = describe(tmp_path / "o.safetensors").notes
    assert note == "weights of files, not of training steps: 0.5 of rewritten, 0.5 of a.safetensors"


def test_a_training_state_is_refused(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.safetensors", 10, role="resumable")
    assert "holds a whole training state" in refusal([path, path], tmp_path / "o.safetensors")


# Checkpoints as points of a trajectory.


def test_a_decay_interpolates_between_the_steps_in_the_headers(tmp_path: Path) -> None:
    steps = [100, 200, 300]
    paths = [raw(tmp_path / f"x{i}-1.safetensors", step, value=step) for i, step in enumerate(steps)]
    report = average_checkpoints(paths, tmp_path / "o.safetensors", HalfLife(steps=60))
    wanted = Profile.from_decay(HalfLife(steps=60), 300)
    assert report.weights == tuple(solve([Profile.raw(step) for step in steps], wanted).coefficients)
    assert tensors_of(tmp_path / "o.safetensors")["w"][0] == pytest.approx(
        wanted.weights() @ np.clip(np.arange(301), 100, 300), rel=1e-6
    )
    assert report.header.step == 300
    assert report.header.profile == Profile.mix([Profile.raw(step) for step in steps], report.weights)


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["run7-step10.safetensors", "run7-step30.safetensors"], [10, 30]),
        (["checkpoint-10/model.safetensors", "checkpoint-30/model.safetensors"], [10, 30]),
        (["epoch=1-step=20-v1.safetensors", "epoch=2-step=40.safetensors"], [20, 40]),
        (["iter_900_ema_0.9999.safetensors", "val_loss=0.51-iter_1000.safetensors"], [900, 1000]),
    ],
)
def test_steps_stand_in_names(names: list[str], steps: list[int], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file({"w": np.ones(1, np.float32)}, tmp_path / name)
    profile = Profile.from_decay(0.95, 35)
    report = average_checkpoints([tmp_path / name for name in names], tmp_path / "o.safetensors", profile)
    assert report.weights == tuple(solve([Profile.raw(step) for step in steps], profile).coefficients)
    assert report.header.profile == Profile.mix([Profile.raw(step) for step in steps], report.weights)


def test_checkpoints_without_steps_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    folder.mkdir()
    paths = two(folder, {"w": np.ones(1)}, {"w": np.ones(1)})
    for weights in (HalfLife(steps=3), Recency(3), "cosine"):
        message = refusal(paths, folder / "o.safetensors", weights)
        assert message.startswith(f"{paths[0]} does not contain its training step")


@pytest.mark.parametrize(
    "name",
    [
        "model-v1.safetensors",
        "best-epoch=3-val_loss=0.51.safetensors",
        "ema_0.9999.safetensors",
        "epoch_3.safetensors",
        "checkpoint-4.safetensors",  # an epoch, for timm
        "step=10-step=20.safetensors",
        "step-10k.safetensors",
        "step=0.5.safetensors",
        "warmup_step=500.safetensors",
        "timestep-10.safetensors",
        "0005000.safetensors",
    ],
)
def test_names_that_may_mean_something_else_are_no_steps(name: str, tmp_path: Path) -> None:
    assert step_in_name(f"run/{name}") is None


@pytest.mark.parametrize(
    ("steps", "said"), [((5, 5, 9), "b.safetensors is of step 5 (header), again after"),
                        ((5, 9, 7), "c.safetensors is of step 7 (header), before that after")]
)  # fmt: skip
def test_steps_that_do_not_rise_are_refused(steps: tuple[int, ...], said: str, tmp_path: Path) -> None:
    paths = [raw(tmp_path / f"{n}.safetensors", step) for n, step in zip("abc", steps, strict=True)]
    for weights in (HalfLife(steps=3), Recency(3), "1-sqrt"):
        assert said in refusal(paths, tmp_path / "o.safetensors", weights)
    average_checkpoints(paths, tmp_path / "o.safetensors")  # uniform needs none


def test_the_step_inside_comes_before_the_one_in_the_name(tmp_path: Path) -> None:
    files = {"epoch=7-step=1-v1.pt": {"global_step": 300}, "step=2.pt": {"meta": {"iter": 400}},
             "x.pt": {"iteration": torch.tensor(500)}}  # fmt: skip
    paths = [tmp_path / name for name in files]
    for path, said in zip(paths, files.values(), strict=True):
        torch.save({"model": {"w": torch.ones(2)}, **said}, path)
    made = average_checkpoints(paths, tmp_path / "o.safetensors", Recency(100))
    assert [(one.step, one.source) for one in made.files] == [
        (300, "global_step"),
        (400, "meta.iter"),
        (500, "iteration"),
    ]
    assert made.weights == pytest.approx((1 / 7, 2 / 7, 4 / 7))
    assert (made.header.step, made.header.profile) == (500, None)


def test_the_trainers_state_beside_a_model_has_its_step(tmp_path: Path) -> None:
    for step in (7, 9):
        folder = tmp_path / f"run-{step}-5"
        folder.mkdir()
        save_file({"w": np.ones(1, np.float32)}, folder / "model.safetensors")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    made = average_checkpoints(
        [tmp_path / "run-7-5", tmp_path / "run-9-5"], tmp_path / "o.safetensors", "linear"
    )
    assert [(one.step, one.source) for one in made.files] == [
        (7, "trainer_state.json"),
        (9, "trainer_state.json"),
    ]
    assert made.weights == (0.5, 0.5)


def test_weights_are_divided_by_their_sum(tmp_path: Path) -> None:
    paths = two(tmp_path, {"w": np.float32(1)}, {"w": np.float32(2)})
    assert average_checkpoints(paths, tmp_path / "o.safetensors", [1, 3]).weights == (0.25, 0.75)
    assert average_checkpoints(paths, tmp_path / "o.safetensors", [3, -1]).weights == (1.5, -0.5)


def test_integers_are_those_of_the_newest(tmp_path: Path) -> None:
    for step in (30, 10, 20):
        tensors = {"w": np.ones(2, np.float32), "n": np.array(step)}
        save_file(tensors, tmp_path / f"step-{step}.safetensors")
    paths = [tmp_path / f"step-{step}.safetensors" for step in (10, 30, 20)]
    made = average_checkpoints(paths, tmp_path / "o.safetensors")
    assert tensors_of(tmp_path / "o.safetensors")["n"] == 30
    assert made.newest == str(paths[1])


def test_averages_of_no_known_profile_are_no_points_of_a_trajectory(tmp_path: Path) -> None:
    paths = []
    for step in (100, 200):
        averaged = {"w": torch.ones(2), "n": torch.tensor(3)}
        tree = {"arch": "x", "version": 2, "state_dict": averaged, "state_dict_ema": averaged, "step": step}
        paths.append(tmp_path / f"{step}.pth.tar")
        torch.save(tree, paths[-1])
    message = refusal(paths, tmp_path / "o.safetensors", HalfLife(steps=50), part="average")
    assert "holds an average whose profile is unknown" in message
    assert "--part raw" in message
    made = average_checkpoints(paths, tmp_path / "o.safetensors", Recency(100), part="average").header
    assert (made.profile, made.step) == (None, 200)
    assert list(made.state) == ["weights_of_files"]
    made = average_checkpoints(paths, tmp_path / "o.safetensors", HalfLife(steps=50), part="raw").header
    assert made.profile is not None
    assert made.profile.initial_weight == 0


def test_who_asks_for_a_half_life_says_that_the_files_are_raw(tmp_path: Path) -> None:
    for step in (100, 200):
        save_file({"w": np.ones(1, np.float32)}, tmp_path / f"step-{step}.safetensors")
    paths = [tmp_path / f"step-{step}.safetensors" for step in (100, 200)]
    header = average_checkpoints(paths, tmp_path / "o.safetensors", HalfLife(steps=50)).header
    assert header.profile == Profile.mix(
        [Profile.raw(100), Profile.raw(200)],
        solve([Profile.raw(100), Profile.raw(200)], Profile.from_decay(HalfLife(steps=50), 200)).coefficients,
    )
    assert "if the merged files were raw weights" in describe(tmp_path / "o.safetensors").notes[-1]
    assert average_checkpoints(paths, tmp_path / "o.safetensors").header.profile is None


def test_a_set_is_named_by_its_key_too_and_moments_are_never_averaged(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for step in (100, 200):
        tree = {"model": net.state_dict(), "optim": optimizer.state_dict()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(tree, checkpoint_id=tmp_path / f"step-{step}")
            dcp.save(tree | {"ema": net.state_dict()}, checkpoint_id=tmp_path / f"both-step-{step}")
    plain = [tmp_path / f"step-{step}" for step in (100, 200)]
    both = [tmp_path / f"both-step-{step}" for step in (100, 200)]
    assert average_checkpoints(plain, tmp_path / "o.safetensors", HalfLife(steps=9)).averaged == (
        "bias",
        "weight",
    )
    assert "one is needed" in refusal(both, tmp_path / "o.safetensors")
    for part in ("model", "raw", "ema", "average"):
        assert average_checkpoints(both, tmp_path / "o.safetensors", part=part).averaged == ("bias", "weight")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    message = refusal([tmp_path / "optimizer.pt"] * 2, tmp_path / "p.safetensors")
    assert "holds no weights of a model" in message


def test_averages_are_mixed_by_their_own_profiles(tmp_path: Path) -> None:
    """The average of one half-life and the raw end make the one in between, which no point lies on."""
    held = [Profile.from_decay(HalfLife(steps=40), 200), Profile.raw(200)]
    for i, profile in enumerate(held):
        header = Header("average", 200, None, profile, "average", "a-run")
        write_arrays(tmp_path / f"{i}.safetensors", {"w": np.ones(2, np.float32)}, header.to_metadata())
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    report = average_checkpoints(paths, tmp_path / "o.safetensors", 0.25 * held[0] + 0.75 * held[1])
    assert report.weights == pytest.approx((0.25, 0.75))


def test_a_file_with_several_sets_of_weights_wants_to_know_which(tmp_path: Path) -> None:
    raws = {"w": torch.ones(2), "n": torch.tensor(3)}
    paths = [tmp_path / f"{i}.pth.tar" for i in range(2)]
    for i, path in enumerate(paths):
        averaged = {"w": torch.full((2,), 5.0 + 2 * i), "n": torch.tensor(4)}
        torch.save({"epoch": i, "arch": "x", "state_dict": raws, "state_dict_ema": averaged}, path)
    message = refusal(paths, tmp_path / "o.safetensors")
    assert "average (average, under 'state_dict_ema')" in message
    assert "Choose one with part= (--part)" in message
    average_checkpoints(paths, tmp_path / "o.safetensors", part="average")
    made = tensors_of(tmp_path / "o.safetensors")
    assert made["w"].tolist() == [6, 6]
    assert made["n"] == 4
    assert "'best' is 0 of them" in refusal(paths, tmp_path / "p.safetensors", part="best")


def test_a_part_that_polyak_averaged_brings_its_profile(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    ema, held, paths = polyak.EMA(model, 0.9), list[Profile](), list[Path]()
    for step in range(1, 21):
        with torch.no_grad():
            model.weight.add_(1)
        ema.update()
        if step % 10 == 0:
            paths.append(tmp_path / f"{step}.pt")
            torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, paths[-1])
            held.append(ema.tracks["average"].profile)
    made = average_checkpoints(paths, tmp_path / "o.safetensors", [0.25, 0.75], part="average").header
    assert made.profile is not None
    assert made.profile.weights() == pytest.approx(Profile.mix(held, [0.25, 0.75]).weights())
    assert (made.step, made.run) == (20, ema.run)
    wanted = average_checkpoints(paths, tmp_path / "p.safetensors", HalfLife(steps=5), part="average")
    assert wanted.weights == pytest.approx(
        solve(held, Profile.from_decay(HalfLife(steps=5), 20)).coefficients
    )
    raws = average_checkpoints(paths, tmp_path / "q.safetensors", part="raw").header.profile
    assert raws == Profile.mix([Profile.raw(10), Profile.raw(20)], [0.5, 0.5])


# Over the network.


class Ranges(BaseHTTPRequestHandler):
    """Serves the bytes in ``files``, whole or a range of them, and counts those of ranges."""

    files: Mapping[str, bytes] = {}
    sent = 0

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, send: bool) -> None:
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2] or len(data) - 1)) if wanted else (0, len(data) - 1)
        body = data[first : last + 1]
        Ranges.sent += len(body) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send:
            with suppress(
                ConnectionError
            ):  # fsspec asks for the whole to see whether it is there, and leaves
                self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def test_a_web_server_is_read_in_ranges(server: str, tmp_path: Path) -> None:
    tensors = {"w": np.arange(3_000_000, dtype=np.float32), "n": np.int64(7)}
    [a, b] = two(tmp_path, tensors, {"w": tensors["w"] + 2, "n": np.int64(8)})
    Ranges.files = {"/a.safetensors": a.read_bytes()}
    average_checkpoints([f"{server}/a.safetensors", b], tmp_path / "o.safetensors")
    made = tensors_of(tmp_path / "o.safetensors")
    np.testing.assert_array_equal(made["w"], tensors["w"] + 1)
    assert made["n"] == 8
    assert 12_000_000 < Ranges.sent < 40_000_000
    with pytest.raises(CheckpointError, match=r"missing\.safetensors"):
        average_checkpoints([f"{server}/missing.safetensors", b], tmp_path / "o.safetensors")
