"""Sets of shards: complete, of one save, and nobody else's."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from polyak._files import shards
from polyak._files.header import Header
from polyak._files.layout import Spec
from polyak._files.shards import write_sharded
from polyak._files.write import Rights, claimed
from polyak._foreign.load import load
from polyak._foreign.open_any import open_weights
from polyak.errors import CheckpointError, ConfigError
from tests.checkpoints.crash_worker import NAME, files, found, save

INDEX = f"{NAME}.index.json"


def write(path: Path, arrays: dict[str, np.ndarray], size: int | str | None, run: str = "run") -> None:
    specs = {name: Spec(array.dtype, array.shape) for name, array in arrays.items()}
    metadata = Header("average", 1, None, None, "average", run).to_metadata()
    write_sharded(path, specs, metadata, lambda name: [arrays[name]], size)


def ten(folder: Path, count: int, size: int | str | None) -> list[str]:
    """A file of ``count`` tensors of 10 bytes each."""
    write(folder / NAME, {f"t{i}": np.full(10, i, np.uint8) for i in range(count)}, size)
    return files(folder)


def test_the_set_is_what_hugging_face_libraries_read(tmp_path: Path) -> None:
    """Names, index and contents, read without polyak."""
    assert ten(tmp_path, 5, 20) == [
        "average-00001-of-00003.safetensors",
        "average-00002-of-00003.safetensors",
        "average-00003-of-00003.safetensors",
        INDEX,
    ]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 50
    assert list(index["weight_map"]) == ["t0", "t1", "t2", "t3", "t4"]
    for name, shard in index["weight_map"].items():
        assert load_file(tmp_path / shard)[name].tolist() == [int(name[1])] * 10
    assert sum(len(load_file(tmp_path / s)) for s in set(index["weight_map"].values())) == 5


@pytest.mark.parametrize(
    ("size", "count"),
    [(None, 1), (50, 1), (49, 2), (20, 3), (19, 5), (10, 5), (1, 5), ("1KB", 1), ("0.02kb", 3), ("1.5TB", 1)],
)
def test_a_shard_holds_what_fits_and_at_least_one_tensor(
    tmp_path: Path, size: int | str | None, count: int
) -> None:
    assert len(ten(tmp_path, 5, size)) == (1 if count == 1 else count + 1)
    assert load(tmp_path / NAME).tensors["t4"].tolist() == [4] * 10


@pytest.mark.parametrize("size", [0, -1, "5", "GB", "5 apples", "-1GB", "nanGB", "infGB", 5.5, "", [5]])
def test_what_is_no_size_is_refused_before_anything_is_written(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_shard_size=.*5GB"):
        ten(tmp_path, 5, size)
    assert files(tmp_path) == []


@pytest.mark.parametrize("path", [NAME, INDEX])
def test_a_set_is_read_under_its_own_name_and_its_index(tmp_path: Path, path: str) -> None:
    ten(tmp_path, 5, 20)
    average = load(tmp_path / path)
    assert (average.header.step, len(average.tensors)) == (1, 5)


def test_a_set_of_a_model_is_read_by_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"a": np.ones(9), "b": np.zeros(9)}, 80)
    assert load(tmp_path).tensors.keys() == {"a", "b"}


def test_what_a_save_replaces_is_gone_after_it(tmp_path: Path) -> None:
    for count, size, expected in [(5, 20, 4), (7, 20, 5), (2, None, 1), (5, 20, 4), (1, 20, 1), (4, 10, 5)]:
        assert len(ten(tmp_path, count, size)) == expected
        assert len(load(tmp_path / NAME).tensors) == count


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_ends_a_save_at_its_index_leaves_one_set_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, late: bool
) -> None:
    """Before the index has its name the old set is there, after it the new one."""

    @contextmanager
    def failing(path: Path, rights: Rights | None) -> Iterator[Path]:
        is_index = path.name == INDEX
        if is_index and not late:
            raise error
        with claimed(path, rights) as temporary:
            yield temporary
        if is_index:
            raise error

    save(tmp_path, 1, True)
    before = files(tmp_path)
    monkeypatch.setattr(shards, "claimed", failing)
    with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
        save(tmp_path, 2, True)
    assert found(tmp_path) == (2 if late else 1)
    assert len(files(tmp_path)) == 3
    assert (files(tmp_path) == before) == (not late)


@pytest.mark.parametrize("sharded", [False, True])
def test_nothing_that_polyak_did_not_write_for_this_name_is_removed(tmp_path: Path, sharded: bool) -> None:
    """Other models, other averages with names like shards, notes."""
    others = tmp_path / "average-abcdef.safetensors"  # its shards are named as marked ones of average are
    write(others, {"a": np.ones(9), "b": np.zeros(9)}, 80, run="other")
    save_file({"a": np.ones(3)}, tmp_path / "average-00001-of-00009.safetensors")
    (tmp_path / "average-00002-of-00009.safetensors").write_text("no safetensors file at all")
    (tmp_path / "average-notes.txt").write_text("notes")
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    for i in range(4):
        save(tmp_path, i, sharded)
        save(tmp_path, i, not sharded)
    after = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert {name: after[name] for name in before} == before
    assert found(tmp_path) == 3
    assert load(others).header.run == "other"


@pytest.mark.parametrize("sharded", [False, True])
def test_a_model_of_someone_else_is_neither_replaced_nor_hidden(tmp_path: Path, sharded: bool) -> None:
    """A folder with a sharded model has no file of the model's name, and must not get one unasked."""
    save_file({"a": np.ones(3)}, tmp_path / "average-00001-of-00001.safetensors")
    places = {"a": "average-00001-of-00001.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": places}))
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(CheckpointError, match=r"index\.json belongs to weights that polyak did not write"):
        save(tmp_path, 1, sharded)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metadata": 5}', '{"metadata": {"polyak_set": "x"}}'])
def test_an_index_that_cannot_be_read_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="did not write"):
        save(tmp_path, 1, True)
    assert files(tmp_path) == [INDEX]


# Reading: an index has no checksum, so whatever it says is checked against the shards ----------------


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def point(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["weight_map"].update(t0=name)


SHARD = "average-00001-of-00003.safetensors"
INDEXES: dict[str, Callable[[dict[str, Any]], object]] = {
    "names the file '../outside.safetensors', which lies outside": point("../outside.safetensors"),
    "names the file '/etc/passwd', which": point("/etc/passwd"),
    "names the file 'a/../../b', which": point("a/../../b"),
    "names the file 'C:\\\\b', which": point("C:\\b"),
    "names the file 'file:///etc/passwd', which": point("file:///etc/passwd"),
    "names the file '', which": point(""),
    f"{INDEX} is not a valid safetensors file": point(INDEX),
    "missing.safetensors cannot be opened": point("missing.safetensors"),
    "is not a regular file": point("."),
    "embedded null ": point("a\0b"),
    "cannot be opened": point("n" * 300),
    "lists t0 in average-00003-of-00003.safetensors, which does not": point(
        "average-00003-of-00003.safetensors"
    ),
    "lists t9 in": lambda index: index["weight_map"].update(t9=SHARD),
    # what no file but the whole set can tell
    "names 4 tensors in 3 files": lambda index: index["weight_map"].pop("t0"),
    "names 3 tensors in 2 files; the set has 3 files": lambda index: [
        index["weight_map"].pop(name) for name in ("t0", "t1")
    ],
    "names 0 tensors in 0 files": lambda index: index["weight_map"].clear(),
    "does not belong to the set": lambda index: index["metadata"].pop("polyak_set"),
    "not belong to the set": lambda index: index.pop("metadata"),
    "belong to the set of the index": lambda index: index.update(metadata=[]),
    "is not an index of safetensors files": lambda index: index.pop("weight_map"),
    "weight_map must map": lambda index: index.update(weight_map=[1]),
    "must map names of tensors": lambda index: index.update(weight_map=None),
    "names of tensors to names of files": lambda index: index["weight_map"].update(t0=5),
}


@pytest.mark.parametrize("says", INDEXES)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path: Path, says: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    ten(folder, 5, 20)
    shutil.copy(folder / SHARD, tmp_path / "outside.safetensors")
    rewrite(folder, INDEXES[says])
    with pytest.raises(CheckpointError) as refused:
        load(folder / INDEX)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "nonsense", '{"weight_map": {"a": "b", "a": "c"}}', '{"a":' + "[" * 9**5]
)
def test_what_is_no_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="is not an index of safetensors files"):
        load(tmp_path / INDEX)


def test_an_index_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(100_000_001)
    with pytest.raises(CheckpointError, match="it has 100,000,001 bytes"):
        load(tmp_path / INDEX)


def test_an_index_of_another_program_is_read_as_it_is(tmp_path: Path) -> None:
    """Some say a size with a fraction; none say all that polyak's says."""
    save_file({"a": np.ones(3), "unnamed": np.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": np.zeros(2)}, tmp_path / "two.safetensors")
    places = '{"a": "one.safetensors", "b": "two.safetensors"}'
    (tmp_path / INDEX).write_text('\n{"metadata": {"total_size": 4.5e1}, "weight_map": ' + places + "}")
    with open_weights(tmp_path / INDEX) as weights:
        assert {name: tensor.read().tolist() for name, tensor in weights.tensors.items()} == {
            "a": [1, 1, 1],
            "b": [0, 0],
        }
    with pytest.raises(CheckpointError, match="plain weights file"):
        load(tmp_path / INDEX)


def test_a_shard_of_another_save_is_refused(tmp_path: Path) -> None:
    """Of the same run and the same shapes: only the mark tells."""
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        ten(folder, 5, 20)
    shutil.copy(tmp_path / "b" / SHARD, tmp_path / "a" / SHARD)
    with pytest.raises(CheckpointError, match=f"{SHARD} does not belong to the set"):
        load(tmp_path / "a" / NAME)


def test_a_shard_whose_checksums_cannot_be_found_is_refused(tmp_path: Path) -> None:
    """One flipped bit in the name they stand under, in a shard other than the first."""
    ten(tmp_path, 5, 20)
    path = tmp_path / "average-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes().replace(b"polyak_sums", b"polyak_sumr"))
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged: it has no checksums"):
        load(tmp_path / NAME)


def test_one_shard_is_not_taken_for_the_average(tmp_path: Path) -> None:
    ten(tmp_path, 5, 20)
    with pytest.raises(CheckpointError, match="is one of several shards, a part of the tensors"):
        load(tmp_path / SHARD)


@pytest.mark.parametrize("shard", range(3))
def test_a_damaged_or_missing_shard_is_refused(tmp_path: Path, shard: int) -> None:
    path = tmp_path / [name for name in ten(tmp_path, 5, 20) if name != INDEX][shard]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
        load(tmp_path / NAME)
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=f"{path.name} is not a valid.*cut"):
        load(tmp_path / NAME)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path.name} cannot be opened"):
        load(tmp_path / NAME)
