"""Files that Paddle 3.3.1 wrote (tests/golden/make_pdparams.py), read without Paddle."""

from __future__ import annotations

import os
import pickle
import random
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from polyak import CheckpointError
from polyak.checkpoints.formats import open_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "paddle"
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
            slot = weights.slots[prefix + name]
            assert slot.shape == shape
            np.testing.assert_array_equal(slot.read(), values(name))
            part = np.empty(2, np.float32)
            slot.read_into(1, part)
            np.testing.assert_array_equal(part, values(name).reshape(-1)[1:3])
        if prefix:
            assert weights.others["epoch"] == 3


def test_bfloat16_comes_back_from_uint16() -> None:
    with open_weights(GOLDEN / "bf16.pdparams") as weights:
        for name in SHAPES:
            read = weights.slots[name].read()
            assert read.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(read, values(name).astype(ml_dtypes.bfloat16))


def test_an_optimizer_is_read() -> None:
    with open_weights(GOLDEN / "model.pdopt") as weights:
        assert "linear_0.w_0_moment1_0" in weights.slots


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
        assert set(weights.slots) == {"w", "b"}
        np.testing.assert_array_equal(weights.slots["w"].read(), whole.reshape(3, 4))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", "|b1", "<c16", "<f2"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_any_order(tmp_path: Path, order: str, dtype: str, protocol: int) -> None:
    array = np.asarray(np.arange(3000).reshape(50, 60), dtype, order=order)
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"w": array}, protocol=protocol))
    with open_weights(tmp_path / "a.pdparams") as weights:
        read = weights.slots["w"].read()
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype.newbyteorder("=")
        part = np.empty(70, read.dtype)
        weights.slots["w"].read_into(31, part)
        np.testing.assert_array_equal(part, array.reshape(-1)[31:101])


def test_a_large_file_takes_no_memory(tmp_path: Path) -> None:
    saved = {"big": np.zeros(1 << 27, np.uint8), "small": np.ones(3)}
    with (tmp_path / "a.pdparams").open("wb") as file:
        pickle.dump(saved, file, protocol=4)
    del saved
    tracemalloc.start()
    with open_weights(tmp_path / "a.pdparams") as weights:
        assert weights.slots["small"].read().tolist() == [1, 1, 1]
        assert weights.slots["big"].shape == (1 << 27,)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


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
        assert weights.slots["w"].read().tolist() == [1, 1]
    attack = f"__import__('os').system('touch {witness}')"
    for names in ({"data": 1}, {}):
        path.write_bytes(pickle.dumps({"w": Evaluated(attack, names)}, protocol=4))
        with pytest.raises(CheckpointError, match=r"asks to call builtins\.eval"):
            open_weights(path)
    assert not witness.exists()


def test_objects_in_arrays_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"w": np.array([os.getcwd], object)}, protocol=4))
    with pytest.raises(CheckpointError, match="objects, not numbers"):
        open_weights(tmp_path / "a.pdparams")


def test_mutated_files_never_crash(tmp_path: Path) -> None:
    whole, chance, path = (GOLDEN / "model.pdparams").read_bytes(), random.Random(1), tmp_path / "m.pdparams"
    refused = 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(min(len(data), 1400))
            data[at] = chance.choice([data[at] ^ 1 << chance.randrange(8), chance.randrange(256)])
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            with open_weights(path) as weights:
                for slot in weights.slots.values():
                    assert slot.nbytes <= len(data)
                    slot.read()
        except CheckpointError:
            refused += 1
    assert refused > 200
