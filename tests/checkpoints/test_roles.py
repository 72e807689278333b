"""Whose weights are whose, where a library hides the average or puts it in the model's place."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import polyak
from polyak._files.write import write_arrays
from polyak._foreign.copies import is_optimizer
from polyak._foreign.nodes import Node
from polyak._foreign.open_any import open_weights
from polyak._foreign.parts import Recognised
from polyak._foreign.recognize import by_keys, recognise
from tests.checkpoints.found import roles, saved
from tests.shims import torchvision_without_ops
from tests.work import lines_run

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' own

Values = dict[str, dict[str, Any]]


def found_in(path: Path) -> tuple[Recognised, Values]:
    with open_weights(path) as weights:
        found = recognise(weights)
        return found, {
            one.name: {name: tensor.read() for name, tensor in one.tensors.items()} for one in found.parts
        }


def state(value: float, prefix: str = "") -> dict[str, torch.Tensor]:
    return {
        f"{prefix}a.weight": torch.full((2, 3), float(value)),
        f"{prefix}a.bias": torch.full((2,), float(value)),
    }


def has(values: dict[str, Any], value: float) -> bool:
    return set(values) == {"a.weight", "a.bias"} and all((array == value).all() for array in values.values())


def test_averages_that_share_a_storage_with_other_tensors(tmp_path: Path) -> None:
    """Slices of one storage, as recurrent layers have them, are compared by their place in it."""
    flat, model = torch.arange(6.0), torch.nn.Linear(2, 2)
    model.weight.data, model.bias.data = flat[:4].view(2, 2), flat[4:]
    ema = polyak.EMA(model, 0.9)
    path = saved(tmp_path / "a.pt", {"model": model.state_dict(), "ema": ema.state_dict()})
    found, values = found_in(path)
    assert {one.role for one in found.parts} == {"average", "raw"}
    assert values["average"]["bias"].tolist() == values["raw"]["bias"].tolist() == [4.0, 5.0]


# MMEngine.


def test_mmengine_exchanges_the_two_when_it_saves(tmp_path: Path) -> None:
    """A real run: the raw weights go up by 1 a step, the average stays behind."""
    torchvision_without_ops()
    pytest.importorskip("mmengine")
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(1, 1, bias=False)

        def forward(self, inputs: torch.Tensor, mode: str = "loss") -> Any:
            return {"loss": -self.a.weight.sum()}

    def run(folder: Path, *hooks: Any) -> Path:
        runner = Runner(
            Model(),
            str(folder),
            train_dataloader=torch.utils.data.DataLoader([{"inputs": torch.zeros(1)}] * 4),  # type: ignore
            train_cfg={"by_epoch": True, "max_epochs": 2},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 1.0}},
            custom_hooks=list(hooks),
            experiment_name=folder.name,
            log_level="ERROR",
        )
        runner.train()
        return folder / "epoch_2.pth"

    with_average = run(tmp_path / "ema", {"type": "EMAHook", "momentum": 0.5})
    found, values = found_in(with_average)
    assert (found.library, found.step, found.step_key, found.updates) == ("mmengine", 8, "meta.iter", 8)
    assert roles(found)["average"] == ("average", "state_dict")
    assert roles(found)["raw"] == ("raw", "ema_state_dict")
    assert values["average"].keys() == values["raw"].keys() == {"a.weight"}
    assert 0.9 < (values["raw"]["a.weight"] - values["average"]["a.weight"]).item() < 1.0
    found, _ = found_in(run(tmp_path / "plain"))
    assert (found.library, roles(found)["weights"]) == ("mmengine", ("unknown", "state_dict"))


# Lightning.

LIGHTNING = {
    "pytorch-lightning_version": "2.5.0",
    "global_step": 7,
    "epoch": 0,
    "optimizer_states": [],
    "lr_schedulers": [],
    "loops": {},
    "callbacks": {},
}


def test_the_average_of_a_callback_of_ones_own(tmp_path: Path) -> None:
    """A real run of a callback that is not known, which keeps its average in its state."""
    torchvision_without_ops()
    lightning = pytest.importorskip("lightning")

    class Ema(lightning.Callback):
        shadow: dict[str, torch.Tensor]

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            self.shadow = {name: tensor * 0 + 5 for name, tensor in module.state_dict().items()}

        def state_dict(self) -> dict[str, Any]:
            return {"ema_state_dict": self.shadow, "decay": 0.9}

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(3, 2)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.a(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, callbacks=[Ema()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(3, 3)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    found, values = found_in(tmp_path / "last.ckpt")
    assert (found.library, found.step, found.step_key) == ("lightning", 3, "global_step")
    assert roles(found)["average"][0] == "average"
    assert roles(found)["weights"] == ("unknown", "state_dict")  # some exchange them
    assert has(values["average"], 5)
    trainer.save_checkpoint(tmp_path / "light.ckpt", weights_only=True)
    found, _ = found_in(tmp_path / "light.ckpt")
    assert roles(found) == {"weights": ("unknown", "state_dict")}
    assert "without the states of callbacks" in found.notes[-1] + found.parts[0].notes[0]


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"ema_state_dict": state(1)}, "ema_state_dict"),
        ({"ema": {"decay": 0.9, "num_updates": 7, "collected_params": None,
                  "shadow_params": list(state(1).values())}}, "ema.shadow_params"),
        ({"callbacks": {"EMA": {"ema_weights": list(state(1).values()), "cur_step": 7}}},
         "callbacks.EMA.ema_weights"),
        ({"optimizer_states": [{"opt": {}, "ema": list(state(1).values()), "current_step": 7, "decay": 0.9,
                                "every_n_steps": 1}]}, "optimizer_states.0.ema"),
    ],
)  # fmt: skip
def test_where_callbacks_of_others_keep_the_average(more: dict[str, Any], path: str, tmp_path: Path) -> None:
    found, values = found_in(saved(tmp_path / "a.ckpt", {**LIGHTNING, "state_dict": state(0), **more}))
    assert roles(found) == {"average": ("average", path), "weights": ("unknown", "state_dict")}
    assert all((array == 1).all() for array in values["average"].values())


def test_nemos_second_file_is_the_average(tmp_path: Path) -> None:
    tree = {**LIGHTNING, "state_dict": state(1)}
    assert roles(found_in(saved(tmp_path / "m--step=7-EMA.ckpt", tree))[0]) == {
        "average": ("average", "state_dict")
    }
    assert roles(found_in(saved(tmp_path / "m--step=7.ckpt", tree))[0]) == {"raw": ("raw", "state_dict")}


def test_an_averaging_callback_without_a_state_is_not_overlooked(tmp_path: Path) -> None:
    tree = {**LIGHTNING, "state_dict": state(1), "callbacks": {"ModelEMA": {}}}
    assert roles(found_in(saved(tmp_path / "a.ckpt", tree))[0]) == {"weights": ("unknown", "state_dict")}


# Inside one state dict.


class LitEma(torch.nn.Module):
    """What latent diffusion's class of this name registers: buffers named without dots, and two counters."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        super().__init__()
        self.register_buffer("decay", torch.tensor(decay))
        self.register_buffer("num_updates", torch.tensor(7))
        for name, parameter in model.named_parameters():
            self.register_buffer(name.replace(".", ""), parameter.detach() * 0 + 1)


@pytest.mark.parametrize("ending", ["ckpt", "pt", "safetensors"])
def test_latent_diffusion(ending: str, tmp_path: Path) -> None:
    whole = torch.nn.Module()
    whole.model = torch.nn.ModuleDict({"diffusion_model": torch.nn.Sequential(torch.nn.Linear(2, 2))})
    whole.model_ema = LitEma(whole.model, 0.9999)
    whole.first_stage_model = torch.nn.Linear(3, 3)
    tree = whole.state_dict()
    path = tmp_path / f"sd.{ending}"
    if ending == "safetensors":
        save_file(tree, path)
    else:
        saved(path, {**LIGHTNING, "state_dict": tree} if ending == "ckpt" else tree)
    found, values = found_in(path)
    assert (found.updates, found.decay) == (7, polyak.Capped(0.9999))
    assert {name: role for name, (role, _) in roles(found).items()} == {"average": "average", "raw": "raw"}
    assert list(values["average"]) == list(values["raw"])
    assert not any("model_ema" in name for name in values["raw"])
    assert (values["average"]["model.diffusion_model.0.weight"] == 1).all()
    assert np.array_equal(
        values["average"]["first_stage_model.bias"], values["raw"]["first_stage_model.bias"]
    )
    assert any("not averaged" in note for note in found.parts[0].notes)


@pytest.mark.parametrize(
    ("copy", "original"),
    [
        ("teacher.", "student."),
        ("model_ema.", "model."),
        ("ema.module.", "net."),
        ("ema_model.", ""),
        ("encoder_k.", "encoder_q."),
        ("momentum_encoder.", "base_encoder."),
        ("target_encoder.", "context_encoder."),
        ("visual_encoder_m.", "visual_encoder."),
        ("key_encoder.", "query_encoder."),
        ("ema.ema_model.", "net."),
    ],
)
def test_a_child_that_is_a_copy_of_the_model_beside_it(copy: str, original: str, tmp_path: Path) -> None:
    tree = {**state(0, original), **state(1, copy), "queue": torch.ones(4)}
    found, values = found_in(saved(tmp_path / "a.pt", tree))
    assert roles(found) == {"average": ("average", copy.partition(".")[0]), "raw": ("raw", "")}
    assert set(values["raw"]) == {f"{original}a.weight", f"{original}a.bias", "queue"}
    assert set(values["average"]) == set(values["raw"])
    assert (values["average"][f"{original}a.weight"] == 1).all()


def test_two_averages_of_one_module_and_one_of_two(tmp_path: Path) -> None:
    two = {**state(0, "net."), **state(1, "ema_short."), **state(2, "ema_long.")}
    found, values = found_in(saved(tmp_path / "two.pt", two))
    assert sorted(one.role for one in found.parts) == ["average", "average", "raw"]
    assert (values["average-ema_long"]["net.a.bias"] == 2).all()
    one = {**state(0, "backbone."), **state(0, "head."), **state(1, "momentum_backbone."),
           **state(1, "momentum_head.")}  # fmt: skip
    found, values = found_in(saved(tmp_path / "one.pt", one))
    assert set(roles(found)) == {"average", "raw"}
    assert all((array == 1).all() for array in values["average"].values())


@pytest.mark.parametrize(
    "tree",
    [
        {"ema.weight": torch.ones(2), "fc.weight": torch.ones(3)},  # a layer of this name
        {**state(1, "teacher."), "student.a.weight": torch.ones(2, 3)},  # of another architecture
        {**state(1, "teacher.")},
        {"w_k.weight": torch.ones(2), "w_q.weight": torch.ones(2)},  # keys and queries of attention
        {"target_net.weight": torch.ones(2), "net.weight": torch.ones(2)},  # may be a copy, not an average
    ],
)
def test_a_name_alone_is_no_average(tree: dict[str, torch.Tensor], tmp_path: Path) -> None:
    found, values = found_in(saved(tmp_path / "a.pt", tree))
    assert roles(found) == {"weights": ("unknown", "")}
    assert set(values["weights"]) == set(tree)


# Dicts of a training script.


@pytest.mark.parametrize(
    ("tree", "library", "expected", "step"),
    [
        ({"model": state(0), "model_avg": state(1), "batch_idx_train": 8000, "sampler": None}, "icefall",
         {"average": ("average", "model_avg"), "raw": ("raw", "model")}, 8000),
        ({"student": state(0, "module."), "teacher": state(1), "epoch": 3}, "",
         {"average": ("average", "teacher"), "raw": ("raw", "student")}, None),
        ({"student": {"other": torch.ones(1)}, "teacher": state(1)}, "",
         {"student": ("unknown", "student"), "teacher": ("unknown", "teacher")}, None),
        ({"model": {**state(0, "student."), **state(1, "teacher.")}, "iteration": 5}, "",
         {"average": ("average", "model.teacher"), "raw": ("raw", "model")}, 5),
        ({"args": None, "model": state(0), "optimizer_history": [{"num_updates": 3}, {"num_updates": 9}],
          "extra_state": {"ema": state(1), "epoch": 2}}, "fairseq",
         {"average": ("average", "extra_state.ema"), "weights": ("unknown", "model")}, 9),
        ({"model": state(0), "extra_state": {"ema": state(1)}, "rng": torch.get_rng_state()}, "",
         {"average": ("average", "extra_state.ema"), "raw": ("raw", "model")}, None),
        ({"params": state(0), "params_ema": state(1)}, "",
         {"average": ("average", "params_ema"), "params": ("unknown", "params")}, None),
        ({"app": {"model": state(0), "step": 3}}, "", {"model": ("unknown", "app.model")}, None),
    ],
)  # fmt: skip
def test_what_keys_say(tree: Any, library: str, expected: Any, step: int | None, tmp_path: Path) -> None:
    found, values = found_in(saved(tmp_path / "a.pt", tree))
    assert (found.library, roles(found), found.step) == (library, expected, step)
    if "average" in values:
        assert all((array == 1).all() for array in values["average"].values())


def test_yolov5_moves_the_average_to_model(tmp_path: Path) -> None:
    """Its models are of a script's module, ``models.yolo``; stripped, the epoch is -1 and "ema" is empty."""
    yolo = types.ModuleType("models.yolo")
    yolo.Model = type("Model", (torch.nn.Linear,), {"__module__": "models.yolo"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "models", types.ModuleType("models"))
        patch.setitem(__import__("sys").modules, "models.yolo", yolo)
        net = yolo.Model(2, 2)
        training = {"epoch": 4, "model": net, "ema": net, "updates": 9, "optimizer": None}
        saved(tmp_path / "last.pt", training)
        saved(tmp_path / "best.pt", {**training, "epoch": -1, "ema": None, "updates": None})
    assert roles(found_in(tmp_path / "last.pt")[0]) == {
        "average": ("average", "ema"),
        "raw": ("raw", "model"),
    }
    assert roles(found_in(tmp_path / "best.pt")[0]) == {"average": ("average", "model")}


def test_a_dict_that_is_shared_is_looked_at_once() -> None:
    shared: Any = {"x": 1}
    for _ in range(4):
        shared = {str(i): shared for i in range(1000)}  # 10¹² paths
    assert by_keys(Node({"rest": shared})) is None


def test_many_that_could_be_averages_of_many_cost_little(tmp_path: Path) -> None:
    """100 children called averages, dotless and wrapped, of a model that all but their last tensor fits."""
    one = np.ones(1, np.float32)
    tensors = {f"{child}.{i}": one for child in ("net", "b") for i in range(2000)}
    for k in range(100):
        wrapper = "module." * (k % 5)
        tensors |= {f"ema_{k}.{wrapper}{i}": one for i in range(60)}
        tensors[f"ema_{k}.{wrapper}other"] = one
    write_arrays(tmp_path / "a.safetensors", tensors, {})
    with open_weights(tmp_path / "a.safetensors") as weights:
        weights = replace(weights, metadata={})
        assert [one.role for one in recognise(weights).parts] == ["unknown"]
        assert lines_run(lambda: recognise(weights)) < 100 * len(
            tensors
        )  # 45; each with each would be 10,000


@pytest.mark.parametrize("key", ["optim", "optimizer", "opt", "optimizers", "optimizer_state", "opt_state"])
def test_keys_of_optimizers(key: str) -> None:
    assert is_optimizer(key)
    assert not is_optimizer(f"{key}_model")


# Folders of torch.distributed.checkpoint.


def test_the_sets_in_a_training_folder(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    ema = {name: tensor.detach() + 1 for name, tensor in net.state_dict().items()}
    tree = {"model": net.state_dict(), "optim": optimizer.state_dict(), "ema": ema, "step": 7}
    dcp.save(tree, checkpoint_id=tmp_path / "nested")
    found, values = found_in(tmp_path / "nested")
    assert (found.step, found.step_key) == (7, "step")
    assert roles(found) == {
        "average": ("average", "ema"),
        "raw": ("raw", "model"),
        "optimizer": ("optimizer", "optim"),
    }
    assert np.array_equal(values["average"]["weight"], net.weight.detach() + 1)
    loose = {**net.state_dict(), "optimizer": {"state.weight.exp_avg": torch.ones(2, 2)}}  # as torchtitan
    dcp.save(loose, checkpoint_id=tmp_path / "loose")
    found, values = found_in(tmp_path / "loose")
    assert roles(found) == {"weights": ("unknown", ""), "optimizer": ("optimizer", "optimizer")}
    assert set(values["weights"]) == {"weight", "bias"}
