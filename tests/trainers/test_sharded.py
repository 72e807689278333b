"""Models that a trainer could not average, or not save, are refused."""

import json
from pathlib import Path

import pytest

from tests.processes import apart

for trainer in ("ignite", "accelerate", "transformers"):
    pytest.importorskip(trainer)

ANSWER = "the model is wrapped by FullyShardedDataParallel, whose shards are ranges of one flat tensor."


def test_a_sharded_model_is_refused(tmp_path: Path) -> None:
    [(status, told)] = apart(f"from tests.trainers.sharded import *; main(Path({str(tmp_path)!r}))", {})
    assert status == 0, told[-2000:]
    answers = json.loads(told.splitlines()[-1])
    assert "checkpoints would hold that of one" in answers.pop("ignite, fully_shard")
    assert list(answers) == ["plain", "ignite", "accelerate", "transformers"]
    for answer in answers.values():
        assert ANSWER in answer
        assert "torch.distributed.fsdp.fully_shard" in answer
