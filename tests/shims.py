"""Stand-ins for what a CPU-only machine lacks. Never imported by the library."""

import torch

_library: list[torch.library.Library] = []


def torchvision_without_ops() -> None:
    """Let torchvision import on a torch build its compiled operators do not match; none of them is used."""
    if not _library:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.append(library)
