"""Rules for names and layouts, and their way back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.convert.rename_rules import NameMap, Rule, name_map
from polyak.errors import CheckpointError, ConfigError


class Shaped(NamedTuple):
    """As much of a tensor as a map looks at."""

    shape: tuple[int, ...]


def tensors(**shapes: tuple[int, ...]) -> Any:
    return {name.replace("__", "."): Shaped(shape) for name, shape in shapes.items()}


def rules(folder: Path, *layers: dict[str, Any]) -> NameMap:
    path = folder / "map.json"
    path.write_text(json.dumps({"layers": list(layers)}))
    return name_map(str(path))


def test_torch_to_paddle_and_back() -> None:
    names = tensors(
        conv__weight=(8, 3, 3, 3), fc__weight=(4, 8), fc__bias=(4,), scale=(), weight=(4, 8), bn__weight=(8,),
        bn__running_mean=(8,), bn__running_var=(8,), bn__num_batches_tracked=(),
        token_embedding__weight=(9, 8), wte__weight=(9, 8),
    )  # fmt: skip
    there = name_map("torch-to-paddle").apply(names)
    assert there.places == {
        "conv.weight": ("conv.weight", False),
        "fc.weight": ("fc.weight", True),
        "fc.bias": ("fc.bias", False),
        "scale": ("scale", False),
        "weight": ("weight", True),
        "bn.weight": ("bn.weight", False),
        "bn._mean": ("bn.running_mean", False),
        "bn._variance": ("bn.running_var", False),
        "token_embedding.weight": ("token_embedding.weight", False),
        "wte.weight": ("wte.weight", False),
    }
    assert there.unmatched == ("scale",)
    assert there.dropped == ("bn.num_batches_tracked",)
    moved = {new: names[old] for new, (old, _) in there.places.items()}
    back = name_map("paddle-to-torch").apply(moved)
    assert {new: turned for new, (_, turned) in back.places.items()} == dict(there.places.values())


def test_the_first_rule_that_fits_is_taken(tmp_path: Path) -> None:
    made = rules(tmp_path, {"from": r"a\.(.*)", "to": r"x.\1"}, {"from": "(.*)", "to": r"y.\1"})
    assert set(made.apply(tensors(a__b=(1,), c=(1,))).places) == {"x.b", "y.c"}


def test_a_rule_must_fit_the_whole_name(tmp_path: Path) -> None:
    found = rules(tmp_path, {"from": "a", "to": "b"}).apply(tensors(a__b=(1,), ba=(1,)))
    assert set(found.places) == {"a.b", "ba"}
    assert found.unmatched == ("a.b", "ba")


@pytest.mark.parametrize("shape", [(), (3,), (3, 4, 5)])
def test_only_matrices_change_their_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    found = rules(tmp_path, {"from": "(.*)", "to": r"\1", "transpose": True}).apply({"a": Shaped(shape)})  # pyright: ignore
    assert found.places == {"a": ("a", False)}


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    made = rules(tmp_path, {"from": r"(?:a|b)\.w", "to": "w"})
    with pytest.raises(CheckpointError, match=r"a\.w and b\.w would both be named w \(1 such names\)"):
        made.apply(tensors(a__w=(1,), b__w=(1,), c=(1,)))
    with pytest.raises(CheckpointError, match=r"a\.w and w would both be named w"):  # one that no rule fits
        made.apply(tensors(a__w=(1,), w=(1,)))


@given(st.lists(st.sampled_from(["block", "norm.1", "a(b", "x\\y", "q", "0"]), min_size=1, max_size=4))
def test_the_inverse_leads_back(parts: list[str]) -> None:
    name = ".".join(parts)
    rule = Rule(r"(.*)\.tail\.([a-z]+)\(1\)", r"new.\2.head.\1", transpose=True)
    back = rule.inverse()
    assert back is not None
    assert back.transpose
    old = f"{name}.tail.abc(1)"
    [new] = NameMap((rule,)).apply({old: Shaped((1, 2))}).places  # pyright: ignore
    assert new == f"new.abc.head.{name}"
    assert NameMap((back,)).apply({new: Shaped((2, 1))}).places == {old: (new, True)}  # pyright: ignore


@pytest.mark.parametrize(
    ("pattern", "to"),
    [
        (r".*\.w", "w"),
        (r"(a)(b)", r"\1"),
        (r"(a)", r"\1\1"),
        (r"((a)b)", r"\1\2"),
        (r"(?:a|b)\.w", "w"),
        (r"a\d", "b"),
        (r"[ab]", "c"),
        (r"a|b", "c"),
        (r"a", r"b\\"),
        (r"(a)?", r"\1"),
    ],
)
def test_what_cannot_be_turned_round_is_refused(pattern: str, to: str) -> None:
    with pytest.raises(ConfigError, match="cannot be inverted"):
        Rule(pattern, to).inverse()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"layers": 3}',
        '{"layers": [{"from": "a"}]}',
        '{"layers": [{"from": "a", "to": 3}]}',
        '{"layers": [{"from": "(", "to": "b"}]}',
        '{"layers": [{"from": "a", "to": "\\\\1"}]}',
        '{"layers": [{"from": "a", "to": "b", "transpose": "yes"}]}',
        '{"layers": [{"from": "a", "to": "b", "transposed": true}]}',
    ],
)
def test_a_map_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(ConfigError, match=re.escape('must hold {"layers": [rules]}')):
        name_map(str(tmp_path / "map.json"))


def test_a_map_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither torch-to-paddle nor paddle-to-torch"):
        name_map(str(tmp_path / "none.json"))
