"""One of two processes of a trainer under DDP: trains, saves half way, and trains again from there."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import polyak
from tests.trainers.digits import loss, network

DECAY, STEPS, HALF = polyak.Warmup(0.99), 8, 4


def accelerated(accelerator: Any, model: Any, optimizer: Any, folder: Path, resume: bool) -> None:
    """The steps, each of two batches; saved half way, or from there."""
    if resume:
        accelerator.load_state(str(folder))
    for step in range(2 * HALF if resume else 0, 2 * STEPS):
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, 2 * step + dist.get_rank()))
            optimizer.step()
            optimizer.zero_grad()
        if step + 1 == 2 * HALF:
            accelerator.save_state(str(folder))


def accelerate(folder: Path, resume: bool) -> polyak.EMA:
    from polyak.trainers.accelerate import Accelerator, weight_averaging

    accelerator: Any = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    ema = weight_averaging(accelerator, model, optimizer, DECAY)
    accelerated(accelerator, model, optimizer, folder, resume)
    return ema


def ignite(folder: Path, resume: bool) -> polyak.EMA:
    import ignite.distributed as idist
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver

    from polyak.trainers.ignite import WeightAveraging

    if not resume:
        idist.initialize("gloo")
    model: Any = DistributedDataParallel(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def step(engine: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        loss(model, 2 * engine.state.iteration + dist.get_rank()).backward()
        optimizer.step()

    trainer = Engine(step)
    average = WeightAveraging(DECAY, model=model, optimizer=optimizer)
    average.attach(trainer)
    everything = {"trainer": trainer, "model": model, "optimizer": optimizer, "ema": average.ema}
    if resume:
        Checkpoint.load_objects(everything, torch.load(folder / f"checkpoint_{HALF}.pt", weights_only=True))
    else:
        saver = DiskSaver(str(folder), create_dir=True, require_empty=False)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, Checkpoint(everything, saver, n_saved=None))
    trainer.run(range(HALF), max_epochs=STEPS // HALF)
    return average.ema


def transformers(folder: Path, resume: bool) -> polyak.EMA:
    from tests.trainers.test_transformers import WeightAveraging, trainer

    saving: dict[str, Any] = {} if resume else {"save_strategy": "steps", "save_steps": HALF}
    run = trainer(folder, max_steps=STEPS, ddp_backend="gloo", **saving)
    average = WeightAveraging(DECAY).attach(run)
    run.train(resume_from_checkpoint=str(folder / f"checkpoint-{HALF}") if resume else None)
    return average.ema


def main(name: str, out: Path) -> None:
    rank = os.environ["RANK"]
    train = {"accelerate": accelerate, "ignite": ignite, "transformers": transformers}[name]
    whole = train(out / rank, False)  # each into a folder of its own, to see who writes
    if rank == "1" and (out / rank).exists():  # the state of its random numbers
        shutil.copytree(out / rank, out / "0", dirs_exist_ok=True)
    dist.barrier()
    resumed = train(out / "0", True)
    averages = [
        {key: tensor for key, tensor in ema.tracks["average"].tensors.items() if "running" not in key}
        for ema in (whole, resumed)
    ]
    torch.save({"steps": [whole.step, resumed.step], "averages": averages}, out / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # A process once aborted with "terminate called without an active exception" and no traceback: that is how
    # a C++ thread dies that wants the interpreter while it ends, and DDP keeps gloo's alive until then.
    sys.stderr.flush()
    os._exit(0)
