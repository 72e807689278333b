"""Worker processes that stay: to start a rank takes seconds, to run a function in it milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PATIENCE = 300  # seconds: where four ranks and other tests share two cores, importing takes a minute
TIMEOUT = 20.0  # seconds of the process groups' own timeout


class Ranks:
    """Processes that run functions of test modules as ranks of a gloo group, or of NCCL where there are GPUs.

    Each call initialises a group over the first ``world`` of them, so tests are independent of each other.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(count)]
        self._pipes = [mine for mine, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(rank, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()

    def run(
        self, world: int, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT, **kwargs: Any
    ) -> list[Any]:
        """``function(rank, *args)`` in the first ``world`` processes; what they return, pickled.

        Raises:
            AssertionError: what a rank raised, with its traceback.
        """
        with tempfile.TemporaryDirectory() as folder:
            for rank in range(world):
                store = Path(folder, "store")
                self._pipes[rank].send((store, world, timeout, function, args, kwargs))
            answers = [self._answer(rank) for rank in range(world)]
        failed = [text for good, text in answers if not good]
        assert not failed, "\n".join(failed)
        return [value for _, value in answers]

    def _answer(self, rank: int) -> tuple[bool, Any]:
        try:
            if self._pipes[rank].poll(PATIENCE):
                return self._pipes[rank].recv()
        except (EOFError, ConnectionError):
            return False, f"rank {rank} died"
        return False, f"rank {rank} gave no answer in {PATIENCE} s"

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@contextmanager
def ranks(count: int) -> Generator[Ranks]:
    """For a fixture of module scope."""
    started = Ranks(count)
    try:
        yield started
    finally:
        started.close()


def _serve(rank: int, pipe: Connection) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            store, world, timeout, function, args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=timeout),
            )
            answer = True, function(rank, *args, **kwargs)
        except BaseException:
            answer = False, f"rank {rank}:\n{traceback.format_exc()}"
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send(answer)
