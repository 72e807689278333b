"""What the process imports that ``processes.apart`` forks others from; few environments have all of it."""

import gc
import importlib
from contextlib import suppress

for name in (
    "torch.distributed.fsdp",
    "torch._dynamo",  # all of these import it in the end
    "polyak.torch",
    "sklearn.datasets",
    "tensorboard.backend.event_processing.event_accumulator",
    "tests.shims",
):
    with suppress(ImportError):
        importlib.import_module(name)

with suppress(ImportError):
    from tests.shims import torchvision_without_ops

    torchvision_without_ops()

for name in (
    "polyak.trainers.accelerate",
    "polyak.trainers.ignite",
    "polyak.trainers.lightning",
    "polyak.trainers.transformers",
    "transformers.models.bert.modeling_bert",
    "lightning.pytorch.strategies",
):
    with suppress(ImportError):
        importlib.import_module(name)

gc.freeze()  # the forked share it, and collect only what is theirs
