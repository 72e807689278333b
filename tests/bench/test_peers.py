"""Every adapter averages what it says, and its swap puts the average in and takes it out."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
from torch import nn

import polyak
from benchmarks.peers import PEERS, theirs
from polyak.bench.contender import Contender, decays, ours
from polyak.bench.measure import measure
from tests.shims import torchvision_without_ops

SWAPPING = {"torch_ema", "diffusers"}


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.Linear(40, 10)).to(dtype)


def contender(name: str, net: nn.Module, tracks: int = 1, store: str = "float32") -> Contender:
    torchvision_without_ops()
    for part in name.split("_")[:1]:
        if part not in ("swa", "loop", "polyak"):
            pytest.importorskip({"torch": "torch_ema", "ema": "ema_pytorch"}.get(part, part))
    return ours(net, decays(tracks), store) if name == "polyak" else theirs(name, net, decays(tracks), store)


@pytest.mark.filterwarnings("ignore")  # what others' imports say is theirs
@pytest.mark.parametrize("tracks", [1, 3])
@pytest.mark.parametrize("name", ["polyak", *PEERS])
def test_the_averages_are_right(name: str, tracks: int) -> None:
    net = model()
    before = copy.deepcopy(net.state_dict())
    made = contender(name, net, tracks)
    found = measure(net, {name: made}, decays(tracks), "float32", rounds=2).figures[name]
    assert found.wrong == ""
    assert found.update > 0
    assert len(made.averages()) == tracks
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["polyak", *PEERS])
def test_a_swap_puts_the_average_in_and_takes_it_out(name: str) -> None:
    net = model()
    made = contender(name, net)
    assert (made.swap is not None) is (name in SWAPPING | {"polyak"})
    if made.swap is None:
        return
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    made.update()
    raw = {key: p.detach().clone() for key, p in net.named_parameters()}
    averages = {key: average.clone() for key, average in made.averages()[0].items()}
    with made.swap():
        for key, p in net.named_parameters():
            assert torch.equal(p, averages[key])
    assert not torch.equal(raw["0.weight"], averages["0.weight"])
    assert all(torch.equal(p, raw[key]) for key, p in net.named_parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("store", ["bfloat16", "split", "compensated"])
def test_polyak_is_right_in_every_storage(store: str) -> None:
    net = model(torch.bfloat16) if store != "compensated" else model()
    found = measure(net, {"polyak": ours(net, decays(2), store)}, decays(2), store, rounds=20)
    assert found.figures["polyak"].wrong == ""


def test_an_average_that_stands_still_is_seen() -> None:
    net = model(torch.bfloat16)
    made = theirs("swa_utils", net, decays(1), "bfloat16")
    found = measure(net, {"swa_utils": made}, decays(1), "bfloat16", rounds=20).figures["swa_utils"]
    assert "moved 0.00% of the distance instead of" in found.wrong


@pytest.mark.parametrize("wrong", [0.998, 0.9995])
def test_another_decay_is_seen(wrong: float) -> None:
    net = model()
    made = ours(net, [wrong], "float32")
    found = measure(net, {"polyak": made}, decays(1), "float32", rounds=2).figures["polyak"]
    assert found.wrong == "0.weight averaged to something else"


def test_a_library_that_cannot_is_refused_with_what_it_said() -> None:
    with pytest.raises(polyak.ConfigError, match="swa_utils cannot average this model in float32: "):
        theirs("swa_utils", model(torch.bfloat16), decays(1), "float32")
    with pytest.raises(polyak.ConfigError, match=r"loop has no split averages\."):
        theirs("loop", model(), decays(1), "split")


def test_a_library_whose_import_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(types.ModuleType):
        __path__: list[str] = []  # noqa: RUF012

    def find_spec(name: str, path: object, target: object = None) -> None:
        if name == "timm.utils":
            raise RuntimeError("operator x does not\nexist")

    monkeypatch.setitem(sys.modules, "timm", Broken("timm"))
    monkeypatch.delitem(sys.modules, "timm.utils", raising=False)
    finder = types.SimpleNamespace(find_spec=find_spec)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(
        polyak.ConfigError,
        match="timm is installed but cannot be imported: RuntimeError: operator x does not e",
    ):
        theirs("timm", model(), decays(1), "float32")
