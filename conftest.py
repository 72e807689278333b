"""What holds for every test, those in docstrings too."""

import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
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
    _SRC / "trainers/_paddle.py",
    _SRC / "trainers/hapi.py",
    _SRC / "demo/in_paddle.py",
    *_TESTS.glob("*/paddle_*.py"),
    _TESTS / "paddle",
]
# They import ``fully_shard`` and DTensor, which are public from torch 2.6 on; below it polyak refuses them.
_FULLY_SHARDED = [
    _SRC / "torch/_sharding/layout.py",
    _TESTS / "distributed",
    _TESTS / "checkpoints/dcp_worker.py",
    _TESTS / "checkpoints/test_formats_dcp.py",
    _TESTS / "trainers/fully_sharded_worker.py",
    _TESTS / "trainers/test_fully_sharded.py",
    _TESTS / "trainers/sharded.py",
    _TESTS / "trainers/test_sharded.py",
]


def _since(package: str, *least: int) -> bool:
    """Whether it is here in this version or a later one; it is not imported."""
    with suppress(PackageNotFoundError):
        return tuple(int(part) for part in version(package).split(".")[:2]) >= least
    return False


collect_ignore = [
    _TESTS / "newcomer/jobs",  # scripts: importing them runs them
    _TESTS / "imported.py",  # imports every trainer
    *([] if any(_SRC.glob("_kernel/_native.*so")) else [_SRC / "_kernel/native.py", _ENGINES / "native.py"]),
    *([] if find_spec("paddle") else _PADDLE),
    *([] if find_spec("torch") else _TESTS.glob("*/torch_*.py")),
    *([] if _since("triton", 3, 2) else _ENGINES.glob("triton*.py")),
    *([] if _since("torch", 2, 6) else _FULLY_SHARDED),
]

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras looks once, when it is imported

_OPTIONS = np.get_printoptions()


# What takes longest by processor time: whole trainings, interpreted kernels, kills, interrupts, huge files,
# and processes that import torch anew.
SLOW = (
    "src/polyak/trainers/",
    "tests/architecture/test_build.py",
    "tests/architecture/test_no_framework.py",
    "tests/bench/",
    "tests/checkpoints/test_archive.py",
    "tests/checkpoints/test_best.py::test_a_process_killed",
    "tests/checkpoints/test_crash.py",
    "tests/checkpoints/test_foreign.py::test_a_module_that_spells_out_more",
    "tests/checkpoints/test_formats_dcp.py::test_a_missing_or_cut_file",
    "tests/checkpoints/test_fuzz.py",
    "tests/checkpoints/test_layout.py::test_a_header_of_100_megabytes",
    "tests/checkpoints/test_layout.py::test_more_than_two_gigabytes",
    "tests/checkpoints/test_merge.py::test_memory_does_not_grow",
    "tests/checkpoints/test_mutated.py",
    "tests/checkpoints/test_trainers.py",
    "tests/cli/test_bench.py",
    "tests/cli/test_cli.py::test_a_missing_extra",
    "tests/cli/test_cli.py::test_a_run_ends",
    "tests/cli/test_cli.py::test_ctrl_c",
    "tests/cli/test_cli.py::test_json",
    "tests/cli/test_help_examples.py",
    "tests/cli/test_sweep.py",
    "tests/containers/test_offered.py",
    "tests/demo/test_run.py",
    "tests/docs/",
    "tests/dropin/test_migrating.py",
    "tests/experiments/test_small_images.py::test_a_seed_repeats",
    "tests/experiments/test_text.py::test_a_seed_repeats",
    "tests/newcomer/",
    "tests/paddle/test_hapi.py",
    "tests/paddle/test_interrupts.py",
    "tests/paddle/test_ocr.py",
    "tests/paddle/test_pages.py",
    "tests/report/test_page.py",
    "tests/report/test_report.py::test_every_plot_is_a_figure",
    "tests/report/test_report.py::test_json_names",
    "tests/platforms/",
    "tests/schedules/test_posthoc.py::test_100_profiles_of_a_million_steps",
    "tests/server/test_chaos.py",
    "tests/server/test_recipes.py",
    "tests/server/test_server.py",
    "tests/torch/engines/test_graph.py",
    "tests/torch/engines/test_native_robustness.py::test_children_of_fork",
    "tests/torch/engines/test_sanitized.py",
    "tests/torch/engines/test_select.py::test_an_old_triton",
    "tests/torch/engines/test_select.py::test_without_the_kernel",
    "tests/torch/engines/test_triton.py",
    "tests/torch/engines/test_triton_usable.py",
    "tests/torch/test_background_save.py::test_the_interpreter_ends",
    "tests/torch/test_clone.py::test_the_average_of_an_adapter",
    "tests/torch/test_compiled_step.py",
    "tests/torch/test_copy_and_pickle.py::test_a_spawned_process",
    "tests/torch/test_interrupts.py",
    "tests/torch/test_low_precision.py::test_a_hundred_thousand_steps",
    "tests/torch/test_low_precision.py::test_ten_thousand_steps",
    "tests/torch/test_models.py::test_inductor",
    "tests/torch/test_resume.py::test_continuing",
    "tests/torch/test_resume_file.py::test_a_tensor_of_more_than_two_gigabytes",
    "tests/torch/test_resume_file.py::test_continuing",
    "tests/torch/test_synchronize_buffers.py::test_one_call",
    "tests/trainers/",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import nothing that is left out as a whole: the trainers' packages take seconds to import."""
    here = collection_path.relative_to(config.rootpath).as_posix() + "/" * collection_path.is_dir()
    return True if config.option.markexpr == "not slow" and here.startswith(SLOW) else None


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow. Its files come first: at the end no core waits for one that began late."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")
    first = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in first)


def pytest_collection_finish() -> None:
    """Modules and the list of tests stay: who looks for garbage, as `polyak` does, need not look at them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _arrays_print_as_ever() -> Iterator[None]:
    """Importing Ultralytics changes how NumPy prints, for the whole process."""
    with np.printoptions(**_OPTIONS):
        yield
