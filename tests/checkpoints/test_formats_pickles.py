"""Pickles are data here: what would run elsewhere stays a record of the call, and leaves no trace."""

from __future__ import annotations

import builtins
import os
import pickle
import pickletools
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polyak import CheckpointError
from polyak._files.source import open_source
from polyak._foreign.open_any import open_weights
from polyak._foreign.pickle_objects import Record
from polyak._foreign.unpickle import Stream, load


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def attacks(witness: Path) -> dict[str, Any]:
    command = f"touch {witness}"
    return {
        "os.system": Calls(os.system, command),
        "eval": Calls(eval, f"__import__('os').system({command!r})"),
        "exec": Calls(exec, f"import pathlib; pathlib.Path({str(witness)!r}).touch()"),
        "open": Calls(open, str(witness), "w"),
        "getattr": Calls(getattr, Calls(builtins.__import__, "os"), "system"),
        "a class": Calls(type, "x", (), {}),
        "in a list": [1, {"a": Calls(os.system, command)}],
    }


@pytest.mark.parametrize("kind", attacks(Path()))
@pytest.mark.parametrize("how", ["zip", "stream", "pickle", "protocol 0"])
def test_a_malicious_file_runs_nothing_and_its_tensors_are_read(tmp_path: Path, kind: str, how: str) -> None:
    witness = tmp_path / "witness"
    saved = {
        "state_dict": {"w": torch.ones(2)} if how in ("zip", "stream") else {},
        "x": attacks(witness)[kind],
    }
    path = tmp_path / "model.pt"
    if how in ("zip", "stream"):
        torch.save(saved, path, _use_new_zipfile_serialization=how == "zip")
    else:
        path.write_bytes(pickle.dumps(saved, protocol=4 if how == "pickle" else 0))
    before = set(sys.modules)
    if how == "protocol 0":  # which nothing tells from any other text
        with pytest.raises(CheckpointError):
            open_weights(path)
    else:
        with open_weights(path) as weights:
            values = {name: tensor.read().tolist() for name, tensor in weights.tensors.items()}
            assert values == ({"state_dict.w": [1, 1]} if how in ("zip", "stream") else {})
            found = weights.others["x"]
            assert isinstance(found[1]["a"] if isinstance(found, list) else found, Record)
    assert not witness.exists()
    assert {name for name in set(sys.modules) - before if not name.startswith("polyak")} == set()


def test_the_attack_works_elsewhere(tmp_path: Path) -> None:
    """What stays a record above does run when it is unpickled, or the test above shows nothing."""
    pickle.loads(pickle.dumps(attacks(tmp_path / "witness")["exec"]))
    assert (tmp_path / "witness").exists()


def test_a_call_hidden_in_the_state_of_a_module(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.hook = Calls(os.system, f"touch {tmp_path / 'witness'}")
    torch.save(model, tmp_path / "model.pt")
    with open_weights(tmp_path / "model.pt") as weights:
        assert weights.others.state["hook"].name == "system"
    assert not (tmp_path / "witness").exists()


def read(tmp_path: Path, data: bytes) -> Any:
    (tmp_path / "a.pkl").write_bytes(data)
    with open_source(tmp_path / "a.pkl") as source:
        return load(Stream(source), {})


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_pickle_makes_of_them(tmp_path: Path, protocol: int) -> None:
    value = [None, True, 1, -(2**70), 1.5, "é", (1, 2, 3, 4), {"a": [1]}, {1, 2}, frozenset([3]), 1j]
    assert read(tmp_path, pickle.dumps(value, protocol=protocol)) == value


def test_large_bytes_stay_in_the_file(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    value = read(tmp_path, pickle.dumps([data, b"small", bytearray(data)], protocol=5))
    assert value[1] == b"small"
    with open_source(tmp_path / "a.pkl") as source:
        for payload in (value[0], value[2]):
            assert source.read(payload.offset, payload.size) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\x04.",
        b"\x80\x04N",
        b"\x80\x04K",
        b"\x80\x04]q\x00h\x01.",
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",
        b"\x80\x04X" + (2**31).to_bytes(4, "little") + b"x.",
        b"\x80\x04\x82\x01.",
        b"\x80\x02Q.",
        b"\x80\x02NNR.",
        b"\x80\x02)" * 3 + b"u.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"9" * 60_000 + b"L\n.",
        b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999,
    ],
)
def test_garbage_is_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pkl"):
        read(tmp_path, data)


def test_branches_shared_without_end_are_not_followed(tmp_path: Path) -> None:
    """Each list holds the one before twice: 2^60 paths in 200 bytes."""
    value: Any = []
    for _ in range(60):
        value = [value, value]
    (tmp_path / "a.pdparams").write_bytes(pickletools.optimize(pickle.dumps({"w": value}, protocol=4)))
    with pytest.raises(CheckpointError, match="malformed"):
        open_weights(tmp_path / "a.pdparams")


PATH = b"cpathlib\nPosixPath\n"


@pytest.mark.parametrize(
    "grown",
    [
        b"cpathlib\nPosixPath\n(X\x04\x00\x00\x00aaaaq\x01h\x01tR"
        + b"q\x01cpathlib\nPosixPath\n(h\x01h\x01tR" * 60,
        b"(" + b"N" * 60_000 + b"lq\x01" + b"0c__builtin__\nlist\n(h\x01tRq\x02h\x01" * 60_000,
    ],
    ids=["a path that doubles", "a list copied again and again"],
)
def test_what_calls_copy_is_bounded(tmp_path: Path, grown: bytes) -> None:
    """60 doublings of four letters are 4·10¹⁸; 60,000 copies of 60,000 values are 29 GB."""
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="takes more than"):
        read(tmp_path, b"\x80\x02" + grown + b".")
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    value: list[Any] = []
    value.append(value)
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(value, protocol=4))
    with pytest.raises(CheckpointError, match="malformed"):
        open_weights(tmp_path / "a.pdparams")


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


ORDERED = b"ccollections\nOrderedDict\n"
# Each list holds the one before twice.
DOUBLED = b"]q\x00" + b"".join(b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b"0"
NUMBER = b"\x8b" + (1 << 20).to_bytes(4, "little") + b"\x7f" * (1 << 20)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"}N" + b"\x85" * 500_000 + b"Ns", "takes more than|100 values"),
        (b"}N" + b"2\x86" * 60 + b"Ns", "takes more than|100 values"),
        (b"](N" + b"\x85" * 500_000 + b"Nd", "takes more than"),
        (b"\x8f(N" + b"\x85" * 500_000 + b"\x90", "takes more than"),
        (b"(N" + b"\x85" * 500_000 + b"\x91", "takes more than"),
        (b"ca\nB\n)\x81N" + b"\x85" * 500_000 + b"Ns", "takes more than|100 values"),
        (b"c__builtin__\nset\n](N" + b"\x85" * 500_000 + b"e\x85R", "takes more than"),
        (b"}\x8a\x09" + b"\x00" * 7 + b"\x20\x00" + b"Ns", "beyond 2⁶⁰"),
        (b"}(N" + b"\x85" * 500_000 + b"Nu", "takes more than"),
        (ORDERED + b"](](N" + b"\x85" * 500_000 + b"Nee\x85R", "takes more than"),
        (b"c__builtin__\nfrozenset\n](N" + b"\x85" * 500_000 + b"e\x85R", "takes more than"),
        (b"}\x8a\x09" + b"\x00" * 7 + b"\xe0\xff" + b"Ns", "beyond 2⁶⁰"),
        (b"}\x8a\x09" + b"\x00" * 7 + b"\x20\x00" + b"\x85\x85Ns", "beyond 2⁶⁰"),
        (b"](" + NUMBER + NUMBER + b"e", "a number has 1,048,576 bytes"),
        (b"L0x" + b"7" * 60_000 + b"L\n", "a number has 60,003 digits"),
        (b"I0x" + b"7" * 60_000 + b"\n", "a number has 60,002 digits"),
        (b"](" + text("a" * (1 << 20)) + b"q\x00" + b"h\x00" * 300 + b"e", "unfolds to over"),
        (DOUBLED + b"c_codecs\nencode\n" + text("a") + b"h\x3c\x86R", "spelled in an encoding"),
        (b"c" + b"a" * 400 + b"\nB\n)R", "the name of a class has more than"),
        (text("a" * 400) + text("B") + b"\x93)R", "the name of a class has more than"),
        (DOUBLED + b"cpathlib\nPath\nh\x3c\x85R", "expected str"),
        (DOUBLED + b"h\x3cQ", "objects outside of itself"),
        (DOUBLED + b"h\x3c", "unfolds to over"),
        (DOUBLED + b"ca\nB\n)\x81h\x3cb", "unfolds to over"),
        (b"]" * 120 + b"a" * 119, "nests over 100 deep"),
    ],
)
@pytest.mark.slow
def test_what_would_hang_or_crash_those_who_walk_it(tmp_path: Path, program: bytes, words: str) -> None:
    """Hashing a tuple half a million deep overflows the stack; printing 2⁶⁰ words never ends."""
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path, b"\x80\x02" + program + b".")


def test_records_may_hold_themselves(tmp_path: Path) -> None:
    record = read(tmp_path, b"\x80\x02ca\nB\n)\x81q\x00}" + text("me") + b"h\x00sb.")
    assert record.state["me"] is record
    assert repr(record) == "<a.B>"


@pytest.mark.parametrize(
    "tree", [{"a": {"b": np.ones(2)}, "a.b": np.zeros(2)}, {"1": np.ones(2), 1: np.zeros(2)}]
)
def test_two_tensors_of_one_name_are_not_one(tmp_path: Path, tree: Any) -> None:
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(tree, protocol=4))
    with pytest.raises(
        CheckpointError, match=r"a\.pdparams holds two tensors whose keys make up one name: '(a\.b|1)'"
    ):
        open_weights(tmp_path / "a.pdparams")


# What is made in place of a call sees what was not yet measured.
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"ctorch.serialization\n_get_layout\nh\x3c\x85R", "layout has no name"),
        (
            b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}" + text("class_name") + b"h\x3cs\x85R",
            "does not name its class",
        ),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(ca\nB\nh\x3c)NtR0h\x3c", "unfolds to over"),
        (b"cnumpy.core.numeric\n_frombuffer\n(Nh\x3c)NtR", "something else than a dtype"),
    ],
)
def test_nothing_is_printed_before_it_is_measured(tmp_path: Path, program: bytes, words: str) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + DOUBLED + program + b".")
    with pytest.raises(CheckpointError, match=words):
        open_weights(tmp_path / "a.pkl")


def test_messages_are_short_whatever_the_file_says(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be understood") as caught:
        read(tmp_path, b"F" + b"x" * 60_000 + b"\n.")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("tree", [{"k" * 100_000: 1000}, {"k" * 4000: 17_000}], ids=["long", "many"])
@pytest.mark.slow
def test_names_cannot_fill_the_memory(tmp_path: Path, tree: dict[str, int]) -> None:
    """One key of 100,000 letters before 1,000 others is 100 MB of names."""
    ones = np.ones(2)
    tree = {key: dict.fromkeys(range(count), ones) for key, count in tree.items()}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(tree, protocol=4))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="names are longer than those of any model"):
        open_weights(tmp_path / "a.pdparams")
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
