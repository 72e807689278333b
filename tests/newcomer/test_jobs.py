"""Each job as a newcomer does it, with only what the pages say: a script in a folder of its own.

A script asserts what its user would look at. The tests help it with two things: a torchvision that was built
for another torch than the one here, and, but for two that begin as they do everywhere, a torch that is there
already, in them and in the commands that they run.
"""

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.warm import COLD

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
JOBS = sorted((HERE / "jobs").glob("*.py"))
NEEDS = {  # besides the framework its name begins with: what not every Python or machine has
    "torch_adapters": "peft",
    "paddle_detection": "ppdet",
}
FRESH = {"torch_doctor", "torch_tutorial"}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_newcomer_gets_through(job: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    framework = job.stem.partition("_")[0]
    for package in (framework, NEEDS.get(job.stem, framework)):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    path = COLD if job.stem in FRESH else request.getfixturevalue("warm_path")
    offline = {
        "HF_HUB_OFFLINE": "1",
        "YOLO_OFFLINE": "True",
        "YOLO_AUTOINSTALL": "False",
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(
        f'python "{job}"',
        shell=True,  # it looks for python on this PATH
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path} | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
