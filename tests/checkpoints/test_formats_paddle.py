"""Files that Paddle 3.3.1 wrote (tests/golden_files/make_pdparams.py), read without Paddle."""

from __future__ import annotations

import os
import pickle
import pickletools
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from polyak import CheckpointError
from polyak._foreign.open_any import open_weights

GOLDEN = Path(__file__).parents[1] / "golden_files" / "paddle"
SHAPES = {
    "0.weight": (4, 3),
    "0.bias": (3,),
    "1.weight": (3,),
    "1.bias": (3,),
    "1._mean": (3,),
    "1._variance": (3,),
    "2.weight": (3, 300),
    "2.bias": (300,),
}


def values(name: str) -> np.ndarray:
    """What the script put in."""
    shape = SHAPES[name]
    line = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return line + np.float32(0.5 if "weight" in name else 0)


@pytest.mark.parametrize(
    ("file", "prefix"), [("model.pdparams", ""), ("protocol2.pdparams", ""), ("nested.pdparams", "model.")]
)
def test_parameters_are_those_that_were_saved(file: str, prefix: str) -> None:
    with open_weights(GOLDEN / file) as weights:
        assert weights.format == "paddle"
        for name, shape in SHAPES.items():
            tensor = weights.tensors[prefix + name]
            assert tensor.shape == shape
            np.testing.assert_array_equal(tensor.read(), values(name))
            part = np.empty(2, np.float32)
            tensor.read_into(1, part)
            np.testing.assert_array_equal(part, values(name).reshape(-1)[1:3])
        if prefix:
            assert weights.others["epoch"] == 3


def test_bfloat16_comes_back_from_uint16() -> None:
    with open_weights(GOLDEN / "bf16.pdparams") as weights:
        for name in SHAPES:
            read = weights.tensors[name].read()
            assert read.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(read, values(name).astype(ml_dtypes.bfloat16))


def test_an_optimizer_is_read() -> None:
    with open_weights(GOLDEN / "model.pdopt") as weights:
        assert "linear_0.w_0_moment1_0" in weights.tensors


def test_sliced_parameters_are_put_together(tmp_path: Path) -> None:
    """As Paddle slices what is larger than 4 GB for protocols 2 and 3; with small parts here."""
    whole = np.arange(12.0, dtype=np.float32)
    saved = {
        "w@@.0": whole[:5],
        "w@@.1": whole[5:],
        "b": whole[:2],
        "UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}},
    }
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(saved, protocol=2))
    with open_weights(tmp_path / "a.pdparams") as weights:
        assert set(weights.tensors) == {"w", "b"}
        np.testing.assert_array_equal(weights.tensors["w"].read(), whole.reshape(3, 4))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", "|b1", "<c16", "<f2"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_any_order(tmp_path: Path, order: str, dtype: str, protocol: int) -> None:
    array = np.asarray(np.arange(3000).reshape(50, 60), dtype, order=order)
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"w": array}, protocol=protocol))
    with open_weights(tmp_path / "a.pdparams") as weights:
        read = weights.tensors["w"].read()
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype.newbyteorder("=")
        part = np.empty(70, read.dtype)
        weights.tensors["w"].read_into(31, part)
        np.testing.assert_array_equal(part, array.reshape(-1)[31:101])


def test_a_large_file_takes_no_memory(tmp_path: Path) -> None:
    saved = {"big": np.zeros(1 << 27, np.uint8), "small": np.ones(3)}
    with (tmp_path / "a.pdparams").open("wb") as file:
        pickle.dump(saved, file, protocol=4)
    del saved
    tracemalloc.start()
    with open_weights(tmp_path / "a.pdparams") as weights:
        assert weights.tensors["small"].read().tolist() == [1, 1, 1]
        assert weights.tensors["big"].shape == (1 << 27,)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [np.random.default_rng(0).bytes(1 << 22), bytes(1 << 22), b"\xff" * (1 << 22)]
)
def test_protocol_2_spells_bytes_as_text_which_stays_in_the_file(tmp_path: Path, content: bytes) -> None:
    """Paddle 2.0 wrote it; a byte from 128 on takes two there."""
    array = np.frombuffer(content, np.float32).reshape(1024, -1)
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"w": array, "b": np.ones(3)}, protocol=2))
    del content
    tracemalloc.start()
    with open_weights(tmp_path / "a.pdparams") as weights:
        assert tracemalloc.get_traced_memory()[1] < 1e6
        tracemalloc.stop()
        assert weights.tensors["w"].read().tobytes() == array.tobytes()
        part = np.empty(70, np.float32)
        weights.tensors["w"].read_into(31, part)
        assert part.tobytes() == array.reshape(-1)[31:101].tobytes()
        assert weights.tensors["b"].read().tolist() == [1, 1, 1]


def test_text_that_is_not_as_long_as_its_array(tmp_path: Path) -> None:
    array = np.full(3000, 65, np.uint8)
    data = pickle.dumps({"w": array}, protocol=2)

    def shaped(size: int) -> Path:
        changed = data.replace(b"M" + (3000).to_bytes(2, "little"), b"M" + size.to_bytes(2, "little"))
        (tmp_path / "a.pdparams").write_bytes(changed)
        return tmp_path / "a.pdparams"

    for size in (1000, 3100):
        with pytest.raises(CheckpointError, match="has 3,000 bytes"):
            open_weights(shaped(size))
    with open_weights(shaped(2000)) as weights, pytest.raises(CheckpointError, match="has 3,000 bytes"):
        weights.tensors["w"].read()


def python_2(array: np.ndarray, spelled: bytes) -> bytes:
    """An array as ``pickle.dumps`` of Python 2 had it at protocol 2, which gave bytes as they are."""
    data = pickle.dumps({"w": array}, protocol=2)
    opcodes = [(opcode.name, argument, at) for opcode, argument, at in pickletools.genops(data)]
    text = next(i for i, (_, value, _) in enumerate(opcodes) if value == array.tobytes().decode("latin1"))
    called = next(i for i in range(text, len(opcodes)) if opcodes[i][0] == "REDUCE")
    return data[: opcodes[text - 1][2]] + spelled + data[opcodes[called + 1][2] :]


def test_python_2_wrote_bytes_as_strings(tmp_path: Path) -> None:
    path = tmp_path / "a.pdparams"
    for size in (50, 3000):
        array = np.arange(size, dtype=np.float32) - 1500
        raw = array.tobytes()
        path.write_bytes(python_2(array, b"T" + len(raw).to_bytes(4, "little") + raw))
        with open_weights(path) as weights:
            np.testing.assert_array_equal(weights.tensors["w"].read(), array)
            part = np.empty(7, np.float32)
            weights.tensors["w"].read_into(31, part)
            np.testing.assert_array_equal(part, array[31:38])


def test_a_string_of_python_2_must_be_bytes(tmp_path: Path) -> None:
    spelled = "€".encode()
    path = tmp_path / "a.pdparams"
    path.write_bytes(python_2(np.full(1, 200, np.uint8), b"X" + len(spelled).to_bytes(4, "little") + spelled))
    with (
        open_weights(path) as weights,
        pytest.raises(CheckpointError, match="characters that are not Latin-1"),
    ):
        weights.tensors["w"].read()


def test_one_string_in_many_arrays_is_there_once(tmp_path: Path) -> None:
    """Two hundred arrays of the same million letters take a million bytes."""
    million = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20)
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R"
    state = b"(K\x01J\x00\x00\x10\x00\x85" + dtype + b"\x89" + million + b"tq\x010"
    one = b"cnumpy.core.multiarray\n_reconstruct\n)Rh\x01b"
    (tmp_path / "a.pdparams").write_bytes(b"\x80\x02" + state + b"](" + one * 200 + b"e.")
    tracemalloc.start()
    with open_weights(tmp_path / "a.pdparams") as weights:
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()
        assert weights.tensors["199"].read().tobytes() == b"a" * (1 << 20)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"X" + (60_000).to_bytes(4, "little") + b"f4, " * 15_000, "not named by a short code"),
        (b"](X\x02\x00\x00\x00f4h\x00e", "not named by a short code"),
        (b"X\x04\x00\x00\x00What", "'What' is not a dtype"),
    ],
)
def test_a_dtype_is_a_short_code(tmp_path: Path, code: bytes, words: str) -> None:
    (tmp_path / "a.pdparams").write_bytes(b"\x80\x02K\x01q\x000cnumpy\ndtype\n" + code + b"\x85R.")
    with pytest.raises(CheckpointError, match=words):
        open_weights(tmp_path / "a.pdparams")


@pytest.mark.parametrize(
    "info",
    [
        3,
        {"w": 3},
        {"w": {"slices": ["x"], "OriginShape": (3,)}},
        {"w": {"slices": [], "OriginShape": (3,)}},
        {"w": {"slices": ["b"], "OriginShape": (3,)}},
        {"w": {"slices": ["text"], "OriginShape": (3,)}},
        {"w": {"slices": ["b", "c"], "OriginShape": (4,)}},
    ],
)
def test_slices_that_make_up_nothing(tmp_path: Path, info: object) -> None:
    saved = {"b": np.ones(2), "c": np.ones(2, np.float32), "text": "x", "UnpackBigParamInfor@@": info}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(saved, protocol=4))
    with pytest.raises(CheckpointError, match="damaged: its description of sliced parameters"):
        open_weights(tmp_path / "a.pdparams")


@pytest.mark.parametrize(
    "shape", [b"K\x00\x8a\x0a" + (2**70).to_bytes(10, "little") + b"\x86", b"(" + b"K\x01" * 99 + b"K\x00t"]
)
def test_shapes_that_no_array_has(tmp_path: Path, shape: bytes) -> None:
    data = pickle.dumps({"w": np.ones((0, 7))}, protocol=2)
    assert b"K\x00K\x07\x86" in data
    (tmp_path / "a.pdparams").write_bytes(data.replace(b"K\x00K\x07\x86", shape))
    with pytest.raises(CheckpointError, match=r"no array can have|at most"):
        open_weights(tmp_path / "a.pdparams")


def test_what_is_not_paddle_keeps_its_16_bits(tmp_path: Path) -> None:
    import torch

    tree = {"image": np.arange(2000, dtype=np.uint16), "w": torch.ones(2)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(tree, protocol=4))
    with open_weights(tmp_path / "a.pkl") as weights:
        np.testing.assert_array_equal(weights.tensors["image"].read(), tree["image"])
    with open_weights(GOLDEN / "bf16.pdparams") as weights:  # the whole tree, too, and not the slots alone
        assert weights.others["0.weight"].dtype == ml_dtypes.bfloat16


class Evaluated:
    """What Paddle's own reduction of a tensor looks like, with any expression."""

    def __init__(self, expression: str, names: dict[str, object]) -> None:
        self.call = eval, (expression, names)

    def __reduce__(self) -> object:
        return self.call


def test_the_one_expression_that_paddle_writes(tmp_path: Path) -> None:
    path, witness = tmp_path / "a.pdparams", tmp_path / "witness"
    path.write_bytes(pickle.dumps({"w": Evaluated("data", {"data": np.ones(2)})}, protocol=4))
    with open_weights(path) as weights:
        assert weights.tensors["w"].read().tolist() == [1, 1]
    attack = f"__import__('os').system('touch {witness}')"
    for names in ({"data": 1}, {}):
        path.write_bytes(pickle.dumps({"w": Evaluated(attack, names)}, protocol=4))
        with open_weights(path) as weights:
            assert not weights.tensors
            assert weights.others["w"].name == "eval"
    assert not witness.exists()


def test_arrays_of_objects_text_and_times_are_no_tensors(tmp_path: Path) -> None:
    others = {"o": np.array([os.getcwd], object), "u": np.array(["a", "bc"]), "t": np.array([1], "M8[ns]")}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"w": np.ones(2), **others}, protocol=4))
    with open_weights(tmp_path / "a.pdparams") as weights:
        assert list(weights.tensors) == ["w"]
        assert weights.tensors["w"].read().tolist() == [1, 1]
