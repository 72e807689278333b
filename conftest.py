"""What holds for every test, those in docstrings too."""

from collections.abc import Iterator

import numpy as np
import pytest

_OPTIONS = np.get_printoptions()


@pytest.fixture(autouse=True)
def _arrays_print_as_ever() -> Iterator[None]:
    """Importing Ultralytics changes how NumPy prints, for the whole process."""
    with np.printoptions(**_OPTIONS):
        yield
