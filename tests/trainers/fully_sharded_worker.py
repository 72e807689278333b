"""One of two processes of a trainer that cuts the model by ``fully_shard``; see ``ddp_worker``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

import polyak
from tests.distributed.models import average
from tests.shims import accelerate_shards_on_a_cpu, torchvision_without_ops
from tests.trainers.ddp_worker import HALF, STEPS, accelerated
from tests.trainers.digits import X, Y, loss, network

DECAY = 0.9
LAST: list[Callable[[], None]] = []  # what ends the processes' group, and so comes after all else


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


class Followed:
    """Whole parameters, in float64, averaged after each step of an optimizer; and what evaluations saw."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert isinstance(model, FSDPModule) or any(isinstance(m, FSDPModule) for m in model.modules())
        assert any(isinstance(p, DTensor) for p in model.parameters())
        self.model, self.seen = model, dict[str, Tensor]()
        self.average = {name: whole(p).double() for name, p in model.named_parameters()}
        optimizer.register_step_post_hook(self._follow)

    def _follow(self, *_: object) -> None:
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(whole(parameter).double(), 1 - DECAY)

    def look(self) -> None:
        """Call where the model is evaluated."""
        self.seen = {name: whole(p) for name, p in self.model.named_parameters()}


Run = tuple[polyak.EMA[Any], Followed | None]


def accelerate(folder: Path, resume: bool) -> Run:
    from accelerate import FullyShardedDataParallelPlugin

    from polyak.trainers.accelerate import Accelerator, weight_averaging

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=500
    )
    accelerator: Any = Accelerator(cpu=True, gradient_accumulation_steps=2, fsdp_plugin=plugin)
    model = network()
    unprepared = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if not resume:
        with pytest.raises(polyak.ConfigError, match="Prepare model and optimizer first"):
            weight_averaging(accelerator, model, unprepared, DECAY)
    model, optimizer = accelerator.prepare(model, unprepared)
    ema = weight_averaging(accelerator, model, optimizer, DECAY, report=folder)
    followed = Followed(model, optimizer.optimizer)
    accelerated(accelerator, model, optimizer, folder, resume)
    with ema.average_parameters(), torch.no_grad():
        model(X[:16])
        followed.look()
    LAST[:] = [accelerator.end_training]
    return ema, None if resume else followed


def transformers(folder: Path, resume: bool) -> Run:
    from tests.trainers.test_transformers import TrainerCallback, WeightAveraging, trainer

    found: list[Followed] = []

    class Look(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found.append(Followed(kwargs["model"], kwargs["optimizer"].optimizer))

        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found[0].look()

    config = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}
    saving: dict[str, Any] = {} if resume else {"save_strategy": "steps", "save_steps": HALF}
    run = trainer(
        folder, Look(), max_steps=STEPS, ddp_backend="gloo", fsdp=True, fsdp_config=config, **saving
    )
    averaging = WeightAveraging(DECAY).attach(run)
    run.train(resume_from_checkpoint=str(folder / f"checkpoint-{HALF}") if resume else None)
    run.evaluate()
    if not resume:
        dist.barrier()
        written = load_file(folder / f"checkpoint-{STEPS}" / "average" / "model.safetensors")
        for name, tensor in average(averaging.ema).items():
            assert torch.equal(written[name], tensor), name
    return averaging.ema, None if resume else found[0]


def lightning(folder: Path, resume: bool) -> Run:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.utils.data import DataLoader, TensorDataset

    from polyak.trainers.lightning import WeightAveraging

    class Digits(pl.LightningModule):
        followed: Followed

        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def configure_model(self) -> None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
            self.followed = Followed(self, optimizer)
            return optimizer

        def training_step(self, batch: Any, index: int) -> Tensor:
            return loss(self.net, 2 * self.global_step + self.global_rank)

        def validation_step(self, batch: Any, index: int) -> None:
            self.net(batch[0])
            self.followed.look()

    data = DataLoader(TensorDataset(X[:64], Y[:64]), batch_size=8)  # so 4 batches for each process
    averaging = WeightAveraging(DECAY)
    each = ModelCheckpoint(folder, filename="{step}", save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=ModelParallelStrategy(2, 1), max_epochs=STEPS // HALF,
        callbacks=[averaging, each], logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )  # fmt: skip
    module = Digits()
    path = str(folder / f"step={HALF}.ckpt") if resume else None
    trainer.fit(module, data, data, ckpt_path=path)
    return averaging.ema, None if resume else module.followed


def main(name: str, out: Path) -> None:
    torchvision_without_ops()
    train = {"accelerate": accelerate, "transformers": transformers, "lightning": lightning}[name]
    if name != "lightning":
        accelerate_shards_on_a_cpu()
    ema, followed = train(out / "run", False)
    assert followed is not None
    kept = {key: tensor for key, tensor in average(ema).items() if "running" not in key}
    errors = [float((kept[key] - value).norm() / value.norm()) for key, value in followed.average.items()]
    seen = {
        key: torch.equal(followed.seen[key], tensor) for key, tensor in kept.items() if key in followed.seen
    }
    raw = {key: torch.equal(whole(p), followed.seen[key]) for key, p in followed.model.named_parameters()}
    dist.barrier()
    resumed, _ = train(out / "run", True)
    again = {key: tensor for key, tensor in average(resumed).items() if "running" not in key}
    found = {
        "steps": [ema.step, resumed.step], "error": max(errors), "seen": seen, "raw": raw,
        "averages": [kept, again],
    }  # fmt: skip
    torch.save(found, out / f"{os.environ['RANK']}.pt")
    dist.barrier()
    for end in LAST:
        end()
    sys.stderr.flush()
    os._exit(0)  # see ddp_worker
