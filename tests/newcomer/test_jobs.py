"""Each job as a newcomer does it, with only what the pages say: a script in a folder of its own.

A script asserts what its user would look at. The tests help it with one thing only: a torchvision that was
built for another torch than the one here.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
JOBS = sorted((HERE / "jobs").glob("*.py"))
NEEDS = {  # besides the framework its name begins with: what not every Python or machine has
    "torch_adapters": "peft",
    "paddle_detection": "ppdet",
}
START = """
import runpy, sys
{shims}
runpy.run_path(sys.argv[1], run_name="__main__")
"""
SHIMS = "from tests.shims import torchvision_without_ops; torchvision_without_ops()"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_newcomer_gets_through(job: Path, tmp_path: Path) -> None:
    framework = job.stem.partition("_")[0]
    for package in (framework, NEEDS.get(job.stem, framework)):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    start = START.format(shims=SHIMS if framework == "torch" else "")
    offline = {
        "HF_HUB_OFFLINE": "1",
        "YOLO_OFFLINE": "True",
        "YOLO_AUTOINSTALL": "False",
        "MPLBACKEND": "agg",
    }
    paths = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, "-c", start, job],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | offline | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
