"""What holds for every test, those in docstrings too."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

# Engines that need what may be missing: importing them for their examples would stop the tests.
_ENGINES = Path(__file__).parent / "src/polyak/torch/engines"
collect_ignore = [
    *([] if any(_ENGINES.glob("_native.*so")) else [_ENGINES / "native.py"]),
    *([] if find_spec("triton") else _ENGINES.glob("triton*.py")),
]

_OPTIONS = np.get_printoptions()


@pytest.fixture(autouse=True)
def _arrays_print_as_ever() -> Iterator[None]:
    """Importing Ultralytics changes how NumPy prints, for the whole process."""
    with np.printoptions(**_OPTIONS):
        yield
