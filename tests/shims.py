"""Stand-ins for what a CPU-only machine lacks. Never imported by the library."""

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_libraries: list[torch.library.Library] = []


def torchvision_without_ops() -> None:
    """Let torchvision import on a torch build its compiled operators do not match; none is called."""
    if not _libraries and not _operators_load():
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)


def _operators_load() -> bool:
    """Whether torchvision's own operators load here; a second definition of one ends the process."""
    package = find_spec("torchvision")
    [folder] = (package and package.submodule_search_locations) or [""]
    try:
        ctypes.CDLL(str(next(Path(folder).glob("_C*.so"))))
    except (StopIteration, OSError):
        return False
    return True


def torchvision_with_nms() -> None:
    """``torchvision_without_ops``, and the one operator that validating a detector takes."""
    torchvision_without_ops()
    if len(_libraries) == 1:  # not where its own operators load
        library = torch.library.Library("torchvision", "IMPL")
        library.impl("nms", _nms, "CPU")
        _libraries.append(library)

        from torchvision import extension

        extension._has_ops = lambda: True


def _nms(boxes: Tensor, scores: Tensor, most: float) -> Tensor:
    """The boxes, best first, that overlap no better one by more than ``most``.

    Boxes that do not meet along x are apart: Ultralytics moves each class to a place of its own, so all pairs
    of a class are compared at once. All pairs of a picture took long enough for its time limit.
    """
    order = scores.argsort(descending=True).numpy()
    x, right = boxes[order][:, [0, 2]].numpy().T
    along = x.argsort(kind="stable")
    reached = np.maximum.accumulate(right[along])
    left = np.ones(len(order), bool)
    for group in np.split(along, 1 + np.flatnonzero(x[along][1:] >= reached[:-1])):
        places = np.sort(group)
        left[places] = _best(boxes[order[places]].numpy(), most)
    return torch.from_numpy(order[left])


def _best(boxes: NDArray[np.float32], most: float) -> NDArray[np.bool_]:
    """Which of the boxes, sorted, overlap no better one that is kept by more than ``most``."""
    x, y, right, low = boxes.T[:, :, None]
    areas = (right - x) * (low - y)
    width = np.minimum(right, right.T) - np.maximum(x, x.T)
    shared = width.clip(0) * (np.minimum(low, low.T) - np.maximum(y, y.T)).clip(0)
    overlapping = shared > most * (areas + areas.T - shared)
    left = np.ones(len(boxes), bool)
    for place in range(len(boxes)):
        if left[place]:
            left[place + 1 :] &= ~overlapping[place, place + 1 :]
    return left


def accelerate_shards_on_a_cpu() -> None:
    """Let Accelerate follow its ``fsdp_plugin`` on CPUs too, where it would only use DDP."""
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    make = AcceleratorState.__init__

    def made(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = made
