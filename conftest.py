"""What holds for every test, those in docstrings too."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

# Engines that need what may be missing: importing them for their examples would stop the tests.
_SRC = Path(__file__).parent / "src/polyak"
_TESTS = Path(__file__).parent / "tests"
_ENGINES = _SRC / "torch/_engines"
_PADDLE = [
    _SRC / "paddle",
    *_SRC.glob("dropin/*paddle_*.py"),
    _SRC / "demo/in_paddle.py",
    *_TESTS.glob("*/paddle_*.py"),
    _TESTS / "paddle",
]
collect_ignore = [
    *([] if any(_SRC.glob("_kernel/_native.*so")) else [_SRC / "_kernel/native.py", _ENGINES / "native.py"]),
    *([] if find_spec("paddle") else _PADDLE),
    *([] if find_spec("torch") else _TESTS.glob("*/torch_*.py")),
    *([] if find_spec("triton") else _ENGINES.glob("triton*.py")),
]

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras looks once, when it is imported

_OPTIONS = np.get_printoptions()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests first: at the end no core waits for one that began late."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _arrays_print_as_ever() -> Iterator[None]:
    """Importing Ultralytics changes how NumPy prints, for the whole process."""
    with np.printoptions(**_OPTIONS):
        yield
