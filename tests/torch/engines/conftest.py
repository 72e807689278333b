"""Doctests are looked for in every file, and importing these needs a Triton that polyak's kernels can use."""

from importlib.metadata import PackageNotFoundError, version

from torch.torch_version import TorchVersion

try:
    usable = TorchVersion(version("triton")) >= "3.2"
except PackageNotFoundError:
    usable = False
collect_ignore = [] if usable else ["graph_worker.py", "triton_worker.py"]
