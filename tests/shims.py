"""Stand-ins for what a CPU-only machine lacks. Never imported by the library."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

_libraries: list[torch.library.Library] = []


def torchvision_without_ops() -> None:
    """Let torchvision import on a torch build its compiled operators do not match; none is called."""
    if not _libraries:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)


def torchvision_with_nms() -> None:
    """``torchvision_without_ops``, and the one operator that validating a detector takes."""
    torchvision_without_ops()
    if len(_libraries) == 1:
        library = torch.library.Library("torchvision", "IMPL")
        library.impl("nms", _nms, "CPU")
        _libraries.append(library)

        from torchvision import extension

        extension._has_ops = lambda: True


def _nms(boxes: Tensor, scores: Tensor, most: float) -> Tensor:
    """The boxes, best first, that overlap no better one by more than ``most``.

    All pairs at once, for small pictures: Ultralytics leaves out what takes longer than seconds.
    """
    order = scores.argsort(descending=True)
    x, y, right, low = boxes[order].numpy().T[:, :, None]
    areas = (right - x) * (low - y)
    width = np.minimum(right, right.T) - np.maximum(x, x.T)
    shared = width.clip(0) * (np.minimum(low, low.T) - np.maximum(y, y.T)).clip(0)
    overlapping = shared > most * (areas + areas.T - shared)
    left = np.ones(len(order), bool)
    for place in range(len(order)):
        if left[place]:
            left[place + 1 :] &= ~overlapping[place, place + 1 :]
    return order[torch.from_numpy(left)]


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
