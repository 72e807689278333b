"""How far the steps in Lightning's logs are behind those of its checkpoints.

Its loggers are given the number of batches before the one at hand that led to a step: k - 1 where a
checkpoint has the ``global_step`` k, for the loss of that batch and for a validation after it. That holds
where each batch is a step. While gradients accumulate, a validation between two steps is logged with k, and
several optimizers count several steps for a batch; checkpoints have both counts, so this is known from them.

What ``trainer.validate`` and ``trainer.test`` log after ``fit`` has k too, and is of other weights with
``ckpt_path="best"``. No column says which rows these are, so they come to stand at the step after the last,
beside no checkpoint.

Source: ``_TrainingEpochLoop.on_advance_end``, which counts the batch after it has run the validation.
"""

from __future__ import annotations

from pathlib import Path

from polyak._foreign.nodes import Node
from polyak.report.logs import Columns


def steps_behind(root: Node) -> int | None:
    """How much less than a Lightning checkpoint its log counts; None if the file says nothing of it.

    Examples:
        >>> progress = {"epoch_loop.batch_progress": {"total": {"ready": 8}}}
        >>> [steps_behind(Node({"global_step": k, "loops": {"fit_loop": progress}})) for k in (8, 2)]
        [1, 0]
    """
    progress = root.at("loops.fit_loop").keys.get("epoch_loop.batch_progress")  # a key with a dot
    batches, steps = Node(progress).at("total.ready").count, root.at("global_step").count
    return None if batches is None or steps is None else int(batches == steps)


def is_lightnings(log: Path, columns: Columns) -> bool:
    """Whether a log in a run of Lightning's is of its loggers, which add the epoch to what they are given."""
    return (log.name == "metrics.csv" or "tfevents" in log.name) and "epoch" in columns
