"""Tensors chosen by name: names with glob characters in them, and a policy for each buffer."""

import pytest
import torch
from torch import nn

from polyak import EMA, ConfigError


def bracketed() -> nn.ModuleDict:
    return nn.ModuleDict(
        {"block[0]": nn.Linear(2, 2), "block[1]": nn.BatchNorm1d(2), "a*b?": nn.Linear(2, 2)}
    )


def averaged(ema: EMA) -> set[str]:
    return set(ema.tracks["average"].tensors)


# --- names that look like globs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "left_out"),
    [
        ("block[0].bias", {"block[0].bias"}),
        ("a*b?.weight", {"a*b?.weight"}),
        ("block[[]0].*", {"block[0].weight", "block[0].bias"}),
        ("block[[][01]].bias", {"block[0].bias", "block[1].bias"}),
    ],
)
def test_a_name_is_itself_whatever_characters_it_has(pattern: str, left_out: set[str]) -> None:
    whole, without, only = (EMA(bracketed(), **k) for k in ({}, {"exclude": pattern}, {"include": pattern}))
    assert averaged(whole) - averaged(without) == left_out == averaged(only)


def test_reset_takes_such_a_name() -> None:
    model = bracketed()
    ema = EMA(model, 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update()
    ema.reset("block[0].bias")
    same = {n for n, p in model.named_parameters() if torch.equal(p, ema.tracks["average"].tensors[n])}
    assert same == {"block[0].bias"}


@pytest.mark.parametrize("argument", ["include", "exclude", "reset", "buffers"])
def test_a_glob_with_a_bracket_that_means_itself_is_told_how_to_write_it(argument: str) -> None:
    pattern = "block[1].*_mean" if argument == "buffers" else "block[0].*"
    given = {pattern: "copy"} if argument == "buffers" else pattern

    def give() -> None:
        EMA(bracketed()).reset(pattern) if argument == "reset" else EMA(bracketed(), **{argument: given})

    with pytest.raises(ConfigError, match=r"matches no .*write 'block\[\[\]") as error:
        give()
    written = str(error.value).partition("write '")[2].partition("'")[0]
    assert averaged(EMA(bracketed(), include=written))


def test_no_way_to_write_it_is_offered_for_what_is_not_there() -> None:
    with pytest.raises(ConfigError, match="matches no tensor") as error:
        EMA(bracketed(), exclude="head[0].*")
    assert "write" not in str(error.value)


# --- buffers by name ----------------------------------------------------------------------------------


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        for name in ("expert_bias", "codebook", "scale"):
            self.register_buffer(name, torch.zeros(2))
        self.register_buffer("table", torch.zeros(2), persistent=False)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))


FLOATING = ("expert_bias", "codebook", "scale", "norm.running_mean", "norm.running_var")


def policies(ema: EMA) -> dict[str, str]:
    """What became of each floating buffer: an ignored one is the model's without any update."""
    old = {name: b.clone() for name, b in ema.module.state_dict().items()}
    for buffer in ema.model.buffers():
        buffer.add_(2)
    now = ema.model.state_dict()
    ignored = {name for name, b in ema.module.state_dict().items() if torch.equal(b, now[name])}
    ema.update()
    found = {}
    for name in FLOATING:
        average = ema.module.state_dict()[name]
        moved = "copy" if torch.equal(average, now[name]) else "average"
        found[name] = "ignore" if name in ignored else moved
        if found[name] == "average":
            assert torch.equal(average, (old[name] + now[name]) / 2)
    return found


AUTO = dict(zip(FLOATING, ["copy"] * 3 + ["average"] * 2, strict=True))


@pytest.mark.parametrize(
    ("buffers", "differs"),
    [
        ({}, {}),
        ({"*": "auto"}, {}),
        ({"*expert_bias": "average"}, {"expert_bias": "average"}),
        (
            {"expert_bias": "average", "*": "copy"},
            dict.fromkeys(FLOATING, "copy") | {"expert_bias": "average"},
        ),
        (
            {"*bias": "average", "*e*": "ignore"},
            {
                "expert_bias": "average",
                "codebook": "ignore",
                "scale": "ignore",
                "norm.running_mean": "ignore",
            },
        ),
        (
            {"norm.*_mean": "copy", "norm.*": "ignore"},
            {"norm.running_mean": "copy", "norm.running_var": "ignore"},
        ),
        ({"*": "average"}, dict.fromkeys(FLOATING, "average")),
    ],
)
def test_the_first_pattern_that_matches_a_buffer_decides(buffers: dict, differs: dict) -> None:
    ema = EMA(Router(), 0.5, buffers=buffers)
    assert policies(ema) == AUTO | differs
    assert torch.equal(ema.module.seen, ema.model.seen)


def test_an_ignored_buffer_is_in_no_file_and_the_others_are() -> None:
    ema = EMA(Router(), buffers={"codebook": "ignore"})
    assert set(ema.state_dict()["copies"]) >= {"expert_bias", "scale", "seen"}
    assert "codebook" not in ema.state_dict()["copies"]


@pytest.mark.parametrize(
    ("buffers", "says"),
    [
        (
            {"*expert_bais": "average"},
            r"buffers='\*expert_bais' matches no buffer that is saved.*expert_bias",
        ),
        ({"gate.weight": "copy"}, "matches no buffer"),
        ({"table": "average"}, "matches no buffer that is saved"),
        ({"*": "copy", "scale": "average"}, "'scale'.*has no effect"),
        ({"*e*": "copy", "code*": "average"}, r"'code\*'.*has no effect"),
        ({"seen": "average"}, "averages nothing: seen is torch.int64"),
        ({"scale": "mean"}, 'must be "auto"'),
        ({0: "copy"}, 'must be "auto"'),
        ("mean", 'must be "auto"'),
        (None, 'must be "auto"'),
    ],
)
def test_a_rule_that_does_nothing_is_refused(buffers: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        EMA(Router(), buffers=buffers)


def test_what_is_excluded_has_no_policy() -> None:
    with pytest.raises(ConfigError, match="'scale' matches no buffer that is saved"):
        EMA(Router(), exclude="scale", buffers={"scale": "copy"})
