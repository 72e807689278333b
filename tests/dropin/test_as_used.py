"""Every drop-in, its model wrapped or copied as may be, gives what its original gives in a plain run."""

import copy
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.dropin.side import close, network
from tests.shims import torchvision_without_ops
from tests.tensors import COPIES

torchvision_without_ops()
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@dataclass(frozen=True)
class DropIn:
    """make: an average, given the library and a model.  update: it.  attribute: its module, if it has one."""

    ours: str
    theirs: str
    make: Callable[[Any, nn.Module], Any]
    update: Callable[[Any, nn.Module], object]
    attribute: str = ""
    holds_model: bool = False

    def library(self, ours: bool) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(f"polyak.dropin.{self.ours}") if ours else self.original()

    def original(self) -> Any:
        return pytest.importorskip(self.theirs)

    def values(self, average: Any) -> list[Tensor]:
        if not self.attribute:
            return [t.detach().clone() for t in average.shadow_params]
        state = getattr(average, self.attribute).state_dict()
        return [t.detach().clone() for name, t in state.items() if "num_batches_tracked" not in name]

    def live(self, average: Any, model: nn.Module) -> nn.Module:
        return average.model if self.holds_model else model


def ema_pytorch(library: Any, model: nn.Module, **options: Any) -> Any:
    return library.EMA(model, beta=0.9, update_after_step=0, update_every=1, **options)


TIMM = "timm.utils"
SWA = "torch.optim.swa_utils"
DROP_INS = {
    "ModelEma": DropIn("timm", TIMM, lambda of, m: of.ModelEma(m, 0.9), lambda e, m: e.update(m), "ema"),
    "ModelEmaV2": DropIn(
        "timm", TIMM, lambda of, m: of.ModelEmaV2(m, 0.9), lambda e, m: e.update(m), "module"
    ),
    "ModelEmaV3": DropIn(
        "timm", TIMM, lambda of, m: of.ModelEmaV3(m, 0.9), lambda e, m: e.update(m), "module"
    ),
    "torch_ema": DropIn(
        "torch_ema",
        "torch_ema",
        lambda of, m: of.ExponentialMovingAverage(m.parameters(), 0.9),
        lambda e, m: e.update(m.parameters()),
    ),
    "AveragedModel": DropIn(
        "swa_utils", SWA, lambda of, m: of.AveragedModel(m), lambda e, m: e.update_parameters(m), "module"
    ),
    "AveragedModel, buffers": DropIn(
        "swa_utils",
        SWA,
        lambda of, m: of.AveragedModel(m, multi_avg_fn=of.get_ema_multi_avg_fn(0.9), use_buffers=True),
        lambda e, m: e.update_parameters(m),
        "module",
    ),
    "ema_pytorch": DropIn(
        "ema_pytorch", "ema_pytorch", ema_pytorch, lambda e, m: e.update(), "ema_model", holds_model=True
    ),
    "ema_pytorch, average only": DropIn(
        "ema_pytorch",
        "ema_pytorch",
        lambda of, m: ema_pytorch(of, m, include_online_model=False),
        lambda e, m: e.update(),
        "ema_model",
        holds_model=True,
    ),
    "KarrasEMA": DropIn(
        "ema_pytorch",
        "ema_pytorch",
        lambda of, m: of.KarrasEMA(m, sigma_rel=0.1, update_every=1),
        lambda e, m: e.update(),
        "ema_model",
        holds_model=True,
    ),
    "ModelEMA": DropIn(
        "ultralytics",
        "ultralytics.utils.torch_utils",
        lambda of, m: of.ModelEMA(m, 0.9, 5),
        lambda e, m: e.update(m),
        "ema",
    ),
    "EMAModel": DropIn(
        "diffusers",
        "diffusers.training_utils",
        lambda of, m: of.EMAModel(m.parameters(), 0.9),
        lambda e, m: e.step(m.parameters()),
    ),
    "ExponentialMovingAverage": DropIn(
        "mmengine",
        "mmengine.model",
        lambda of, m: of.ExponentialMovingAverage(m, 0.1),
        lambda e, m: e.update_parameters(m),
        "module",
    ),
    "MomentumAnnealingEMA": DropIn(
        "mmengine",
        "mmengine.model",
        lambda of, m: of.MomentumAnnealingEMA(m, 0.1, gamma=3, update_buffers=True),
        lambda e, m: e.update_parameters(m),
        "module",
    ),
}
WITH_MODULE = [name for name, drop_in in DROP_INS.items() if drop_in.attribute]
NOT_PICKLED = "torch_ema"  # holds weak references, as its original does


@torch.no_grad()
def move(model: nn.Module, step: int) -> None:
    """What a training step changes."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.add_(torch.linspace(0.5, step, tensor.numel(), dtype=tensor.dtype).view_as(tensor))


def steps(drop_in: DropIn, average: Any, model: nn.Module, live: nn.Module, first: int, last: int) -> None:
    for step in range(first, last + 1):
        move(model, step)
        drop_in.update(average, live)


def in_a_plain_run(drop_in: DropIn) -> list[Tensor]:
    model = network()
    average = drop_in.make(drop_in.library(ours=False), model)
    steps(drop_in, average, model, model, 1, 4)
    return drop_in.values(average)


def same(mine: list[Tensor], theirs: list[Tensor]) -> None:
    for x, y in zip(mine, theirs, strict=True):
        close(x, y)


def with_a_scripted_part(model: nn.Sequential) -> nn.Module:
    model[0] = torch.jit.script(model[0])
    return model


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "torch.jit.script": torch.jit.script,
    "a scripted part": with_a_scripted_part,
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("wrapped", ["both", "the averaged", "the followed"])
@pytest.mark.parametrize("name", DROP_INS)
def test_a_wrapper_changes_nothing(name: str, wrapped: str, wrapper: str) -> None:
    drop_in, model = DROP_INS[name], network()
    around = WRAPPERS[wrapper](model)
    average = drop_in.make(drop_in.library(ours=True), model if wrapped == "the followed" else around)
    steps(drop_in, average, model, model if wrapped == "the averaged" else around, 1, 4)
    same(drop_in.values(average), in_a_plain_run(drop_in))


@pytest.mark.parametrize("wrapper", ["none", "torch.jit.script"])
@pytest.mark.parametrize("name", DROP_INS)
def test_parameters_moved_to_other_memory_are_followed(name: str, wrapper: str) -> None:
    drop_in, model = DROP_INS[name], network()
    live = WRAPPERS[wrapper](model) if wrapper in WRAPPERS else model
    average = drop_in.make(drop_in.library(ours=True), live)
    steps(drop_in, average, model, live, 1, 2)
    for parameter in live.parameters():
        dead, parameter.data = parameter.data, parameter.data.clone()
        dead.fill_(float("nan"))
    steps(drop_in, average, model, live, 3, 4)
    same(drop_in.values(average), in_a_plain_run(drop_in))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", DROP_INS)
def test_a_copy_in_mid_run_goes_on(name: str, how: str) -> None:
    drop_in, model = DROP_INS[name], network()
    average = drop_in.make(drop_in.library(ours=True), model)
    steps(drop_in, average, model, model, 1, 2)
    if name == NOT_PICKLED and how != "deepcopy":
        with pytest.raises(TypeError, match="weakref"):
            COPIES[how](average)
        return
    twin, before = COPIES[how](average), drop_in.values(average)
    live = drop_in.live(twin, model)
    steps(drop_in, twin, live, live, 3, 4)
    same(drop_in.values(twin), in_a_plain_run(drop_in))
    same(drop_in.values(average), before)


@pytest.mark.parametrize("name", WITH_MODULE)
def test_a_module_put_in_the_place_of_its_own_is_followed(name: str) -> None:
    drop_in, model = DROP_INS[name], network()
    average = drop_in.make(drop_in.library(ours=True), model)
    steps(drop_in, average, model, model, 1, 2)
    compiled = torch.compile(copy.deepcopy(getattr(average, drop_in.attribute)), backend="eager")
    setattr(average, drop_in.attribute, compiled)
    steps(drop_in, average, model, model, 3, 4)
    same(drop_in.values(average), in_a_plain_run(drop_in))


@pytest.mark.parametrize("wrapper", ["DataParallel", "torch.compile"])
@pytest.mark.parametrize("theirs_first", [True, False])
@pytest.mark.parametrize("name", [name for name in DROP_INS if name not in ("ModelEma", "ModelEMA")])
def test_states_go_both_ways_under_a_wrapper(name: str, theirs_first: bool, wrapper: str) -> None:
    drop_in, model = DROP_INS[name], network()
    around = WRAPPERS[wrapper](model)
    first = drop_in.make(drop_in.library(ours=not theirs_first), around)
    steps(drop_in, first, model, around, 1, 2)
    second = drop_in.make(drop_in.library(ours=theirs_first), around)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert list(first.state_dict()) == list(second.state_dict())
    same(drop_in.values(second), drop_in.values(first))


@pytest.mark.parametrize("name", ["ModelEma", "ModelEmaV2", "ModelEmaV3", "ModelEMA"])
def test_an_average_made_under_inference_mode_can_be_updated(name: str) -> None:
    drop_in, model = DROP_INS[name], network()
    with torch.inference_mode():
        average = drop_in.make(drop_in.library(ours=True), model)
    steps(drop_in, average, model, model, 1, 4)
    same(drop_in.values(average), in_a_plain_run(drop_in))


@pytest.mark.parametrize("name", ["torch_ema", "EMAModel"])
def test_a_loss_computed_before_still_goes_backward(name: str) -> None:
    drop_in = DROP_INS[name]
    for ours in (False, True):
        model = network()
        average = drop_in.make(drop_in.library(ours), model)
        loss = model(torch.ones(2, 3, 8, 8)).sum()
        average.store(list(model.parameters()))
        average.copy_to(list(model.parameters()))
        average.restore(list(model.parameters()))
        loss.backward()
