"""The scripts of docs/paddle run, and what the pages say of them holds."""

from __future__ import annotations

import re
import runpy
import sys
from difflib import ndiff
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import paddle
import pytest

import polyak
from polyak.convert.convert import convert
from tests.paddle import originals

PAGES = Path(__file__).parents[2] / "docs" / "paddle"
MIGRATIONS = ["from-paddledetection", "from-paddleclas"]


def run(page: str, script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (folder / script).mkdir()
    monkeypatch.chdir(folder / script)
    monkeypatch.setitem(sys.modules, "ppdet.optimizer", _holding(ModelEMA=originals.model_ema()))
    average = originals.exponential_moving_average()
    monkeypatch.setitem(sys.modules, "ppcls", _holding())
    monkeypatch.setitem(sys.modules, "ppcls.utils", _holding())
    monkeypatch.setitem(sys.modules, "ppcls.utils.ema", _holding(ExponentialMovingAverage=average))
    paddle.seed(0)
    np.random.seed(0)  # noqa: NPY002  # hapi shuffles with it
    return runpy.run_path(str(PAGES / page / f"{script}.py"))


def _holding(**names: object) -> ModuleType:
    """Stands where the packages would be, which cannot be imported without all they bring along."""
    module = ModuleType("original")
    vars(module).update(names)
    return module


def close(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name].numpy(), b[name].numpy(), rtol=0, atol=2e-6, err_msg=name)


def test_the_average_beside_a_training_changes_nothing_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run("start", "before", tmp_path, monkeypatch)
    after = run("start", "after", tmp_path, monkeypatch)
    first, second = (paddle.load(str(tmp_path / n / "last.pdparams")) for n in ("before", "after"))
    for name in first:
        np.testing.assert_array_equal(first[name].numpy(), second[name].numpy())
    ema = after["ema"]
    assert ema.step == 300
    expected = (ema(after["x"][1536:]).argmax(1) == after["y"][1536:]).astype("float32").mean()
    assert after["accuracy"] == float(expected) > 0.8
    assert before["accuracy"] > 0.8
    again = type(ema)(after["layer"], polyak.Warmup(0.99))
    again.load_state_dict(paddle.load(str(tmp_path / "after" / "last.ema")))
    assert again.tracks["average"].profile == ema.tracks["average"].profile
    assert polyak.load(tmp_path / "after" / "average.safetensors").header.role == "average"


def test_the_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (PAGES.parents[1] / "README.md").read_text()
    (code,) = re.findall(
        r'^```python title="train_in_paddle.py"\n(.*?)^```', readme, re.MULTILINE | re.DOTALL
    )
    left: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), left)
    assert left["ema"].step == 100
    assert polyak.load("average.safetensors").header.role == "average"


def test_beside_an_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = run("start", "optimizer", tmp_path, monkeypatch)
    average = left["ema"].ema
    assert average.step == 20
    assert float((average(paddle.ones([1, 16])) - left["prediction"]).abs().max()) < 1e-6


def test_paddle_detection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for script in ("before", "after"):
        run("from-paddledetection", script, tmp_path, monkeypatch)
    for name in ("model.pdparams", "model.pdema"):
        close(*(paddle.load(str(tmp_path / script / name)) for script in ("before", "after")))


def test_paddle_clas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [run("from-paddleclas", script, tmp_path, monkeypatch) for script in ("before", "after")]
    close(*(paddle.load(str(tmp_path / script / "model.ema.pdparams")) for script in ("before", "after")))
    np.testing.assert_allclose(left[0]["prediction"].numpy(), left[1]["prediction"].numpy(), atol=1e-5)


@pytest.mark.parametrize("page", MIGRATIONS)
def test_only_the_import_line_is_new(page: str) -> None:
    before, after = ((PAGES / page / f"{name}.py").read_text().splitlines() for name in ("before", "after"))
    new = [line[2:] for line in ndiff(before, after) if line[0] == "+" and line[2:].strip()]
    assert len(new) == 1
    assert new[0].startswith("from polyak.dropin.paddle_")


@pytest.mark.parametrize("page", [*MIGRATIONS, "index"])
def test_the_tests_a_page_names_exist(page: str) -> None:
    found: set[str] = set()
    for file in ("test_dropin.py", "test_pages.py"):
        found |= set(re.findall(r"^def (test_\w+)", (Path(__file__).parent / file).read_text(), re.MULTILINE))
    for language in ("", ".zh"):
        text = (PAGES / f"{page}{language}.md").read_text()
        named = set(re.findall(r"`(test_\w+)`", text))
        assert named <= found
        assert len(named) >= (0 if page == "index" else 2)


def test_their_checkpoints_are_read_and_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair that the original wrote: which file is the average is found out, and it goes on from there."""
    run("from-paddledetection", "before", tmp_path, monkeypatch)
    convert("model.pdparams", tmp_path / "average.safetensors", part="average")
    theirs = paddle.load("model.pdparams")
    found = polyak.load(tmp_path / "average.safetensors")
    assert found.header.role == "average"
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(found.tensors[name], tensor.numpy())


def test_an_average_is_loaded_into_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after = run("start", "after", tmp_path, monkeypatch)
    (tmp_path / "load").mkdir()
    (tmp_path / "after" / "average.safetensors").rename(tmp_path / "load" / "average.safetensors")
    monkeypatch.chdir(tmp_path / "load")
    left = runpy.run_path(str(PAGES / "start" / "load.py"))
    assert (left["missing"], left["unexpected"]) == ([], [])
    close(left["layer"].state_dict(), after["ema"].module.state_dict())


def test_the_numbers_reach_visualdl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visualdl = pytest.importorskip("visualdl")
    run("start", "visualdl", tmp_path, monkeypatch)
    [file] = (tmp_path / "visualdl" / "runs").iterdir()
    reader = visualdl.LogReader(file_path=str(file))
    steps = [record.id for record in reader.get_data("scalar", "ema/mean_age")]
    assert steps == [20, 40, 60, 80, 100]


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # hapi's own
def test_a_callback_of_hapi_changes_nothing_in_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("visualdl")
    before, after = (run("hapi", script, tmp_path, monkeypatch) for script in ("before", "after"))
    first, second = (
        paddle.load(str(tmp_path / script / "runs" / "final.pdparams")) for script in ("before", "after")
    )
    for name in first:
        np.testing.assert_array_equal(first[name].numpy(), second[name].numpy())
    assert before["model"].network is not after["model"].network
    average = paddle.load(str(tmp_path / "after" / "average.pdparams"))
    close(average, after["average"].ema.module.state_dict())
    assert (tmp_path / "after" / "best.pdparams").exists()


def test_paddle_has_no_such_class_that_works() -> None:
    """What the page says of Paddle 3.3; where it no longer holds the sentence goes."""
    assert not hasattr(paddle.optimizer, "ExponentialMovingAverage")
    with pytest.raises(Exception, match="In dygraph, don't support"):
        paddle.static.ExponentialMovingAverage(0.999)
    paddle.enable_static()
    try:
        with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
            paddle.static.nn.fc(paddle.static.data("x", [None, 4]), 2)
            with pytest.raises(TypeError, match="must be one of paddle::DataType"):
                paddle.static.ExponentialMovingAverage(0.999)
    finally:
        paddle.disable_static()
