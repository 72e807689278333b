"""Stand-ins for what a CPU-only machine lacks. Never imported by the library."""

from typing import Any

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
    """The boxes, best first, that overlap no better one by more than ``most``."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    left, kept = scores.argsort(descending=True), scores.new_empty(0, dtype=torch.int64)
    while len(left):
        best, left = left[:1], left[1:]
        kept = torch.cat([kept, best])
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        left = left[shared <= most * (area[best] + area[left] - shared)]
    return kept


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
