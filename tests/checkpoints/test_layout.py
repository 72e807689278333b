"""What a safetensors file may say, and everything it may not."""

import json
import os
import resource
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors import safe_open
from safetensors.numpy import load_file

from polyak._dtypes import BY_NAME
from polyak._files.header import KEY, Header
from polyak._files.layout import METADATA, SUMS, Spec, arrange
from polyak._files.write import write_arrays, write_safetensors
from polyak._foreign.load import load
from polyak._foreign.open_any import open_weights
from polyak.errors import CheckpointError
from polyak.schedules import Profile, Warmup
from tests.work import lines_run

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
# The package's NumPy side knows none of these; tests/torch/test_resume_file.py reads them with torch.
UNKNOWN_TO_ITS_NUMPY = {"BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"}


def write_header(path: Path, header: bytes, data: bytes = b"\0" * 8) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def write_fields(path: Path, fields: Any, data: bytes = b"\0" * 8) -> Path:
    return write_header(path, json.dumps(fields).encode(), data)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with open_weights(path) as weights:
        return {name: tensor.read() for name, tensor in weights.tensors.items()}, dict(weights.metadata)


def refusal(path: Path, how: Callable[[Path], Any] = read) -> str:
    with pytest.raises(CheckpointError) as refused:
        how(path)
    assert path.name in str(refused.value)
    assert len(str(refused.value)) < 1000
    return str(refused.value)


def bits(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


@pytest.mark.parametrize("dtype", BY_NAME)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7), (2, 1, 3, 1)])
def test_every_dtype_and_shape_comes_back_bit_by_bit(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    count = int(np.prod(shape)) * BY_NAME[dtype].itemsize
    raw = rng.integers(0, 2 if dtype == "BOOL" else 256, count, np.uint8)  # NaNs of every kind included
    array = raw.view(BY_NAME[dtype]).reshape(shape)
    write_arrays(tmp_path / "a", {"x": array}, {"about": "ü"})
    tensors, metadata = read(tmp_path / "a")
    assert bits(tensors["x"]) == bits(array)
    assert metadata["about"] == "ü"
    if dtype not in UNKNOWN_TO_ITS_NUMPY and dtype != "C64":
        assert bits(load_file(tmp_path / "a")["x"]) == bits(array)
    with safe_open(tmp_path / "a", "np") as theirs:
        assert theirs.get_slice("x").get_dtype() == dtype
        assert tuple(theirs.get_slice("x").get_shape()) == shape


DTYPES = st.sampled_from(list(BY_NAME.values()))
NAMES = st.text(min_size=1, max_size=8).filter(lambda s: s != METADATA)
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@settings(deadline=None, max_examples=300)
@given(
    tensors=st.dictionaries(NAMES, st.tuples(DTYPES, SHAPES, st.integers(0, 2**32 - 1)), max_size=6),
    metadata=st.dictionaries(st.text(max_size=6), st.text(max_size=20), max_size=3),
)
def test_any_names_dtypes_and_metadata_come_back(
    tmp_path_factory: pytest.TempPathFactory, tensors: Any, metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("any") / "a"
    arrays = {}
    for name, (dtype, shape, seed) in tensors.items():
        size = int(np.prod(shape)) * dtype.itemsize
        raw = np.random.default_rng(seed).integers(0, 2, size, np.uint8)
        arrays[name] = raw.view(dtype).reshape(shape)
    write_arrays(path, arrays, metadata)
    back, about = read(path)
    assert {n: bits(a) for n, a in back.items()} == {n: bits(a) for n, a in arrays.items()}
    assert {k: v for k, v in about.items() if k != SUMS} == {k: v for k, v in metadata.items() if k != SUMS}
    with safe_open(path, "np") as theirs:
        assert set(theirs.keys()) == set(arrays)
        assert theirs.metadata() == about


def test_more_than_two_gigabytes_come_back(tmp_path: Path) -> None:
    """In one write a system takes at most 2 GiB: the rest must not be lost."""
    size = (1 << 31) + (1 << 20)
    script = f"""
import numpy as np
from pathlib import Path
from polyak._foreign.open_any import open_weights
from polyak._files.layout import Spec
from polyak._files.write import write_safetensors
path = Path({str(tmp_path / "big")!r})
big = np.zeros({size}, np.uint8)
big[[0, 1 << 31, -1]] = 1, 2, 3
write_safetensors(path, {{"big": Spec(big.dtype, big.shape)}}, {{}}, lambda name: [big])
del big
with open_weights(path) as weights:
    back = weights.tensors["big"].read()
    assert back.shape == ({size},)
    assert np.flatnonzero(back).tolist() == [0, 1 << 31, {size - 1}]
    assert back[[0, 1 << 31, -1]].tolist() == [1, 2, 3]
# Not ru_maxrss, which begins with the size of the process that started this one.
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(line.split()[1]) * 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < size + (300 << 20)  # the array itself, and little more
    assert (tmp_path / "big").stat().st_size > size
    (tmp_path / "big").unlink()


def test_a_tensor_in_pieces_is_the_tensor(tmp_path: Path) -> None:
    whole = np.arange(1000, dtype=np.int16)
    spec = {"x": Spec(whole.dtype, (10, 100))}
    write_safetensors(tmp_path / "a", spec, {}, lambda name: np.split(whole, [0, 1, 500, 500]))
    assert (read(tmp_path / "a")[0]["x"] == whole.reshape(10, 100)).all()


@pytest.mark.parametrize("count", [999, 1001, 0])
def test_what_was_announced_must_be_given(tmp_path: Path, count: int) -> None:
    (tmp_path / "a").write_text("old")
    spec = {"x": Spec(np.dtype(np.int16), (1000,))}
    with pytest.raises(AssertionError, match="announced"):
        write_safetensors(tmp_path / "a", spec, {}, lambda name: [np.zeros(count, np.int16)])
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("a", "old")]


UNWRITABLE: dict[str, Any] = {
    "x is >f4": {"x": np.zeros(2, ">f4")},
    "x is complex128": {"x": np.zeros(2, complex)},
    "x is object": {"x": np.array([None])},
    "x is int4": {"x": np.zeros(2, ml_dtypes.int4)},
    "named '__metadata__'": {"__metadata__": np.zeros(2)},
    "named '\\ud800'": {"\ud800": np.zeros(2)},
}


@pytest.mark.parametrize("says", UNWRITABLE)
def test_what_the_format_cannot_hold_is_not_written(tmp_path: Path, says: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        write_arrays(tmp_path / "a", UNWRITABLE[says], {})
    assert says in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_more_axes_than_an_array_can_have_are_not_written() -> None:
    with pytest.raises(CheckpointError, match="x has 65 axes"):
        arrange({"x": Spec(np.dtype(np.uint8), (1,) * 65)}, {})


def test_a_header_beyond_the_limit_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"header takes 100,000,\d+ bytes.*Write in shards"):
        write_arrays(tmp_path / "a", {}, {"about": "x" * 100_000_000})
    assert list(tmp_path.iterdir()) == []


def test_the_checksums_of_a_file_it_is_made_from_are_not_taken_over(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", {"x": np.ones(3)}, {})
    sums = read(tmp_path / "a")[1]
    write_arrays(tmp_path / "b", {"x": np.zeros(3), "y": np.ones(2)}, {"first": "1"} | sums)
    tensors, metadata = read(tmp_path / "b")
    assert tensors["y"].tolist() == [1, 1]
    assert metadata[SUMS] != sums[SUMS]


SAYS: dict[str, Any] = {
    # the numbers
    "-1 is no whole number": {"x": TENSOR | {"shape": [-1]}},
    "-2 is no whole number": {"x": TENSOR | {"data_offsets": [-2, 6]}},
    "2.0 is no whole number": {"x": TENSOR | {"shape": [2.0]}},
    "NaN is no whole number": {"x": TENSOR | {"shape": [float("nan")]}},
    "Infinity is no whole number": {"x": TENSOR | {"data_offsets": [0, float("inf")]}},
    "has ['2'] where": {"x": TENSOR | {"shape": ["2"]}},
    "has [True, 2] where": {"x": TENSOR | {"shape": [True, 2]}},
    "has [None] where": {"x": TENSOR | {"shape": [None]}},
    "has [[2]] where": {"x": TENSOR | {"shape": [[2]]}},
    "has 2 where": {"x": TENSOR | {"shape": 2}},
    "has {} where": {"x": TENSOR | {"shape": {}, "data_offsets": [0, 4]}},
    "has '' where": {"x": TENSOR | {"shape": "", "data_offsets": [0, 4]}},
    "data_offsets are [0, 8, 8]": {"x": TENSOR | {"data_offsets": [0, 8, 8]}},
    "data_offsets are []": {"x": TENSOR | {"data_offsets": []}},
    "data_offsets are [8, 0]": {"x": TENSOR | {"data_offsets": [8, 0]}},
    "takes 12 bytes": {"x": TENSOR | {"shape": [3]}},
    "takes 4 bytes": {"x": TENSOR | {"shape": []}},
    "which an array cannot have": {"x": TENSOR | {"shape": [2**40, 2**40]}},
    # 2⁶⁴ elements overflow to 0 where sizes are computed in machine words
    "shape [4294967296, 4294967296], which": {"x": TENSOR | {"shape": [2**32] * 2, "data_offsets": [0, 0]}},
    "shape [0, 4611686018427387904], which": {"x": TENSOR | {"shape": [0, 2**62], "data_offsets": [0, 0]}},
    "shape [1, 1, 1, 1, 1, 1, ...], which": {"x": TENSOR | {"shape": [1] * 65 + [2]}},
    "36893488147419103232 is no whole": {"x": TENSOR | {"shape": [2**65]}},
    # the fields
    "dtype 'F31', none of": {"x": TENSOR | {"dtype": "F31"}},
    "dtype 'f32', none of": {"x": TENSOR | {"dtype": "f32"}},
    "dtype ['F32'], none of": {"x": TENSOR | {"dtype": ["F32"]}},
    "dtype None, none of": {"x": TENSOR | {"dtype": None}},
    "needs dtype, shape and data_offsets": {"x": {"dtype": "F32", "shape": [2]}},
    "'strides'": {"x": TENSOR | {"strides": [1]}},
    "tensor 'x' is 5": {"x": 5},
    "tensor 'x' is None": {"x": None},
    "tensor 'x' is ['data_offsets', 'dtype', 'shape']": {"x": ["data_offsets", "dtype", "shape"]},
    "tensor '' is {}": {"": {}},
    "__metadata__ must map": {"__metadata__": {"a": 1}, "x": TENSOR},
    "__metadata__ must map strings": {"__metadata__": ["a"], "x": TENSOR},
    "__metadata__ must map strings to": {"__metadata__": "a", "x": TENSOR},
    # the places
    "tensor 'y' overlaps the tensor before it": {"x": TENSOR, "y": TENSOR},
    "tensor 'y' overlaps": {"x": TENSOR, "y": TENSOR | {"data_offsets": [4, 12]}},
    "tensor 'x' leaves a hole before it": {"x": TENSOR | {"data_offsets": [1, 9]}},
    "at byte 69, the file at 77: something was added": {"x": TENSOR | {"data_offsets": [0, 0], "shape": [0]}},
    "it was cut": {"x": TENSOR | {"data_offsets": [0, 16], "shape": [4]}},
    "no whole number from 0": {"x": TENSOR | {"data_offsets": [10**30, 10**30 + 8]}},
}


@pytest.mark.parametrize("says", SAYS)
def test_a_header_that_says_nonsense_is_refused_by_name(tmp_path: Path, says: str) -> None:
    assert says in refusal(write_fields(tmp_path / "a", SAYS[says]))


X = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
TEXTS: dict[str, bytes] = {
    "-0 is no whole number": X.replace(b"[0,8]", b"[-0,8]"),
    "1e999 is no whole number": X.replace(b"[2]", b"[1e999]"),
    "8e0 is no whole number": X.replace(b"[0,8]", b"[0,8e0]"),
    "-Infinity is no whole number": X.replace(b"[2]", b"[-Infinity]"),
    "9999999999999999999999999999999999999999 is no": X.replace(b"[2]", b"[" + b"9" * 5000 + b"]"),
    "'x' is a duplicate key": X[:-1] + b"," + X[1:],
    "'dtype' is a duplicate key": X.replace(b'"shape"', b'"dtype":"F32","shape"'),
    "'a' is a duplicate key": b'{"__metadata__":{"a":"1","a":"2"}' + b"," + X[1:],
    "half of a surrogate": X.replace(b'"x"', b'"\\ud800"'),
    "must map strings": b'{"__metadata__":{"a":"\\udfff"},' + X[1:],
    "can't decode byte": X.replace(b'"x"', b'"\xff"'),
    "recursion": b'{"x":' + b"[" * 100_000,
    "recursion depth": b'{"x":' + b'{"x":' * 100_000,
    "Expecting": X[:-1],
    "Extra data": X + b"{}",
    "Invalid control character": X.replace(b'"x"', b'"x\n"'),
    "does not begin with '{'": b" " + X,
    "begin with '{'": b"[]",
    "begin with": b"\xef\xbb\xbf" + X,
    "not begin": b"",
    "Expecting property name": b"{]",
}


@pytest.mark.parametrize("says", TEXTS)
def test_a_header_that_is_no_plain_json_is_refused(tmp_path: Path, says: str) -> None:
    assert says in refusal(write_header(tmp_path / "a", TEXTS[says]))


def test_a_long_name_is_shortened_in_the_message(tmp_path: Path) -> None:
    assert "..." in refusal(write_fields(tmp_path / "a", {"n" * 100_000: TENSOR | {"dtype": "F9"}}))


@pytest.mark.parametrize("size", range(8))
def test_less_than_a_length_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(b"\1" * size)
    assert (f"has {size} bytes" if size else "is empty") in refusal(tmp_path / "a")


@pytest.mark.parametrize("length", [1, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_or_the_limit_is_refused_unread(tmp_path: Path, length: int) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(8 if length == 1 else 200_000_000)  # sparse: the file is long enough, the limit is not
    assert f"should take {length:,} bytes" in refusal(tmp_path / "a")


def limited(gigabytes: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)


COSTLY: dict[str, bytes] = {
    "axes": b'{"a":{"dtype":"U8","data_offsets":[0,0],"shape":[' + b"9," * 49_000_000 + b"9]}}",
    "lists": b'{"a":[' + b"[]," * 32_000_000 + b"[]]}",
    "digits": b'{"a":' + b"9" * 98_000_000 + b"}",
    "depth": b'{"a":' + b"[" * 98_000_000,
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
@pytest.mark.parametrize("kind", COSTLY)
def test_a_header_of_100_megabytes_costs_bounded_time_and_memory(tmp_path: Path, kind: str) -> None:
    """At most 25 times its own size, and less than half a minute."""
    path = write_header(tmp_path / "a", COSTLY[kind], b"")
    script = "import sys, polyak; polyak.load(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: limited(3.5),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    path.unlink()
    assert "polyak.errors.CheckpointError" in done.stderr, done.stderr[-500:]
    assert len(done.stderr) < 5000


@pytest.mark.parametrize("size", [10**9, 2**62])
def test_nothing_is_allocated_for_bytes_that_are_not_there(tmp_path: Path, size: int) -> None:
    import tracemalloc

    path = write_fields(tmp_path / "a", {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    tracemalloc.start()
    assert "it was cut" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def signed(path: Path, tensors: Mapping[str, np.ndarray]) -> bytes:
    write_arrays(path, tensors, Header("a", 3, None, None, "average", "run").to_metadata())
    return path.read_bytes()


def resigned(data: bytes, old: bytes, new: bytes) -> bytes:
    """Change the header and make its own checksum right again."""
    assert data.count(old) == 1
    data = data.replace(old, new)
    length = int.from_bytes(data[:8], "little")
    start = data.index(SUMS.encode()) + len(SUMS) + 3
    blank = data[:start] + b"0" * 8 + data[start + 8 : 8 + length]
    return data[:start] + f"{zlib.crc32(blank):08x}".encode() + data[start + 8 :]


@pytest.mark.slow
def test_every_byte_of_a_file_with_checksums_counts(tmp_path: Path) -> None:
    """No single flipped bit, no cut and no added byte anywhere gives anything but an error."""
    whole = signed(tmp_path / "a", {"x": np.arange(3.0), "y": np.arange(5, dtype=np.int8), "z": np.ones(0)})
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            (tmp_path / "a").write_bytes(damaged)
            refusal(tmp_path / "a", load)
        (tmp_path / "a").write_bytes(whole[:place])
        refusal(tmp_path / "a", load)
        (tmp_path / "a").write_bytes(whole[:place] + b"\0" + whole[place:])
        refusal(tmp_path / "a", load)
    (tmp_path / "a").write_bytes(whole)
    assert load(tmp_path / "a").tensors["x"].tolist() == [0, 1, 2]
    (tmp_path / "a").write_bytes(whole + b"\0")
    assert "something was added" in refusal(tmp_path / "a")


def test_damage_says_where(tmp_path: Path) -> None:
    whole = signed(tmp_path / "a", {"x": np.arange(3.0), "y": np.arange(5, dtype=np.int8)})
    (tmp_path / "a").write_bytes(whole[:-1] + b"\7")
    place = f"the 5 bytes from {len(whole) - 5:,} on differ from those that were written"
    assert place in refusal(tmp_path / "a")
    (tmp_path / "a").write_bytes(whole.replace(b"average", b"averagf"))
    assert "its header is not the one that was written" in refusal(tmp_path / "a")


def test_checksums_that_do_not_fit_the_tensors_are_refused(tmp_path: Path) -> None:
    whole = signed(tmp_path / "a", {"x": np.arange(3.0), "y": np.ones(2)})
    sums = read(tmp_path / "a")[1][SUMS].encode()
    for text in (sums[:16], sums + sums[8:16], sums[:-1] + b"g", sums[:-1]):
        padded = whole.replace(sums, text)
        length = int.from_bytes(whole[:8], "little") + len(text) - len(sums)
        (tmp_path / "a").write_bytes(resigned(length.to_bytes(8, "little") + padded[8:], text, text))
        says = refusal(tmp_path / "a")
        assert "malformed" in says or "differ from those that were written" in says


def test_tensors_of_no_elements_keep_their_checksums_apart(tmp_path: Path) -> None:
    """Several tensors begin at one byte then, and the order of the sums must be the writer's."""
    rng = np.random.default_rng(1)
    for trial in range(50):
        arrays = {
            name: rng.integers(0, 9, rng.integers(0, 2)).astype(rng.choice(["f8", "f4", "i2", "u1"]))
            for name in "abcdefgh"
        }
        write_arrays(tmp_path / "a", arrays, {})
        back = read(tmp_path / "a")[0]
        assert {n: bits(a) for n, a in back.items()} == {n: bits(a) for n, a in arrays.items()}, trial


LIES: dict[str, dict[str, Any]] = {
    "step=2.5 is no whole number": {"step": 2.5},
    "step=-1 is no whole": {"step": -1},
    "step='3' is": {"step": "3"},
    "step=inf": {"step": float("inf")},
    "format True is no version": {"format": True},
    "format 0 is no": {"format": 0},
    "format nan": {"format": float("nan")},
    "format 2 is newer than the 1 this polyak reads": {"format": 2},
    "role 'best' is none of": {"role": "best"},
    "joined/x=-3": {"joined": {"x": -3}},
    "'list' object": {"joined": [1]},
    "{} names no known decay": {"decay": {}},
    "cannot be read": {"decay": {"kind": "Constant", "beta": 2}},
    "cannot be": {"decay": 5},
    "profile": {"profile": {"decays": [], "terms": [[1.0, [[0, 0, 1, 1, 1]]]]}},
    "is not finite": {"profile": {"decays": [], "terms": [[float("inf"), []]]}},
    "count ≥ 1": {
        "profile": {"decays": [{"kind": "Constant", "beta": 0.9}], "terms": [[1, [[0, 0, 0, 1, 1]]]]}
    },
}


@pytest.mark.parametrize("says", LIES)
def test_a_header_of_ours_that_lies_with_right_checksums_is_refused(tmp_path: Path, says: str) -> None:
    """Checksums tell damage, not malice nor another program's mistakes."""
    fields = json.loads(Header("a", 3, None, None, "average", "run").to_metadata()[KEY])
    write_arrays(tmp_path / "a", {"x": np.ones(2)}, {KEY: json.dumps(fields | LIES[says])})
    assert says in refusal(tmp_path / "a", load)


def test_a_profile_of_absurd_length_does_not_hold_up_loading(tmp_path: Path) -> None:
    profile = Profile.from_decay(0.999, 10**18) + Profile.from_decay(Warmup(0.99), 10**18, every=7)
    header = Header("a", 10**18, None, profile, "average", "run")
    write_arrays(tmp_path / "a", {"x": np.ones(2)}, header.to_metadata())
    assert load(tmp_path / "a").header == header
    assert lines_run(lambda: load(tmp_path / "a")) < 3000  # not one for each step
