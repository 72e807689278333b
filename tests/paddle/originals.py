"""The averages of Paddle's libraries, loaded without the packages around them.

Importing the packages themselves asks for OpenCV, tokenizers and the like; the averages need Paddle only.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


def _load(package: str, file: str, name: str) -> Any:
    found = find_spec(package)
    assert found is not None
    assert found.origin is not None
    spec = spec_from_file_location(name, Path(found.origin).parent / file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def model_ema() -> Any:
    """``ppdet.optimizer.ema.ModelEMA``."""
    package = "polyak_tests_ppdet_optimizer"  # a name of our own: ema.py imports .utils beside it
    sys.modules[package] = ModuleType(package)
    sys.modules[package].__path__ = []
    _load("ppdet", "optimizer/utils.py", f"{package}.utils")
    return _load("ppdet", "optimizer/ema.py", f"{package}.ema").ModelEMA


def exponential_moving_average() -> Any:
    """``ppcls.utils.ema.ExponentialMovingAverage``."""
    return _load("paddleclas", "ppcls/utils/ema.py", "polyak_tests_ppcls_ema").ExponentialMovingAverage


def paddle_seg() -> Any:
    """``paddleseg.utils.ema``."""
    return _load("paddleseg", "utils/ema.py", "polyak_tests_paddleseg_ema")


def paddle_science() -> Any:
    """``ppsci.utils.ema``."""
    return _load("ppsci", "utils/ema.py", "polyak_tests_ppsci_ema")
