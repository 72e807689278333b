"""Doctests are looked for in every file, and importing this one needs a Triton that polyak's kernels can use."""

from importlib.metadata import PackageNotFoundError, version

from torch.torch_version import TorchVersion

try:
    collect_ignore = ["triton_worker.py"] if TorchVersion(version("triton")) < "3.2" else []
except PackageNotFoundError:
    collect_ignore = ["triton_worker.py"]
