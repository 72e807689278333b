"""Files really written by other libraries, and what polyak says they are."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import polyak
from polyak._foreign.open_any import open_weights
from polyak._foreign.parts import Recognised, same_values
from polyak._foreign.recognize import recognise
from polyak.errors import CheckpointError
from tests.checkpoints.found import roles, saved
from tests.shims import torchvision_without_ops

# Other libraries' own warnings are not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore")


def found_in(path: Path) -> tuple[Recognised, dict[str, dict[str, np.ndarray[Any, Any]]]]:
    """What a file is, and the values of every part that is no optimizer's."""
    with open_weights(path) as weights:
        found = recognise(weights)
        values = {
            part.name: {name: tensor.read() for name, tensor in part.tensors.items()}
            for part in found.parts
            if part.role != "optimizer"
        }
    return found, values


def equal(read: Mapping[str, np.ndarray[Any, Any]], state: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit, and in the order of the state dict."""
    return list(read) == list(state) and all(
        read[name].dtype.itemsize == tensor.element_size()
        and read[name].tobytes() == tensor.numpy().tobytes()
        for name, tensor in state.items()
    )


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def moved(net: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1.0


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    torchvision_without_ops()
    timm = pytest.importorskip("timm")
    from timm.utils import CheckpointSaver, ModelEmaV3

    folder = tmp_path_factory.mktemp("timm")
    net = timm.create_model("test_vit", num_classes=3)
    ema = ModelEmaV3(net, decay=0.9)
    moved(net)
    ema.update(net, step=1)
    args = argparse.Namespace(model="test_vit", model_ema_decay=0.9, model_ema_warmup=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    saver = CheckpointSaver(
        net, optimizer, args=args, model_ema=ema, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    saver.save_checkpoint(epoch=4, metric=1.0)
    [path] = folder.glob("checkpoint-4*")
    return path, net, ema.module


def test_timm(timm_file: tuple[Path, Any, Any]) -> None:
    path, net, ema = timm_file
    found, values = found_in(path)
    assert found.library == "timm"
    assert roles(found) == {
        "average": ("average", "state_dict_ema"),
        "raw": ("raw", "state_dict"),
        "optimizer": ("optimizer", "optimizer"),
    }
    assert equal(values["raw"], net.state_dict())
    assert equal(values["average"], ema.state_dict())
    assert found.decay == polyak.Constant(0.9)
    assert found.step is None
    assert found.notes == ("architecture test_vit, epoch 4",)


def test_timm_without_an_average(tmp_path: Path) -> None:
    torchvision_without_ops()
    pytest.importorskip("timm")
    from timm.utils import CheckpointSaver

    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    saver = CheckpointSaver(net, optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(epoch=0)
    found, _ = found_in(tmp_path / "last.pth.tar")
    assert (found.library, found.decay) == ("timm", None)
    assert roles(found)["raw"] == ("raw", "state_dict")
    assert "average" not in roles(found)


def trained(folder: Path, callback: str | None, epochs: int = 2) -> tuple[Any, Any]:
    """A real run of Lightning's Trainer that writes a checkpoint each epoch."""
    torchvision_without_ops()  # torchmetrics imports it
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch import callbacks

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    made = {
        None: list,
        "ema": lambda: [callbacks.EMAWeightAveraging(decay=0.9)],
        "swa": lambda: [callbacks.StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)],
    }[callback]()
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(8, 2))
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callbacks.ModelCheckpoint(dirpath=folder, save_last=True), *made],
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    return trainer, module


def test_lightning_with_its_averaging_callback(tmp_path: Path) -> None:
    trained(tmp_path, "ema")
    found, values = found_in(tmp_path / "last.ckpt")
    assert found.library == "lightning"
    assert {name: roles(found)[name] for name in ("average", "raw")} == {
        "average": ("average", "state_dict"),
        "raw": ("raw", "current_model_state"),
    }
    assert (found.step, found.updates, found.decay) == (8, 8, None)
    whole = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert equal(values["average"], whole["state_dict"])
    assert equal(values["raw"], whole["current_model_state"])
    assert not np.array_equal(values["average"]["net.weight"], values["raw"]["net.weight"])
    assert found.parts[1].notes == ()


def test_lightning_after_training_has_overwritten_the_raw_model(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path / "run", "ema")
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    found, values = found_in(tmp_path / "after.ckpt")
    assert "equal to the average" in found.parts[1].notes[0]
    assert np.array_equal(values["average"]["net.weight"], values["raw"]["net.weight"])


def test_lightning_with_stochastic_weight_averaging(tmp_path: Path) -> None:
    trained(tmp_path, "swa", epochs=3)
    found, _ = found_in(tmp_path / "last.ckpt")
    assert roles(found)["average"] == ("average", "callbacks.StochasticWeightAveraging.average_model_state")
    assert roles(found)["raw"] == ("raw", "state_dict")
    assert (
        found.updates
        == torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]["StochasticWeightAveraging"][
            "n_averaged"
        ]
    )


def test_plain_lightning(tmp_path: Path) -> None:
    _, module = trained(tmp_path, None)
    found, values = found_in(tmp_path / "last.ckpt")
    assert (found.library, found.step) == ("lightning", 8)
    assert roles(found)["raw"] == ("raw", "state_dict")
    assert equal(values["raw"], module.state_dict())


@pytest.fixture(scope="module")
def yolo() -> Any:
    torchvision_without_ops()
    os.environ |= {"YOLO_OFFLINE": "True", "YOLO_AUTOINSTALL": "False", "MPLBACKEND": "agg"}
    pytest.importorskip("ultralytics")
    from ultralytics import YOLO

    return YOLO("yolov8n.yaml").model


def yolo_checkpoint(path: Path, net: Any) -> Any:
    """The dict that ``BaseTrainer.save_model`` writes, less what it says of the machine."""
    from ultralytics.utils.torch_utils import ModelEMA

    ema = ModelEMA(net)
    ema.update(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    kept = deepcopy(ema.ema).half()
    tree = {
        "epoch": 3,
        "best_fitness": 0.1,
        "model": None,
        "ema": kept,
        "updates": ema.updates,
        "optimizer": optimizer.state_dict(),
        "train_args": {},
        "version": "8.4.190",
    }
    torch.save(tree, path)
    return kept


def test_ultralytics_while_training(yolo: Any, tmp_path: Path) -> None:
    kept = yolo_checkpoint(tmp_path / "last.pt", yolo)
    found, values = found_in(tmp_path / "last.pt")
    assert (found.library, found.updates, found.decay) == ("ultralytics", 1, None)
    assert roles(found)["average"] == ("average", "ema")
    assert equal(values["average"], kept.state_dict())
    assert values["average"]["model.0.conv.weight"].dtype == np.float16


def test_ultralytics_after_training(yolo: Any, tmp_path: Path) -> None:
    from ultralytics.utils.torch_utils import strip_optimizer

    kept = yolo_checkpoint(tmp_path / "best.pt", yolo)
    strip_optimizer(tmp_path / "best.pt")
    found, values = found_in(tmp_path / "best.pt")
    assert roles(found) == {"average": ("average", "model")}
    assert "strip_optimizer" in found.parts[0].notes[0]
    assert equal(values["average"], kept.state_dict())


def test_ultralytics_with_both_models(yolo: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pt", {"epoch": 3, "model": yolo, "ema": yolo, "updates": 9})
    found, _ = found_in(path)
    assert roles(found) == {"average": ("average", "ema"), "raw": ("raw", "model")}


def unet() -> tuple[Any, Any]:
    torchvision_without_ops()
    pytest.importorskip("diffusers")
    from diffusers import UNet2DModel

    net = UNet2DModel(
        sample_size=8,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    return net, UNet2DModel


@pytest.mark.parametrize("warmup", [True, False])
def test_diffusers_saves_its_average_as_a_model(warmup: bool, tmp_path: Path) -> None:
    net, kind = unet()
    from diffusers.training_utils import EMAModel

    ema = EMAModel(
        net.parameters(),
        decay=0.99,
        update_after_step=1,
        use_ema_warmup=warmup,
        inv_gamma=2.0,
        power=0.75,
        model_cls=kind,
        model_config=net.config,
    )
    betas = []
    for _ in range(5):
        moved(net)
        ema.step(net.parameters())
        betas.append(ema.cur_decay_value)
    ema.save_pretrained(tmp_path / "unet_ema")
    found, values = found_in(tmp_path / "unet_ema")
    assert (found.library, found.step) == ("diffusers", 5)
    assert roles(found) == {"average": ("average", "")}
    named = dict(zip((name for name, _ in net.named_parameters()), ema.shadow_params, strict=True))
    assert all(np.array_equal(values["average"][name], tensor) for name, tensor in named.items())
    if warmup:
        assert found.decay is not None
        assert [found.decay(t) for t in range(1, 6)] == pytest.approx(betas)
    else:
        assert found.decay is None
    assert "decay=0.99" in found.notes[1]


def test_diffusers_state_and_plain_model(tmp_path: Path) -> None:
    net, _ = unet()
    from diffusers.training_utils import EMAModel

    ema = EMAModel(net.parameters(), decay=0.99)
    ema.step(net.parameters())
    found, values = found_in(saved(tmp_path / "ema.bin", ema.state_dict()))
    assert (found.library, found.step) == ("diffusers", 1)
    assert "without names" in found.parts[0].notes[0]
    assert list(values["average"]) == [str(i) for i in range(len(ema.shadow_params))]
    net.save_pretrained(tmp_path / "unet")
    found, _ = found_in(tmp_path / "unet")
    assert (found.library, roles(found)) == ("diffusers", {"weights": ("unknown", "")})


def test_an_optimizer_holds_no_weights(tmp_path: Path) -> None:
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    found, _ = found_in(saved(tmp_path / "optimizer.bin", optimizer.state_dict()))
    assert found.library == "torch.optim"
    [part] = found.parts
    assert (part.role, len(part.tensors)) == ("optimizer", 12)  # step and two moments of four parameters


def test_ema_pytorch(tmp_path: Path) -> None:
    module = pytest.importorskip("ema_pytorch")
    net = model()
    ema = module.EMA(net, beta=0.9, update_after_step=0, update_every=1)
    for _ in range(3):
        moved(net)
        ema.update()
    found, values = found_in(saved(tmp_path / "ema.pt", ema.state_dict()))
    assert (found.library, found.updates, found.step) == ("ema-pytorch", 3, None)
    assert equal(values["raw"], net.state_dict())
    assert equal(values["average"], ema.ema_model.state_dict())
    inside = {"step": 12, "model": net.state_dict(), "ema": ema.state_dict()}
    found, values = found_in(saved(tmp_path / "trainer.pt", inside))
    assert (found.library, found.updates, found.step) == ("ema-pytorch", 3, 12)
    assert equal(values["average"], ema.ema_model.state_dict())
    assert roles(found) == {
        "average": ("average", "ema"),
        "raw-ema": ("raw", "ema"),
        "raw-model": ("raw", "model"),
    }


def test_post_hoc_ema(tmp_path: Path) -> None:
    module = pytest.importorskip("ema_pytorch")
    net = model()
    ema = module.PostHocEMA(
        net, sigma_rels=(0.05, 0.28), checkpoint_every_num_steps=2, checkpoint_folder=str(tmp_path)
    )
    for _ in range(4):
        moved(net)
        ema.update()
    found, values = found_in(tmp_path / "1.4.pt")
    assert (found.library, found.updates) == ("ema-pytorch", None)
    assert "the file's name has it" in found.notes[1]
    assert values["average"]["0.weight"].dtype == np.float16
    found, values = found_in(saved(tmp_path / "whole.pt", ema.state_dict()))
    assert found.updates == 4
    assert [part.name for part in found.parts] == ["average-0", "average-1"]
    assert equal(values["average-1"], ema.ema_models[1].ema_model.state_dict())


@pytest.mark.parametrize("counted", [True, False])
def test_torch_ema(counted: bool, tmp_path: Path) -> None:
    module = pytest.importorskip("torch_ema")
    net = model()
    ema = module.ExponentialMovingAverage(net.parameters(), decay=0.99, use_num_updates=counted)
    moved(net)
    ema.update()
    ema.store()
    found, values = found_in(saved(tmp_path / "ema.pt", ema.state_dict()))
    assert found.library == "torch_ema"
    assert found.updates == (1 if counted else None)
    assert found.decay == (polyak.Capped(0.99) if counted else polyak.Constant(0.99))
    assert roles(found) == {"average": ("average", "shadow_params"), "raw": ("raw", "collected_params")}
    assert all("without names" in part.notes[0] for part in found.parts)
    assert np.array_equal(values["average"]["0"], ema.shadow_params[0])
    assert np.array_equal(values["raw"]["3"], list(net.parameters())[3].detach())


def test_swa_utils(tmp_path: Path) -> None:
    net = model()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    for _ in range(2):
        moved(net)
        averaged.update_parameters(net)
    found, values = found_in(saved(tmp_path / "swa.pt", averaged.state_dict()))
    assert (found.library, found.updates, found.decay) == ("swa_utils", 2, None)
    assert equal(values["average"], averaged.module.state_dict())


def edm2_snapshot(path: Path, net: torch.nn.Module) -> None:
    """A pickle of the structure EDM2 writes; built here, for EDM2 itself cannot be installed.

    There ``persistence.persistent_class`` gives objects a ``__reduce__`` that calls
    ``torch_utils.persistence._reconstruct_persistent_obj`` with the source of their module, and a snapshot
    is a ``dnnlib.util.EasyDict`` of one such network and what it was trained with.
    """
    import sys
    import types

    persistence = types.ModuleType("torch_utils.persistence")
    util = types.ModuleType("dnnlib.util")
    exec(
        "def _reconstruct_persistent_obj(meta): raise AssertionError('this must never run')",
        vars(persistence),
    )
    exec("class EasyDict(dict):\n    pass", vars(util))
    util.EasyDict.__module__ = "dnnlib.util"
    persistence._reconstruct_persistent_obj.__module__ = "torch_utils.persistence"

    class Persistent:
        def __init__(self, name: str, state: dict[str, Any]) -> None:
            self.meta = {
                "type": "class",
                "version": 6,
                "module_src": "raise AssertionError('this must never run')",
                "class_name": name,
                "state": state,
            }

        def __reduce__(self) -> tuple[Any, ...]:
            return persistence._reconstruct_persistent_obj, (self.meta,), None

    names = {"torch_utils.persistence": persistence, "dnnlib.util": util}
    names |= {name.split(".")[0]: types.ModuleType(name.split(".")[0]) for name in names}
    sys.modules |= names
    try:
        inner = Persistent("UNet", {**net.__dict__, "training": False})
        outer = {**torch.nn.Module().__dict__, "_modules": {"unet": inner}, "sigma_data": 0.5}
        ema = Persistent("Precond", outer)
        data = util.EasyDict(encoder=None, dataset_kwargs=util.EasyDict(path="images.zip"), loss_fn=None)
        data["ema"] = ema
        path.write_bytes(pickle.dumps(data))
    finally:
        for name in names:
            del sys.modules[name]


def test_edm2(tmp_path: Path) -> None:
    net = torch.nn.Sequential(model(), torch.nn.Linear(64, 64)).half()  # tensors of a few bytes, and of many
    path = tmp_path / "network-snapshot-0001048-0.100.pkl"
    edm2_snapshot(path, net)
    found, values = found_in(path)
    assert found.library == "edm2"
    assert roles(found) == {"average": ("average", "ema")}
    assert equal(values["average"], {f"unet.{name}": tensor for name, tensor in net.state_dict().items()})
    assert found.decay == polyak.Power(sigma_rel=0.1)
    assert "1,048 thousand images" in found.notes[1]


def paddle_file(path: Path, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """As paddle.save writes a state dict; a file of the real library is tested with the format itself."""
    values = {"conv.weight": np.random.default_rng(seed).random((3, 2), np.float32)}
    path.write_bytes(pickle.dumps({**values, "StructuredToParameterName@@": {"conv.weight": "p_0"}}, 4))
    return values


def test_paddle_detection_exchanges_the_pair(tmp_path: Path) -> None:
    average = paddle_file(tmp_path / "model_final.pdparams", 1)
    raw = paddle_file(tmp_path / "model_final.pdema", 2)
    found, values = found_in(tmp_path / "model_final.pdparams")
    assert (found.library, roles(found)) == ("PaddleDetection", {"average": ("average", "")})
    assert np.array_equal(values["average"]["conv.weight"], average["conv.weight"])
    assert "the raw model is model_final.pdema" in found.notes[0]
    found, values = found_in(tmp_path / "model_final.pdema")
    assert (found.library, roles(found)) == ("PaddleDetection", {"raw": ("raw", "")})
    assert np.array_equal(values["raw"]["conv.weight"], raw["conv.weight"])


def test_a_pdparams_alone_says_nothing(tmp_path: Path) -> None:
    paddle_file(tmp_path / "model_final.pdparams", 1)
    found, _ = found_in(tmp_path / "model_final.pdparams")
    assert (found.library, roles(found)) == ("paddle", {"weights": ("unknown", "")})
    assert "nothing says" in found.notes[0]


@pytest.mark.parametrize("whole", [True, False])
def test_plain_weights(whole: bool, tmp_path: Path) -> None:
    net = model()
    found, values = found_in(saved(tmp_path / "net.pt", net if whole else net.state_dict()))
    assert (found.library, roles(found)) == ("", {"weights": ("unknown", "")})
    assert found.notes == ("plain weights: nothing says whether they are averaged",)
    assert equal(values["weights"], net.state_dict())


def test_a_whole_module_gives_what_its_state_dict_gives(tmp_path: Path) -> None:
    net = torch.nn.Sequential(model(), torch.nn.Module(), torch.nn.LSTM(2, 3))
    net[1].register_buffer("kept", torch.arange(3))
    net[1].register_buffer("hidden", torch.ones(2), persistent=False)
    net[1].register_parameter("none", None)
    found, values = found_in(saved(tmp_path / "net.pt", {"model": net, "epoch": 1}))
    assert roles(found) == {"model": ("unknown", "model")}
    assert equal(values["model"], net.state_dict())


def test_a_script_of_ones_own_is_read_by_its_keys(tmp_path: Path) -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tree = {
        "model": net.state_dict(),
        "model_ema": net.state_dict(),
        "opt": optimizer.state_dict(),
        "step": 5,
    }
    found, _ = found_in(saved(tmp_path / "own.pt", tree))
    assert (found.library, found.step) == ("", 5)
    assert roles(found) == {
        "average": ("average", "model_ema"),
        "raw": ("raw", "model"),
        "optimizer": ("optimizer", "opt"),
    }
    assert "by its key 'model_ema' alone" in found.parts[0].notes[0]


@pytest.mark.parametrize("key", ["schema", "theme", "semantic", "cinema"])
def test_a_key_that_only_contains_the_letters_is_no_average(key: str, tmp_path: Path) -> None:
    found, _ = found_in(saved(tmp_path / "own.pt", {key: model().state_dict(), "epoch": 1}))
    assert roles(found) == {key: ("unknown", key)}


@pytest.mark.parametrize(
    "key", ["ema", "model_ema", "ema_state_dict", "G_ema", "swa_model", "emaModel", "averaged"]
)
def test_keys_of_averages(key: str, tmp_path: Path) -> None:
    found, _ = found_in(saved(tmp_path / "own.pt", {key: model().state_dict(), "epoch": 1}))
    assert roles(found) == {"average": ("average", key)}


def test_a_key_cannot_lead_out_of_a_folder(tmp_path: Path) -> None:
    found, _ = found_in(saved(tmp_path / "own.pt", {"../../up": model().state_dict(), "epoch": 1}))
    assert list(roles(found)) == ["-up"]


def test_prefixes_of_wrappers_are_left_out(tmp_path: Path) -> None:
    net = model()
    state = {f"module._orig_mod.{name}": tensor for name, tensor in net.state_dict().items()}
    found, values = found_in(saved(tmp_path / "net.pt", state))
    assert equal(values["weights"], net.state_dict())
    assert len(found.parts[0].notes) == 2


def test_own_files(tmp_path: Path) -> None:
    ema = polyak.EMA(model(), decay=0.9)
    ema.update()
    ema.save(tmp_path / "average.safetensors")
    ema.save(tmp_path / "raw.safetensors", track="raw")
    found, _ = found_in(tmp_path / "average.safetensors")
    assert (found.library, found.step, found.decay) == ("polyak", 1, polyak.Constant(0.9))
    assert roles(found) == {"average": ("average", "")}
    assert roles(found_in(tmp_path / "raw.safetensors")[0]) == {"raw": ("raw", "")}


def test_a_header_that_another_program_kept_is_not_believed(tmp_path: Path) -> None:
    ema = polyak.EMA(model(), decay=0.9)
    ema.save(tmp_path / "average.safetensors")
    with open_weights(tmp_path / "average.safetensors") as weights:
        kept = {key: value for key, value in weights.metadata.items() if key == "polyak"}
    save_file({"x": np.ones(2, np.float32)}, tmp_path / "edited.safetensors", kept)
    found, _ = found_in(tmp_path / "edited.safetensors")
    assert (found.library, roles(found)) == ("", {"weights": ("unknown", "")})
    assert "another program has rewritten it" in found.notes[0]


def test_a_module_that_holds_itself_is_refused(tmp_path: Path) -> None:
    net = torch.nn.Module()
    net._modules["again"] = net
    with pytest.raises(CheckpointError):
        found_in(saved(tmp_path / "endless.pt", net))


def test_a_module_that_spells_out_more_than_memory_holds_is_refused(tmp_path: Path) -> None:
    net: torch.nn.Module = torch.nn.Linear(1, 1)
    for _ in range(60):  # 2⁶⁰ names in a file of a few kilobytes
        outer = torch.nn.Module()
        outer._modules |= {"a": net, "b": net}
        net = outer
    with pytest.raises(CheckpointError):
        found_in(saved(tmp_path / "bomb.pt", net))


def test_same_values(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3), "b": np.arange(5)}, tmp_path / "one.safetensors")
    save_file({"a": np.zeros(3), "b": np.array([0, 1, 2, 3, 5])}, tmp_path / "two.safetensors")
    with open_weights(tmp_path / "one.safetensors") as one, open_weights(tmp_path / "two.safetensors") as two:
        assert same_values(one.tensors, one.tensors)
        assert not same_values(one.tensors, two.tensors)
        assert not same_values(one.tensors, {"a": one.tensors["a"]})
