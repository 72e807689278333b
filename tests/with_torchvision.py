"""Run a module on a torch that torchvision's compiled operators do not match, such as the CPU's build.

python -m tests.with_torchvision experiments.detection.run --quick
"""

import runpy
import sys

from tests.shims import torchvision_with_nms

if __name__ == "__main__":
    torchvision_with_nms()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
