"""Models that a trainer could not average, or not save, are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

for trainer in ("ignite", "accelerate", "transformers"):
    pytest.importorskip(trainer)

ROOT = Path(__file__).parents[2]
ANSWER = "the model is wrapped by FullyShardedDataParallel, whose shards are ranges of one flat tensor."


def test_a_sharded_model_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.trainers.sharded", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert "checkpoints would hold that of one" in answers.pop("ignite, fully_shard")
    assert list(answers) == ["plain", "ignite", "accelerate", "transformers"]
    for answer in answers.values():
        assert ANSWER in answer
        assert "torch.distributed.fsdp.fully_shard" in answer
