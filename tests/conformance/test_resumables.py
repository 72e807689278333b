"""A run that one framework began is continued by another."""

from pathlib import Path

import numpy as np
import pytest

from polyak._foreign.open_any import open_weights
from tests.conformance.members import MEMBERS
from tests.conformance.resumables import HALF, KINDS, WHOLE, file_of, run

CASES = [
    (name, framework)
    for name in MEMBERS
    if name.partition(", ")[2] in KINDS
    for framework in ("torch", "paddle")
]


@pytest.mark.parametrize(("name", "framework"), CASES)
def test_a_file_of_either_framework_is_continued(name: str, framework: str) -> None:
    row, file = MEMBERS[name], file_of(framework, name.partition(", ")[2])
    whole, continued = run(row, 0, WHOLE), run(row, HALF, WHOLE, file)
    assert continued.ema.step == WHOLE
    assert continued.ema.metrics()["skipped_tensors"] == whole.ema.metrics()["skipped_tensors"] == {"w": 1}
    for track in ("a", "b"):
        assert continued.ema.tracks[track].profile == whole.ema.tracks[track].profile
        for key, value in continued.average(track).items():
            expected = whole.average(track)[key]
            np.testing.assert_allclose(value, expected, rtol=0, atol=4 * row.tolerance, err_msg=key)


@pytest.mark.parametrize(("name", "framework"), CASES)
def test_what_is_loaded_is_bit_by_bit_what_the_file_holds(name: str, framework: str, tmp_path: Path) -> None:
    """Written again by this framework, it is the same file but for who wrote it."""
    row, file = MEMBERS[name], file_of(framework, name.partition(", ")[2])
    run(row, HALF, HALF, file).ema.save(tmp_path / "again.safetensors", resumable=True)
    with open_weights(file) as one, open_weights(tmp_path / "again.safetensors") as other:
        assert one.metadata["polyak"] == other.metadata["polyak"]
        assert one.tensors.keys() == other.tensors.keys()
        for key, tensor in one.tensors.items():
            mine, theirs = tensor.read(), other.tensors[key].read()
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            assert mine.tobytes() == theirs.tobytes(), key


def test_the_files_are_small() -> None:
    assert sum(file_of(f, kind).stat().st_size for f in ("torch", "paddle") for kind in KINDS) < 20_000
