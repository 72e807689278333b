"""An EMA in torch.distributed.checkpoint: what one layout saved, any other continues."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

import polyak
from polyak.cli.describe import CheckpointSummary, describe
from polyak.convert.convert import convert
from polyak.merge.average import average_checkpoints
from tests.distributed import models
from tests.distributed.ranks import Ranks
from tests.states import opened

HALF, STEPS = 7, 17  # amid every=3
OPTIONS: dict[str, Any] = {"decay": {"short": 0.5, "long": polyak.Debiased(0.9)}, "every": 3}
LAYOUTS = {**models.MODES, "one": lambda: models.Sharded(models.seeded(), {})}


def values(name: str, tensor: Tensor, step: int) -> Tensor:
    """θ of a step, of each element in the whole tensor: the same on every layout."""
    at = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
    return (torch.sin(at * 0.7 + step * 1.3 + len(name)) * step).to(tensor.dtype)


def move(model: torch.nn.Module, step: int) -> None:
    """A training step; at one of them a parameter of which every rank holds a part is not finite there."""
    inner = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    with torch.no_grad():
        for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
            shape = torch.empty(tensor.shape, dtype=tensor.dtype)
            whole = values(name, shape, step)
            if step == 6 and name == "inner.weight":
                whole.fill_(torch.nan)
            if isinstance(tensor, DTensor):
                whole = dist_like(whole, tensor)
            tensor.copy_(whole)


def dist_like(whole: Tensor, like: DTensor) -> DTensor:
    from polyak.torch._sharding.layout import as_dtensor, cut, piece_of

    piece = piece_of(like, "")
    return as_dtensor(piece, cut(piece, whole).contiguous())


def begin(layout: str, options: dict[str, Any], joined: bool) -> tuple[torch.nn.Module, polyak.EMA[Any]]:
    sharded = LAYOUTS[layout]()
    if not joined:
        head(sharded.model, False)
    return sharded.model, polyak.EMA(sharded.model, **options, **sharded.ema)


def head(model: torch.nn.Module, trained: bool) -> None:
    for name, parameter in model.named_parameters():
        if "head" in name:
            parameter.requires_grad_(trained)


def train(model: torch.nn.Module, ema: polyak.EMA[Any], first: int, last: int) -> None:
    for step in range(first + 1, last + 1):
        if step == 4:
            head(model, True)  # joins the average
        move(model, step)
        ema.update()


def quietly(verb: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return verb(*args, **kwargs)


def save(rank: int, layout: str, options: dict[str, Any], path: str) -> None:
    model, ema = begin(layout, options, joined=False)
    train(model, ema, 0, HALF)
    quietly(dcp.save, {"model": model.state_dict(), "ema": ema}, checkpoint_id=path)


def resume(rank: int, layout: str, options: dict[str, Any], path: str) -> Any:
    """Continue, and return what one process would hold: values, and whole averages."""
    model, ema = begin(layout, options, joined=True)
    move(model, HALF)
    quietly(dcp.load, {"ema": ema}, checkpoint_id=path, no_dist=layout == "one")
    train(model, ema, HALF, STEPS)
    return found(ema)


def found(ema: polyak.EMA[Any]) -> Any:
    state = opened(ema.state_dict())
    tensors = {f"copies/{name}": tensor for name, tensor in state.pop("copies").items()}
    for name, track in state["tracks"].items():
        for part in ("tensors", "lows"):
            tensors |= {
                f"{name}/{part}/{key}": models.whole(tensor) for key, tensor in track.pop(part).items()
            }
    return state, {
        name: tensor.view(torch.uint8).numpy() if tensor.dim() else tensor.item()
        for name, tensor in tensors.items()
    }


def uninterrupted(options: dict[str, Any]) -> Any:
    model, ema = begin("one", options, joined=False)
    train(model, ema, 0, STEPS)
    return found(ema)


def assert_same(one: Any, other: Any) -> None:
    (values, tensors), (expected, wanted) = one, other
    for state in (values, expected):
        state.pop("run")
    assert values == expected
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        assert (tensor == wanted[name]).all() if hasattr(tensor, "all") else tensor == wanted[name], name


SAVED = [("fully_shard", 2), ("shard=", 2), ("one", 1)]
CONTINUED = [
    ("fully_shard", 1),
    ("fully_shard", 2),
    ("fully_shard", 3),
    ("hybrid", 4),
    ("ddp", 2),
    ("shard=", 3),
    ("tensor parallel", 2),
    ("one", 1),
]


@pytest.fixture(scope="module")
def folders(four: Ranks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}
    for layout, world in SAVED:
        made[layout] = tmp_path_factory.mktemp("dcp") / "checkpoint"
        four.run(world, save, layout, OPTIONS, str(made[layout]))
    return made


@pytest.mark.parametrize(("layout", "world"), CONTINUED)
def test_what_two_ranks_saved_is_continued_bit_for_bit(
    layout: str, world: int, four: Ranks, folders: dict[str, Path]
) -> None:

    for one in four.run(world, resume, layout, OPTIONS, str(folders["fully_shard"])):
        assert_same(one, uninterrupted(OPTIONS))


@pytest.mark.parametrize("saved", ["shard=", "one"])
def test_other_layouts_are_continued_under_fully_shard(
    saved: str, four: Ranks, folders: dict[str, Path]
) -> None:
    for one in four.run(2, resume, "fully_shard", OPTIONS, str(folders[saved])):
        assert_same(one, uninterrupted(OPTIONS))


BY_NAME: dict[str, Any] = {
    "decay": {"named": polyak.ByName({"head.*": 0.7, "inner.*": polyak.Debiased(0.9), "*": 0.5}), "all": 0.9},
    "every": 3,
}


@pytest.mark.parametrize(
    ("saved", "layout", "world"), [("fully_shard", "shard=", 3), ("one", "fully_shard", 2)]
)
def test_averages_by_name_are_continued_on_any_layout(
    saved: str, layout: str, world: int, four: Ranks, tmp_path: Path
) -> None:
    """``head`` is frozen at first, so nobody averages it when its pattern is checked."""
    four.run(1 if saved == "one" else 2, save, saved, BY_NAME, str(tmp_path / "checkpoint"))
    for one in four.run(world, resume, layout, BY_NAME, str(tmp_path / "checkpoint")):
        assert_same(one, uninterrupted(BY_NAME))


@pytest.mark.parametrize("storage", ["bfloat16", "split"])
def test_every_storage_is_continued(storage: str, four: Ranks, tmp_path: Path) -> None:
    dtype: Any = torch.bfloat16 if storage == "bfloat16" else storage
    options = {**OPTIONS, "dtype": dtype, "seed": 3}
    four.run(2, save, "fully_shard", options, str(tmp_path / "checkpoint"))
    for one in four.run(3, resume, "shard=", options, str(tmp_path / "checkpoint")):
        assert_same(one, uninterrupted(options))


def test_the_tools_find_the_averages_whole(four: Ranks, folders: dict[str, Path], tmp_path: Path) -> None:
    model, ema = begin("one", OPTIONS, joined=False)
    train(model, ema, 0, HALF)
    found = describe(folders["fully_shard"])
    assert isinstance(found, CheckpointSummary)
    assert [(one.name, one.role) for one in found.parts[:3]] == [
        ("short", "average"),
        ("long", "average"),
        ("raw", "raw"),
    ]
    assert (found.library, found.step) == ("polyak", HALF)
    convert(folders["fully_shard"], tmp_path / "long.safetensors", part="long")
    average_checkpoints(
        [tmp_path / "long.safetensors", folders["shard="]], tmp_path / "mean.safetensors", part="long"
    )
    for average in (
        polyak.load(tmp_path / "long.safetensors"),
        polyak.load(tmp_path / "mean.safetensors"),
        polyak.load(folders["fully_shard"], "long"),
    ):
        ema.save(tmp_path / "one.safetensors", "long")
        wanted = polyak.load(tmp_path / "one.safetensors")
        assert average.tensors.keys() == wanted.tensors.keys()
        for name, array in wanted.tensors.items():
            assert (average.tensors[name] == array).all(), name
    header = polyak.load(folders["fully_shard"], "long").header
    assert (header.profile, header.joined) == (wanted.header.profile, wanted.header.joined)
    with pytest.raises(polyak.CheckpointError, match="holds no average 'wide', but 'short', 'long'"):
        polyak.load(folders["fully_shard"], "wide")


def load_other(rank: int, options: dict[str, Any], path: str, words: str) -> None:
    """What does not match is refused on every rank, and what was written meanwhile is not used."""
    _, ema = begin("fully_shard", options, joined=True)
    with pytest.raises((polyak.CheckpointError, CheckpointException), match=words):
        dcp.load({"ema": ema}, checkpoint_id=path)
    assert ema.step == 0
    refused_until_it_begins_again(ema)


def refused_until_it_begins_again(ema: polyak.EMA[Any]) -> None:
    for verb in (
        ema.update,
        lambda: ema.average_parameters().__enter__(),
        lambda: ema.save("never"),
        ema.copy_to,
    ):
        with pytest.raises(polyak.CheckpointError, match=r"partly of one state.*ema\.reset\(\)"):
            verb()
    ema.reset()
    ema.update()


OTHERS: dict[str, dict[str, Any]] = {
    r"every=1 \(state: 3\)": {"decay": OPTIONS["decay"]},
    r"Constant\(beta=0.7\)": {**OPTIONS, "decay": {"short": 0.7, "long": polyak.Debiased(0.9)}},
    r"track long: in the state only": {**OPTIONS, "decay": {"short": 0.5}},
    r"torch.float32 to torch.bfloat16": {**OPTIONS, "dtype": torch.bfloat16},
    r"head\.bias: in the state only": {**OPTIONS, "exclude": "head.bias"},
}


@pytest.mark.parametrize("words", OTHERS)
def test_what_does_not_match_is_refused_by_all_ranks(
    words: str, four: Ranks, folders: dict[str, Path]
) -> None:
    four.run(2, load_other, OTHERS[words], str(folders["fully_shard"]), words)


def test_a_load_that_fails_is_noticed(tmp_path: Path) -> None:
    _, ema = begin("one", OPTIONS, joined=True)
    quietly(dcp.save, {"ema": ema}, checkpoint_id=str(tmp_path), no_dist=True)
    ema.update(3)  # what was only saved was not written
    [file] = tmp_path.glob("*.distcp")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    _, again = begin("one", OPTIONS, joined=True)
    with pytest.raises(CheckpointException):
        quietly(dcp.load, {"ema": again}, checkpoint_id=str(tmp_path), no_dist=True)
    refused_until_it_begins_again(again)
    with pytest.raises(CheckpointException):
        quietly(dcp.load, {"ema": again}, checkpoint_id=str(tmp_path), no_dist=True)
    file.write_bytes(whole)
    quietly(dcp.load, {"ema": again}, checkpoint_id=str(tmp_path), no_dist=True)
    again.update()
    again.state_dict()
    again.tracks["short"].tensors["inner.weight"].zero_()
    with pytest.raises(polyak.CheckpointError):
        again.update()
    assert not again.load_state_dict(again.state_dict())
    again.update()


def save_beside(rank: int, path: str) -> Any:
    model, ema = begin("fully_shard", OPTIONS, joined=False)
    train(model, ema, 0, HALF)
    then = found(ema)
    saving = quietly(dcp.async_save, {"ema": ema}, checkpoint_id=path)
    train(model, ema, HALF, STEPS)
    saving.result()
    return then


def test_a_save_beside_the_training_holds_the_moment_of_the_call(four: Ranks, tmp_path: Path) -> None:
    then = four.run(2, save_beside, str(tmp_path))[0]
    _, ema = begin("one", OPTIONS, joined=True)
    quietly(dcp.load, {"ema": ema}, checkpoint_id=str(tmp_path), no_dist=True)
    assert_same(found(ema), then)


def exchange(rank: int, theirs: str, mine: str) -> None:
    """A state of one layout goes into another in memory, too, and so do whole tensors."""
    model, ema = begin(theirs, OPTIONS, joined=False)
    train(model, ema, 0, HALF)
    wanted = found(ema)
    _, other = begin(mine, OPTIONS, joined=True)
    assert not other.load_state_dict(ema.state_dict())
    assert_same(found(other), wanted)
    one_model, one = begin("one", OPTIONS, joined=False)
    train(one_model, one, 0, HALF)
    _, other = begin(mine, OPTIONS, joined=True)
    assert not other.load_state_dict(one.state_dict())
    assert_same(found(other), found(one))


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [("fully_shard", "shard="), ("fully_shard", "ddp"), ("tensor parallel", "fully_shard")],
)
def test_a_state_of_another_layout_is_redistributed(theirs: str, mine: str, four: Ranks) -> None:
    four.run(2, exchange, theirs, mine)


def test_each_rank_has_its_part_of_the_state(four: Ranks) -> None:
    alone = sum(four.run(1, elements, "one"))
    for layout in ("fully_shard", "shard="):
        parts = four.run(3, elements, layout)
        assert sum(parts) == alone + 2 * 2, "the running mean is whole on each"
        assert max(parts) < alone / 2


def elements(rank: int, layout: str) -> int:
    _, ema = begin(layout, {"decay": 0.9}, joined=True)
    tensors = ema.state_dict()["tracks"]["average"]["tensors"].values()
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def test_a_parameter_that_was_frozen_joins_where_it_is_not_in_the_folder(tmp_path: Path) -> None:
    model, ema = begin("one", {"decay": 0.9}, joined=False)
    train(model, ema, 0, 3)
    quietly(dcp.save, {"ema": ema}, checkpoint_id=str(tmp_path), no_dist=True)
    model, again = begin("one", {"decay": 0.9}, joined=True)
    move(model, 3)
    with pytest.raises(CheckpointException, match="head"):
        quietly(dcp.load, {"ema": again}, checkpoint_id=str(tmp_path), no_dist=True)
    partly = dcp.DefaultLoadPlanner(allow_partial_load=True)
    quietly(dcp.load, {"ema": again}, checkpoint_id=str(tmp_path), no_dist=True, planner=partly)
    track = again.tracks["average"]
    assert track.joined == {"head.weight": 3, "head.bias": 3}
    assert torch.equal(track.tensors["head.weight"], model.get_parameter("head.weight"))
    assert torch.equal(track.tensors["inner.bias"], ema.tracks["average"].tensors["inner.bias"])


@pytest.mark.parametrize(("saved", "loaded"), [("split", {"compensated": True}), (None, {"dtype": "split"})])
def test_parts_that_torch_would_cast_are_refused_even_if_not_strict(
    saved: Any, loaded: dict[str, Any]
) -> None:
    _, ema = begin("one", {"decay": 0.9, "dtype": saved}, joined=True)
    state = ema.state_dict()
    _, other = begin("one", {"decay": 0.9, **loaded}, joined=True)
    into = other.state_dict()
    for key in ("tensors", "lows") if saved else ("tensors",):
        for name, tensor in into["tracks"]["average"][key].items():
            tensor.copy_(state["tracks"]["average"][key][name])  # as DCP does
    into["polyak"] = state["polyak"]
    if saved:
        with pytest.raises(polyak.CheckpointError, match=r"stored with torch\.int8 below it and read into"):
            other.load_state_dict(into, strict=False)
    else:
        with pytest.raises(polyak.CheckpointError, match=r"torch\.float32 to torch\.bfloat16"):
            other.load_state_dict(into)
