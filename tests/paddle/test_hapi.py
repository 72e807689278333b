"""``polyak.trainers.hapi``: real trainings of ``paddle.Model``."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.callbacks import Callback, EarlyStopping

import polyak
from polyak import reference
from polyak.cli.describe import describe
from polyak.trainers.hapi import SUFFIX, WeightAveraging, load
from tests.paddle.conftest import array, assert_equal
from tests.states import opened


class Points(paddle.io.Dataset):
    """float [16] and whether the sum of the first four is positive."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__()
        self.x = np.random.default_rng(seed).normal(size=(count, 16)).astype("float32")
        self.y = (self.x[:, :4].sum(1) > 0).astype("int64")[:, None]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.x[index], self.y[index]


pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # hapi's own
    pytest.mark.filterwarnings("ignore:.*the weights it began with"),  # runs of a dozen steps
]
ROOT = Path(__file__).parents[2]
TRAIN, HELD_OUT = Points(96, 0), Points(64, 1)


def network(dropout: float = 0.2) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(16, 24), nn.BatchNorm1D(24), nn.ReLU(), nn.Dropout(dropout), nn.Linear(24, 2)
    )


def prepared(seed: int = 0, dropout: float = 0.2) -> paddle.Model:
    paddle.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # hapi shuffles with it
    with paddle.utils.unique_name.guard():  # as in a process of its own: states of optimizers go by these
        model = paddle.Model(network(dropout), paddle.static.InputSpec([None, 16], "float32", "x"))
        optimizer = paddle.optimizer.Adam(0.01, parameters=model.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss(), paddle.metric.Accuracy())
    return model


def fit(model: paddle.Model, *callbacks: Callback, **settings: Any) -> None:
    settings = {"eval_data": HELD_OUT, "batch_size": 16, "epochs": 2, "verbose": 0} | settings
    model.fit(TRAIN, callbacks=list(callbacks), **settings)


def values(layer: nn.Layer) -> dict[str, np.ndarray]:
    return {name: array(tensor) for name, tensor in layer.state_dict().items()}


def accuracy(layer: nn.Layer) -> float:
    layer.eval()
    with paddle.no_grad():
        found = layer(paddle.to_tensor(HELD_OUT.x)).argmax(1).numpy()
    return float((found == HELD_OUT.y[:, 0]).mean())


class Watching(Callback):
    """The network after each batch, and what evaluations were told, by the event's end."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[dict[str, np.ndarray]] = []
        self.told: list[dict[str, Any]] = []

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        self.path.append(values(self.model.network))

    def on_eval_end(self, logs: Any = None) -> None:
        self.told.append(dict(logs))


class Raising(Callback):
    """Fails in the second batch of an event."""

    def __init__(self, event: str, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()

        def fail(step: int, logs: Any = None) -> None:
            if step == 1:
                raise error("in the middle")

        setattr(self, f"on_{event}_batch_end", fail)


def test_the_average_is_that_of_the_weights_after_each_step() -> None:
    model, average, watching = prepared(), WeightAveraging(polyak.Warmup(0.9)), Watching()
    start = values(model.network)
    fit(model, average, watching)
    assert average.ema.step == len(watching.path) == 12
    state = reference.init(start, polyak.Warmup(0.9))
    for theta in watching.path:
        state = reference.update(state, theta)
    for name, tensor in average.ema.tracks["average"].tensors.items():
        np.testing.assert_allclose(array(tensor), state.average[name], rtol=3e-6, atol=3e-6)


def test_micro_batches_do_not_count() -> None:
    model, average = prepared(), WeightAveraging(0.9)
    fit(model, average, accumulate_grad_batches=4)
    assert average.ema.step == 4  # of 6 batches in an epoch the 4th and the last


@pytest.mark.parametrize("evaluate", [None, "raw", "both", ["long", "short", "raw"]])
def test_training_is_what_it_is_without_an_average(evaluate: Any) -> None:
    """Shuffled and with dropout: an evaluation more draws no random number that training would have drawn."""
    without, beside = Watching(), Watching()
    fit(prepared(), without)
    model = prepared()
    fit(model, WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=evaluate), beside)
    assert len(without.path) == len(beside.path)
    for one, other in zip(without.path, beside.path, strict=True):
        for name, expected in one.items():
            np.testing.assert_array_equal(other[name], expected)
    np.testing.assert_array_equal(values(model.network)["0.weight"], beside.path[-1]["0.weight"])


def test_each_evaluation_is_of_its_own_weights() -> None:
    model, watching = prepared(), Watching()
    average = WeightAveraging({"short": 0.5, "long": 0.99}, evaluate=["long", "short", "raw"])
    fit(model, average, watching)
    told, ema = watching.told[-1], average.ema
    expected = [accuracy(ema.module_of("long")), accuracy(ema.module_of("short")), accuracy(model.network)]
    assert [told["acc"], told["ema=short/acc"], told["raw/acc"]] == expected
    assert len({*expected}) > 1
    assert {"loss", "ema=short/loss", "raw/loss", "ema/long/decay", "ema/short/distance"} <= told.keys()
    result = model.evaluate(HELD_OUT, batch_size=16, verbose=0, callbacks=[average])
    assert (result["acc"], average.apart["raw/acc"]) == (expected[0], expected[2])


def test_one_set_of_weights_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[str, int] = {}
    for evaluate in ("raw", "average", "both"):
        model, batches = prepared(), [0]
        inner = model.eval_batch

        def counting(*args: Any, inner: Any = inner, batches: list[int] = batches) -> Any:
            batches[0] += 1
            return inner(*args)

        monkeypatch.setattr(model, "eval_batch", counting)
        fit(model, WeightAveraging(0.9, evaluate=evaluate), epochs=1)
        counted[evaluate] = batches[0]
    assert counted == {"raw": 4, "average": 4, "both": 8}


def test_before_start_the_average_is_the_raw_weights() -> None:
    model, watching = prepared(), Watching()
    fit(model, WeightAveraging(0.9, evaluate="both", start=8), watching)
    first, second = watching.told
    assert first["acc"] == first["raw/acc"]
    assert first["loss"] == first["raw/loss"]
    assert second["loss"] != second["raw/loss"]


def test_prediction_is_by_the_average_and_the_network_keeps_the_raw_weights() -> None:
    model, average = prepared(), WeightAveraging(0.99, evaluate="both")
    fit(model, average)
    raw = values(model.network)
    [predicted] = model.predict(HELD_OUT, 16, stack_outputs=True, verbose=0, callbacks=[average])
    [without] = model.predict(HELD_OUT, 16, stack_outputs=True, verbose=0)
    with paddle.no_grad():
        expected = average.ema(paddle.to_tensor(HELD_OUT.x)).numpy()
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(predicted - without).max() > 1e-3
    assert_same(values(model.network), raw)


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("event", ["eval", "predict"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_evaluation_leaves_the_raw_weights(event: str, error: type[BaseException]) -> None:
    model, average = prepared(), WeightAveraging(0.99)
    fit(model, average)
    raw = values(model.network)
    run: Callable[..., Any] = model.evaluate if event == "eval" else model.predict
    with pytest.raises(error, match="in the middle"):
        run(HELD_OUT, batch_size=16, verbose=0, callbacks=[average, Raising(event, error)])
    assert average.ema.live == "raw"
    assert_same(values(model.network), raw)
    model.evaluate(HELD_OUT, batch_size=16, verbose=0)  # without the callback: on the raw weights
    average.ema.update()


def test_a_failed_epoch_ends_the_attachment() -> None:
    model, average = prepared(), WeightAveraging(0.9)
    with pytest.raises(RuntimeError, match="in the middle"):
        fit(model, average, Raising("train"))
    assert average.ema.step == 2
    average.ema.update()  # refused while attached
    fit(model, average, epochs=1)
    assert average.ema.step == 3 + 6


def test_iterations_are_counted_as_without_other_evaluations() -> None:
    model, average, watching = prepared(), WeightAveraging(0.9, evaluate="both"), Watching()
    fit(model, average, watching, num_iters=8, epochs=9)
    alone = Watching()
    fit(prepared(), alone, num_iters=8, epochs=9)
    assert len(watching.path) == len(alone.path)
    result = model.evaluate(HELD_OUT, batch_size=16, verbose=0, callbacks=[average], num_iters=2)
    assert result["acc"] == pytest.approx(accuracy_of_first(average.ema.module, 32))
    assert average.apart["raw/acc"] == pytest.approx(accuracy_of_first(model.network, 32))


def accuracy_of_first(layer: nn.Layer, count: int) -> float:
    layer.eval()
    found = layer(paddle.to_tensor(HELD_OUT.x[:count])).argmax(1).numpy()
    return float((found == HELD_OUT.y[:count, 0]).mean())


def test_beside_each_file_of_the_model_lies_the_average(tmp_path: Path) -> None:
    model, average = prepared(), WeightAveraging(0.9)
    best = EarlyStopping("acc", mode="max", patience=9, verbose=0)
    fit(model, best, average, save_dir=str(tmp_path))
    names = ("0", "1", "best_model", "final")
    for name in names:
        assert {f"{name}.pdparams", f"{name}.pdopt", f"{name}{SUFFIX}"} <= {*os.listdir(tmp_path)}
    assert "raw" in str(describe(tmp_path / "final.pdparams"))
    fresh = prepared(1)
    found = load(str(tmp_path / "final"), fresh)
    assert_same(values(fresh.network), values(model.network))
    assert_equal(found.ema.state_dict(), average.ema.state_dict())
    model.save(str(tmp_path / "inference"), training=False)
    assert not (tmp_path / f"inference{SUFFIX}").exists()


def test_a_run_without_the_callback_writes_no_average_of_another(tmp_path: Path) -> None:
    model = prepared()
    fit(model, WeightAveraging(0.9), epochs=1)
    fit(model, epochs=1, save_dir=str(tmp_path))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(SUFFIX)]
    with pytest.raises(polyak.CheckpointError, match="without WeightAveraging among the callbacks"):
        load(str(tmp_path / "final"), model)


def test_saving_the_average_as_the_raw_weights_is_refused(tmp_path: Path) -> None:
    class Saving(Callback):
        def on_eval_batch_end(self, step: int, logs: Any = None) -> None:
            self.model.save(str(tmp_path / "wrong"))

    with pytest.raises(polyak.SwapError, match="would be saved as the raw weights"):
        fit(prepared(), WeightAveraging(0.9), Saving())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("track", [None, "long"])
def test_the_average_is_saved_as_the_model_saves_itself(tmp_path: Path, track: str | None) -> None:
    model, average = prepared(), WeightAveraging({"short": 0.5, "long": 0.99}, evaluate="raw")
    fit(model, average)
    average.save(str(tmp_path / "average"), track=track)
    fresh = prepared(1)
    fresh.load(str(tmp_path / "average"))
    assert_same(values(fresh.network), values(average.ema.module_of(track or "short")))
    assert (track or "short") in str(describe(tmp_path / "average.pdparams"))


def test_the_average_is_saved_for_inference(tmp_path: Path) -> None:
    model, average = prepared(), WeightAveraging(0.99)
    fit(model, average)
    average.save(str(tmp_path / "average"), training=False)
    x = paddle.to_tensor(HELD_OUT.x)
    served = paddle.jit.load(str(tmp_path / "average"))
    served.eval()
    np.testing.assert_allclose(served(x).numpy(), average.ema(x).numpy(), rtol=1e-5, atol=1e-6)
    assert average.ema.live == "raw"


RUN = """
import os, signal, sys
from tests.paddle.test_hapi import *
folder, verb = sys.argv[1:]
class Killed(Callback):
    def on_train_batch_end(self, step, logs=None):
        if average.ema.step == 9:
            os.kill(os.getpid(), signal.SIGKILL)
model = prepared(seed=int(verb == "resume"), dropout=0)
if verb == "resume":
    average = load(folder + "/0", model, dtype="bfloat16")
    assert average.ema.step == 6
    fit(model, average, epochs=2, shuffle=False)
    average.ema.save(folder + "/resumed.safetensors", resumable=True)
else:
    average = WeightAveraging(TWO, dtype="bfloat16")
    fit(model, average, Killed(), epochs=3, shuffle=False, save_dir=folder)
"""
TWO: dict[str, float | polyak.schedules.Decay] = {"short": 0.5, "long": polyak.Warmup(0.9)}


def test_a_killed_run_that_is_resumed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    for verb, ends in (("begin", -signal.SIGKILL), ("resume", 0)):
        command = [sys.executable, "-W", "ignore", "-c", RUN, tmp_path, verb]
        ran = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == ends, ran.stderr
    model, average = prepared(dropout=0), WeightAveraging(TWO, dtype="bfloat16")
    fit(model, average, epochs=3, shuffle=False)
    resumed = polyak.paddle.EMA(network(), TWO, dtype="bfloat16")
    resumed.load(tmp_path / "resumed.safetensors")
    one, other = opened(resumed.state_dict()), opened(average.ema.state_dict())
    assert_equal(one | {"run": ""}, other | {"run": ""})


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"evaluate": "wide"}, polyak.ConfigError, "evaluate='wide': must be 'average', 'raw', 'both' or a"),
        ({"decay": 1.5}, polyak.ConfigError, "1.5"),
        ({"evry": 2}, TypeError, "WeightAveraging has no argument 'evry'"),
    ],
)
def test_wrong_arguments_are_refused_before_training(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        WeightAveraging(**settings)


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(polyak.ConfigError, match="counts samples"):
        fit(prepared(), WeightAveraging(polyak.HalfLife(samples=100)))
    with pytest.raises(polyak.ConfigError, match="several WeightAveraging"):
        fit(prepared(), WeightAveraging(0.9), WeightAveraging(0.99))
    with pytest.raises(polyak.PlanError, match=r"no average before model\.fit\(\) begins"):
        prepared().evaluate(HELD_OUT, batch_size=16, verbose=0, callbacks=[WeightAveraging(0.9)])


def test_a_static_graph_is_refused() -> None:
    paddle.enable_static()
    try:
        with pytest.raises(polyak.ConfigError, match="needs the dynamic graph"):
            WeightAveraging(0.9).on_train_begin()
    finally:
        paddle.disable_static()


def test_the_arguments_are_those_of_the_ema() -> None:
    from polyak.trainers._paddle import EMAOptions

    taken = {*inspect.signature(polyak.paddle.EMA.__init__).parameters} - {"self", "layer", "decay"}
    assert taken == {*EMAOptions.__annotations__}
    first, *others = inspect.signature(WeightAveraging).parameters.values()
    assert (first.name, first.default) == ("decay", polyak.Warmup(0.9999))
    assert {p.name for p in others} == {"evaluate", "report", "options"}


def test_hapis_loss_of_an_evaluation_is_that_of_its_last_batch() -> None:
    """What the page warns of: it is why the scripts watch the accuracy."""
    model = prepared()
    told = model.evaluate(HELD_OUT, batch_size=16, verbose=0)
    with paddle.no_grad():
        losses = [
            float(nn.functional.cross_entropy(model.network(paddle.to_tensor(x)), paddle.to_tensor(y)))
            for x, y in ((HELD_OUT.x[i : i + 16], HELD_OUT.y[i : i + 16]) for i in range(0, 64, 16))
        ]
    assert told["loss"] == [pytest.approx(losses[-1])]
    assert losses[-1] != pytest.approx(np.mean(losses), rel=1e-3)


def test_numbers_and_metrics_of_all_weights_reach_visualdl(tmp_path: Path) -> None:
    visualdl = pytest.importorskip("visualdl")
    average = WeightAveraging(0.9, evaluate="both")
    fit(prepared(), average, paddle.callbacks.VisualDL(str(tmp_path)))
    [file] = tmp_path.iterdir()
    reader = visualdl.LogReader(file_path=str(file))
    tags = reader.get_tags()["scalar"]
    expected = ["acc", "loss", "raw/acc", "raw/loss", "ema/decay", "ema/mean_age", "ema/distance"]
    assert {f"eval/{name}" for name in expected} <= {*tags}
    decays = [record.value for record in reader.get_data("scalar", "eval/ema/decay")]
    assert decays == pytest.approx([0.9, 0.9])


def test_the_progress_bar_shows_all_metrics_and_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    fit(prepared(), WeightAveraging(0.9, evaluate="both"), verbose=2, log_freq=100)
    shown = capsys.readouterr().out
    assert "raw/acc: " in shown
    assert "ema/" not in shown


def test_the_followed_track_is_evaluated_and_a_callback_may_change_it(tmp_path: Path) -> None:
    model, watching = prepared(), Watching()
    average = WeightAveraging(polyak.Adaptive(low=1, high=100, points=3, smoothing=0.0))
    expected = list[float]()

    class Observe(Callback):
        def on_eval_end(self, logs: Any = None) -> None:
            ema = average.ema
            expected.append(accuracy(ema.module))

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                average.ema.observe({name: float(name == "h1") for name in average.ema.tracks})

    fit(model, average, watching, Observe())
    assert average.ema.following == "h1"
    assert watching.told[-1]["acc"] == expected[-1] == accuracy(average.ema.module_of("h1"))
    model.save(str(tmp_path / "model"))
    assert load(str(tmp_path / "model"), prepared()).ema.following == "h1"


def test_a_report_is_written_into_the_folder_named(tmp_path: Path) -> None:
    fit(prepared(), WeightAveraging(0.9, report=tmp_path / "logs"), epochs=1)
    assert "Constant(0.9)" in (tmp_path / "logs" / "report.html").read_text()
    with pytest.raises(polyak.ConfigError, match="this trainer has no folder of its own"):
        WeightAveraging(0.9, report=True)  # pyright: ignore[reportArgumentType]
