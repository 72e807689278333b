"""What a plain `pip install polyak` does, without any framework. Runs in the full environment too."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import polyak
from polyak import CheckpointError, MissingExtraError, Power, Profile
from polyak._files.header import FORMAT, KEY, Header
from polyak._files.write import write_arrays

HEADER = Header("average", 100, Power(sigma_rel=0.1), Profile.from_decay(0.99, 100), "average", "a-run")
TENSORS = {
    "weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "short": np.array([1.0, 2.0], ml_dtypes.bfloat16),
    "count": np.array(2**53 + 1),
}


def without(package: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process where the package looks uninstalled."""
    code = f"import sys; sys.modules[{package!r}] = None\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_arrays(tmp_path / "average.safetensors", TENSORS, HEADER.to_metadata())
    return tmp_path / "average.safetensors"


def test_every_name_that_needs_no_framework_is_there() -> None:
    for name in set(polyak.__all__) - {"EMA", "Teacher", "update_batchnorm"}:
        assert getattr(polyak, name)


def test_a_file_is_read_with_what_it_says_of_itself(path: Path) -> None:
    average = polyak.load(path)
    assert average.header == HEADER
    assert set(average.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert average.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(average.tensors[name], tensor)


@pytest.mark.parametrize("name", ["EMA", "Teacher", "update_batchnorm"])
def test_what_needs_torch_answers_with_the_pip_line(name: str) -> None:
    done = without("torch", f"import polyak; polyak.{name}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(
        'PyTorch is not installed. Install it with: pip install "polyak[torch]". '
        "Layers of PaddlePaddle go to polyak.paddle.EMA."
    )
    assert last.startswith("polyak.errors.MissingExtraError")


def test_what_needs_paddle_answers_with_the_pip_line() -> None:
    done = without("paddle", "import polyak.paddle")
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith('PaddlePaddle is not installed. Install it with: pip install "polyak[paddle]"')
    assert last.startswith("polyak.errors.MissingExtraError")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed here")
def test_torch_is_truly_missing_here() -> None:
    with pytest.raises(MissingExtraError, match=r"polyak\[torch\]"):
        polyak.EMA  # noqa: B018


def test_help_and_version_run() -> None:
    for flag, words in (("--help", "demo"), ("--version", f"polyak {polyak.__version__}")):
        code = f"import sys; sys.argv = ['polyak', {flag!r}]; from polyak.cli import main; main()"
        done = without("torch", code)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout


def test_the_demo_answers_with_its_pip_line() -> None:
    code = "import sys; sys.argv = ['polyak', 'demo']; from polyak.cli import main; main()"
    done = without("torch", code)
    assert done.returncode == 1
    assert 'pip install "polyak[' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors cannot be opened"):
        polyak.load(tmp_path / "nothing.safetensors")


def test_a_plain_weights_file_is_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "plain.safetensors", {"w": np.zeros(2)}, {})
    with pytest.raises(CheckpointError, match="no 'polyak' header"):
        polyak.load(tmp_path / "plain.safetensors")


def test_a_truncated_file_is_refused_at_every_length(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, *range(20, len(whole), 37), len(whole) - 1}:
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"not a valid safetensors|is empty"):
            polyak.load(cut)


@pytest.mark.parametrize(
    "change",
    [
        {"format": FORMAT + 1},
        {"format": "1"},
        {"format": None},
        {"step": "many"},
        {"decay": {"kind": "Constant", "beta": 2}},
        {"decay": 7},
        {"profile": {}},
        {"profile": 7},
    ],
)
def test_a_damaged_header_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    fields = json.loads(HEADER.to_metadata()[KEY]) | change
    write_arrays(tmp_path / "odd.safetensors", TENSORS, {KEY: json.dumps(fields)})
    with pytest.raises(CheckpointError, match=r"odd\.safetensors"):
        polyak.load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{", "[" * 100_000, '{"format": 1}'])
def test_a_header_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="the 'polyak' header cannot be read"):
        Header.from_metadata({KEY: text}, "file")


@pytest.mark.parametrize("field", ["track", "step", "decay", "profile", "role", "run"])
def test_a_header_without_a_field_is_refused(field: str) -> None:
    fields = json.loads(HEADER.to_metadata()[KEY])
    del fields[field]
    with pytest.raises(CheckpointError, match=field):
        Header.from_metadata({KEY: json.dumps(fields)}, "file")


def test_a_role_that_is_none_is_refused() -> None:
    fields = json.loads(HEADER.to_metadata()[KEY]) | {"role": "emperor"}
    with pytest.raises(CheckpointError, match="emperor"):
        Header.from_metadata({KEY: json.dumps(fields)}, "file")


def test_an_8_bit_float_is_read(tmp_path: Path) -> None:
    scale = np.array([0.5, 448.0], ml_dtypes.float8_e4m3fn)
    write_arrays(tmp_path / "eight.safetensors", {"scale": scale}, HEADER.to_metadata())
    read = polyak.load(tmp_path / "eight.safetensors").tensors["scale"]
    assert read.dtype == scale.dtype
    assert read.tobytes() == scale.tobytes()
