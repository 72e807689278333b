"""A worker that marks each of its pushes: python worker.py ADDRESS NAME WORKER FIRST LAST LOG.

Push i has a one at its own place and zeros elsewhere, so that the average says how often each was counted.
Acknowledged pushes are written to the log. Started again, it goes on after the last of them, with the same
ids: some of those pushes were counted already.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from polyak.server import Client


def main(address: str, name: str, worker: str, first: str, last: str, log: str) -> None:
    done = [int(line) for line in Path(log).read_text().split()] if Path(log).exists() else []
    with Client(address, os.environ["RAY_AUTH_TOKEN"], name=name, worker=worker, timeout=120) as client:
        width = client.pull().tensors["marks"].size
        with open(log, "a") as out:
            for i in range(max(done, default=int(first) - 1) + 1, int(last) + 1):
                marks = np.eye(width, dtype=np.float32)[i]
                receipt = client.push({"marks": marks}, step=1, id=i + 1)
                assert (receipt.accepted, receipt.id) == (True, i + 1)
                time.sleep(0.01)
                if i % 4 == 3 or i == int(last):
                    client.flush()
                    assert client.unacknowledged == []
                    out.write(f"{i}\n")
                    out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
