"""A model whose parameters are ranges of one flat tensor is refused, whatever trainer it is given to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

for trainer in ("ignite", "accelerate", "transformers"):
    pytest.importorskip(trainer)

ROOT = Path(__file__).parents[2]
ANSWERS = {
    1: "the model is wrapped by FullyShardedDataParallel, whose shards are ranges of one flat tensor.",
}


@pytest.mark.parametrize("version", ANSWERS)
def test_a_sharded_model_is_refused(version: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.trainers.sharded", str(version), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert list(answers) == ["plain", "ignite", "accelerate", "transformers"]
    for answer in answers.values():
        assert ANSWERS[version] in answer
        assert "torch.distributed.fsdp.fully_shard" in answer
