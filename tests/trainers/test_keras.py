"""Keras really trains a small network on scikit-learn's digits, on torch."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import polyak
from tests.processes import check_it_kills_itself

os.environ["KERAS_BACKEND"] = "torch"  # for the process that is killed, which has no conftest
keras = pytest.importorskip("keras")
from polyak.cli.describe import CheckpointSummary, describe  # noqa: E402
from polyak.report.collect import collect  # noqa: E402
from polyak.report.logged import logged_value  # noqa: E402
from polyak.trainers.keras import WeightAveraging, load, weights  # noqa: E402

# How Keras asks NumPy for a copy.
pytestmark = [pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")]

digits = load_digits()
X, Y = (digits.data[:128] / 16).astype(np.float32), digits.target[:128]


class Watch(keras.callbacks.Callback):
    """Kills the process in an epoch; fails in an evaluation; remembers the weights evaluated."""

    def __init__(self, kill_at: int = -1, fail: bool = False) -> None:
        super().__init__()
        self.kill_at, self.fail, self.seen = kill_at, fail, np.zeros(())

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen = kernel(self.model)
        if self.fail:
            raise RuntimeError("the evaluation failed")

    on_predict_batch_end = on_test_batch_end


def network(dropout: float = 0.0, **options: Any) -> Any:
    """Without dropout for exact runs: Keras's files do not hold its random state."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(16),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2, **options), loss, metrics=["accuracy"])
    return model


def kernel(model: Any) -> Any:
    """The one array to recognise an average by."""
    return model.layers[0].kernel.numpy().copy()


def mean(average: WeightAveraging, track: str = "average") -> Any:
    tensors = average.ema.tracks[track].tensors
    return next(tensor for name, tensor in tensors.items() if name.endswith("kernel")).numpy()


def averages(average: WeightAveraging) -> list[list[float]]:
    """Without names, which count the layers of a process."""
    return [tensor.tolist() for tensor in average.ema.tracks["average"].tensors.values()]


def train(model: Any, *callbacks: Any, epochs: int = 3, **options: Any) -> Any:
    """Eight steps an epoch, in one order."""
    return model.fit(
        X, Y, batch_size=16, epochs=epochs, shuffle=False, callbacks=list(callbacks), verbose=0, **options
    )


def fit(folder: Path, *before: Any, kill_at: int = -1, keep: bool = False) -> WeightAveraging:
    average = WeightAveraging(polyak.Warmup(0.99), every=3)
    backup = keras.callbacks.BackupAndRestore(str(folder), delete_checkpoint=not keep)
    train(network(), *before, average, backup, Watch(kill_at))
    return average


def test_a_killed_run_goes_on_to_the_same_average(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    check_it_kills_itself(__name__, f"fit({folder!r}, kill_at=20)")
    whole, resumed = fit(tmp_path / "whole"), fit(folder)
    assert whole.ema.step == resumed.ema.step == 24
    assert averages(whole) == averages(resumed)
    assert whole.ema.tracks["average"].profile == resumed.ema.tracks["average"].profile
    assert whole.ema.run != resumed.ema.run


def test_the_average_is_what_a_hand_written_loop_gives() -> None:
    average, model = WeightAveraging(0.9), network()
    train(network(), average, epochs=1)
    ema = polyak.EMA(weights(model), 0.9)
    for step in range(8):
        model.train_on_batch(X[16 * step : 16 * step + 16], Y[16 * step : 16 * step + 16])
        ema.update()
    assert average.ema.step == 8
    assert averages(average) == [tensor.tolist() for tensor in ema.tracks["average"].tensors.values()]


def test_moving_statistics_are_averaged_and_random_state_is_not() -> None:
    names = [
        name.partition(".")[2] for name in polyak.EMA(weights(network(dropout=0.2))).tracks["average"].tensors
    ]
    assert names == ["kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "kernel", "bias"]
    frozen = network()
    frozen.layers[0].trainable = False
    names = [name.partition(".")[2] for name in polyak.EMA(weights(frozen)).tracks["average"].tensors]
    assert names == ["gamma", "beta", "moving_mean", "moving_variance", "kernel", "bias"]


def test_evaluation_is_on_the_average_and_training_on_the_raw_weights() -> None:
    average, watch, model = WeightAveraging(0.9), Watch(), network()
    train(model, average, watch, validation_data=(X, Y))
    raw = kernel(model)
    assert not np.array_equal(raw, mean(average))
    assert np.array_equal(watch.seen, mean(average))
    for look in (lambda **o: model.evaluate(X, Y, **o), lambda **o: model.predict(X, **o)):
        watch.seen = raw
        look(callbacks=[average, watch], verbose=0)
        assert np.array_equal(watch.seen, mean(average))
        look(callbacks=[watch], verbose=0)  # who does not give the callback gets the model as it is
        assert np.array_equal(watch.seen, raw)
    assert np.array_equal(kernel(model), raw)
    assert average.ema.live == "raw"
    train(model, average, epochs=1)
    assert average.ema.step == 32


@pytest.mark.parametrize("evaluate", ["long", "raw"])
def test_another_track_or_the_raw_weights_are_evaluated_on_request(evaluate: str) -> None:
    average, watch, model = (
        WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=evaluate),
        Watch(),
        network(),
    )
    train(model, average, watch, validation_data=(X, Y))
    assert np.array_equal(watch.seen, kernel(model) if evaluate == "raw" else mean(average, evaluate))


@pytest.mark.parametrize("stage", ["validation", "evaluate", "predict"])
def test_an_exception_in_an_evaluation_leaves_the_raw_weights(stage: str) -> None:
    average, watch, model = WeightAveraging(0.9), Watch(), network()
    train(model, average, epochs=1)
    watch.fail, options = True, {"callbacks": [average, watch], "verbose": 0}
    look = {
        "validation": lambda: train(model, average, watch, epochs=1, validation_data=(X, Y)),
        "evaluate": lambda: model.evaluate(X, Y, **options),
        "predict": lambda: model.predict(X, **options),
    }[stage]
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        look()
    assert average.ema.live == "raw"
    assert np.array_equal(watch.seen, mean(average))
    assert not np.array_equal(kernel(model), mean(average))
    train(model, average, epochs=1)


def test_micro_batches_are_no_steps() -> None:
    average = WeightAveraging(0.9)
    train(network(gradient_accumulation_steps=4), average)
    assert average.ema.step == 6


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_averaged_in_float32(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        average, watch, model = WeightAveraging(0.9), Watch(), network()
        train(model, average, watch, epochs=1, validation_data=(X, Y))
    finally:
        keras.config.set_dtype_policy("float32")
    assert average.ema.step == int(model.optimizer.iterations) > 0  # float16 skips steps that overflow
    assert {tensor.dtype for tensor in average.ema.tracks["average"].tensors.values()} == {torch.float32}
    assert np.array_equal(watch.seen, mean(average))


def test_each_file_of_keras_holds_both(tmp_path: Path) -> None:
    average, model = WeightAveraging({"short": 0.5, "long": 0.9}, evaluate="long", exclude="*bias"), network()
    best = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "best.keras"), save_freq=3
    )  # told before the average
    train(model, best, average, epochs=1)
    model.save(tmp_path / "end.keras")
    model.save_weights(tmp_path / "end.weights.h5")
    for name, step in (("best.keras", 6), ("end.keras", 8), ("end.weights.h5", 8)):
        fresh = network() if name.endswith("h5") else keras.saving.load_model(tmp_path / name)
        found = load(tmp_path / name, fresh, evaluate="long", exclude="*bias")
        assert (found.ema.step, found.ema.run) == (step, average.ema.run)
        assert int(fresh.optimizer.iterations) == step
        assert step == 6 or np.array_equal(kernel(fresh), kernel(model))
        for track in ("short", "long"):
            assert step == 6 or np.array_equal(mean(found, track), mean(average, track))
    watch = Watch()
    fresh.evaluate(X, Y, callbacks=[found, watch], verbose=0)
    assert np.array_equal(watch.seen, mean(average, "long"))
    train(fresh, found, epochs=1)
    assert found.ema.step == 16


def test_the_average_is_saved_as_a_model_of_keras(tmp_path: Path) -> None:
    average, model = WeightAveraging(0.9), network()
    train(model, average, epochs=1)
    average.save(tmp_path / "average.keras")
    opened = keras.saving.load_model(tmp_path / "average.keras")
    assert np.array_equal(kernel(opened), mean(average))
    with average.ema.average_parameters():
        assert np.array_equal(opened.predict(X, verbose=0), model.predict(X, verbose=0))
    with pytest.raises(polyak.CheckpointError, match=r"average\.keras holds no average"):
        load(tmp_path / "average.keras", opened)
    model.save(tmp_path / "both.keras")
    assert load(tmp_path / "both.keras", network()).ema.step == 8


def roles(path: Path) -> list[tuple[str, str, Any]]:
    found = describe(path)
    assert isinstance(found, CheckpointSummary)
    assert found.library == "keras"
    return [(one.name, one.role, one.profile and one.profile.steps) for one in found.parts]


def test_a_model_file_says_what_its_weights_are(tmp_path: Path) -> None:
    class Saver(keras.callbacks.Callback):
        def on_test_end(self, logs: Any = None) -> None:
            self.model.save(tmp_path / "during.keras")

    model, average = network(), WeightAveraging({"short": 0.5, "long": 0.9})
    model.save(tmp_path / "before.keras")
    checkpoints = keras.callbacks.ModelCheckpoint(tmp_path / "epoch.keras")
    model.fit(X, Y, batch_size=16, epochs=1, callbacks=[average, checkpoints], verbose=0)
    model.save(tmp_path / "after.keras")
    held = [("short", "average", 8), ("long", "average", 8), ("raw", "raw", None)]
    assert roles(tmp_path / "before.keras") == [("weights", "unknown", None)]
    for name in ("epoch.keras", "after.keras"):
        assert roles(tmp_path / name) == held
    average.save(tmp_path / "average.keras", "long")
    assert roles(tmp_path / "average.keras") == [("long", "average", 8)]
    # Callbacks that come first are told first of the end of an evaluation: the model still has the average.
    with pytest.raises(polyak.SwapError, match="holds the average 'short' now"):
        model.evaluate(X, Y, callbacks=[Saver(), average], verbose=0)
    keras.saving.load_model(tmp_path / "average.keras")


@pytest.mark.parametrize("text", ["{", "[3]", "[]" * 9_000_000, "[{}]", '{"a":' * 10_000], ids=len)
def test_a_malformed_mark_is_told(text: str, tmp_path: Path) -> None:
    network().save(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/polyak_average/polyak.json", text)
    with pytest.raises(polyak.CheckpointError, match=r"polyak\.json|header cannot be read"):
        describe(tmp_path / "a.keras")


def test_no_file_holds_the_average_for_the_raw_weights(tmp_path: Path) -> None:
    average, model = WeightAveraging(0.9), network()
    train(model, average, epochs=1)
    with average.ema.average_parameters(), pytest.raises(polyak.SwapError):
        model.save(tmp_path / "live.keras")


def test_a_restored_run_that_was_at_its_end_has_its_average(tmp_path: Path) -> None:
    whole = fit(tmp_path, keep=True)
    again = fit(tmp_path, keep=True)
    assert again.ema.step == 24
    assert averages(whole) == averages(again)


def test_averaging_can_begin_in_a_run_that_had_none(tmp_path: Path) -> None:
    train(network(), keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False), epochs=1)
    average, model = WeightAveraging(0.9, every=20), network()
    with pytest.warns(UserWarning, match="contain no average; averaging starts from them"):
        train(model, average, keras.callbacks.BackupAndRestore(str(tmp_path)), epochs=2)
    assert average.ema.step == 8


def test_a_model_with_another_number_of_weights_is_refused(tmp_path: Path) -> None:
    average, model = WeightAveraging(0.9), network()
    train(model, average, epochs=1)
    model.save_weights(tmp_path / "a.weights.h5")
    model.layers[1].trainable = False  # it was averaged, so it is averaged on
    assert averages(load(tmp_path / "a.weights.h5", model)) == averages(average)
    with pytest.raises(polyak.CheckpointError, match=r"the average is of 1 weights, sequential.* has 8"):
        weights(model, ["one"])


def test_the_numbers_are_in_the_logs(tmp_path: Path) -> None:
    average, file = WeightAveraging({"a": 0.9, "b": 0.5}), tmp_path / "log.csv"
    with pytest.raises(polyak.PlanError, match="no average before"):
        average.ema  # noqa: B018
    history = train(network(), average, keras.callbacks.CSVLogger(str(file)), epochs=2).history
    assert history["ema/a/decay"] == [0.9, 0.9]
    assert history["ema/a/mean_age"][1] > history["ema/b/mean_age"][1] > 0
    with file.open() as rows:
        assert [float(row["ema/a/distance"]) for row in csv.DictReader(rows)] == history["ema/a/distance"]


class Own(keras.Model):
    """With a layer whose name is that of a method of ``nn.Module``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = keras.layers.Dense(10, name="type")

    def call(self, x: Any) -> Any:
        return self.inner(x)


def test_a_model_of_ones_own_class_is_averaged() -> None:
    model = Own()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    average = WeightAveraging(0.9)
    train(model, average, epochs=1)
    assert list(average.ema.tracks["average"].tensors) == ["type.kernel", "type.bias"]
    twice = keras.Sequential([Own(), Own()])
    twice.build((None, 10))
    assert len(polyak.EMA(weights(twice)).tracks["average"].tensors) == 4


@pytest.mark.parametrize("nested", [False, True])
def test_a_module_that_would_compute_with_the_live_layers_is_refused(nested: bool) -> None:
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model = torch.nn.Sequential(inner) if nested else inner
    ema = polyak.EMA(model, 0.5)
    with pytest.raises(polyak.PlanError, match="Keras Functional computes with its live layers"):
        _ = ema.module
    before = inner(torch.ones(1, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    with ema.average_parameters():
        assert torch.equal(inner(torch.ones(1, 3)), before)


def sided(folder: Path, evaluate: Any, *callbacks: Any, **options: Any) -> tuple[Any, WeightAveraging, Any]:
    """Two epochs of shuffled batches and dropout; and the weights validated, batch by batch."""
    average = WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=evaluate, **options)
    model = network(dropout=0.5)
    validated: list[float] = []
    step = model.test_step

    def test_step(data: Any) -> Any:
        validated.append(float(kernel(model).sum()))
        torch.rand(())
        return step(data)

    model.test_step = test_step
    folder.mkdir(exist_ok=True)
    logs = keras.callbacks.CSVLogger(str(folder / "log.csv"))
    model.fit(
        X,
        Y,
        batch_size=16,
        epochs=2,
        validation_data=(X, Y),
        callbacks=[average, *callbacks, logs],
        verbose=0,
    )
    return model, average, validated


def test_raw_and_averages_are_validated_once_each_and_have_a_best_file_each(tmp_path: Path) -> None:
    kinds = {"short": "val_loss", "raw": "raw/val_loss", "long": "ema=long/val_loss"}
    savers = [
        keras.callbacks.ModelCheckpoint(
            str(tmp_path / f"{weights}.keras"), monitor=name, mode="min", save_best_only=True
        )
        for weights, name in kinds.items()
    ]
    model, average, validated = sided(tmp_path, list(kinds), *savers)
    assert len(validated) == 2 * 3 * 8, "epochs, kinds, batches"
    raw, long, short = validated[24::8]
    assert raw == float(kernel(model).sum())
    assert (short, long) == (float(mean(average, "short").sum()), float(mean(average, "long").sum()))
    history = model.history.history
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in kinds.values():
        assert len(history[name]) == 2
        assert history[name.replace("loss", "accuracy")][1] <= 1
        assert [float(row[name]) for row in rows] == history[name]
    assert len({history[name][1] for name in kinds.values()}) == 3
    assert not [name for name in history if name.startswith("val_") and "/" in name]
    for saver, name in zip(savers, kinds.values(), strict=True):
        assert float(saver.best) == pytest.approx(min(history[name]))
        assert Path(saver.filepath).exists()


def test_a_second_validation_changes_no_training(tmp_path: Path) -> None:
    once, average, _ = sided(tmp_path / "once", None)
    twice, averages, _ = sided(tmp_path / "twice", "both")
    assert np.array_equal(kernel(once), kernel(twice))
    assert np.array_equal(mean(average, "short"), mean(averages, "short"))
    assert once.history.history["val_loss"] == twice.history.history["val_loss"]
    assert once.history.history["loss"] == twice.history.history["loss"]


def test_before_averaging_starts_the_average_is_validated_as_the_raw_weights(tmp_path: Path) -> None:
    history = sided(tmp_path, "both", start=100)[0].history.history
    assert history["val_loss"] == history["raw/val_loss"]


def test_evaluate_returns_both_to_who_gives_the_callback(tmp_path: Path) -> None:
    model, average, validated = sided(tmp_path, "both")
    for callbacks, kinds in (([average], 2), ([], 1)):
        validated.clear()
        metrics = model.evaluate(X, Y, batch_size=16, callbacks=callbacks, return_dict=True, verbose=0)
        assert ("raw/loss" in metrics) == (kinds == 2)
        assert len(validated) == 8 * kinds
    validated.clear()
    model.evaluate(X, Y, batch_size=16, callbacks=[average], verbose=0)
    assert validated == [float(mean(average, "short").sum())] * 8


def test_an_exception_in_the_second_validation_leaves_the_raw_weights() -> None:
    average, model = WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=["short", "long"]), network()
    seen: list[Any] = []

    def test_step(data: Any) -> Any:
        seen.append(kernel(model))
        raise RuntimeError("the evaluation failed")

    model.test_step = test_step
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        train(model, average, validation_data=(X, Y))
    assert np.array_equal(seen[0], mean(average, "long"))
    assert average.ema.live == "raw"
    assert not np.array_equal(kernel(model), seen[0])


def test_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(
        polyak.ConfigError, match="evaluate='wide': must be 'average', 'raw', 'both' or a list"
    ):
        WeightAveraging(0.9, evaluate="wide")
    with pytest.raises(polyak.ConfigError, match="counts samples"):
        train(network(), WeightAveraging(polyak.HalfLife(samples=100)))
    with pytest.raises(polyak.PlanError, match="no average of sequential"):
        network().evaluate(X, Y, callbacks=[WeightAveraging(0.9)], verbose=0)
    with pytest.raises(polyak.ConfigError, match=r"Write callbacks=\[WeightAveraging"):
        network().fit(X, Y, callbacks=WeightAveraging(0.9), verbose=0)


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyak.trainers.keras.backend", lambda: "jax")
    with pytest.raises(polyak.ConfigError, match="Keras runs on jax: set KERAS_BACKEND=torch"):
        WeightAveraging()


def test_start_may_be_a_share_of_the_run() -> None:
    average = WeightAveraging(0.9, start="25%")
    train(network(), average, epochs=4)
    assert average.ema.start == average.ema.step / 4


def test_the_followed_track_is_validated_saved_and_loaded(tmp_path: Path) -> None:
    average = WeightAveraging(polyak.Adaptive(low=1, high=100, points=3, smoothing=0.0))
    model, watch = network(), Watch()

    class Observe(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            assert np.array_equal(watch.seen, mean(average, average.ema.following))
            best = "h1" if average.ema.following == "h10" else "h10"
            average.ema.observe({name: float(name == best) for name in average.ema.tracks})

    train(model, average, watch, Observe(), validation_data=(X, Y))
    assert (average.ema.following, average.ema.metrics()["switches"]) == ("h1", 3)
    average.save(tmp_path / "average.keras")
    assert np.array_equal(kernel(keras.saving.load_model(tmp_path / "average.keras")), mean(average, "h1"))
    model.save(tmp_path / "model.keras")
    assert load(tmp_path / "model.keras", network()).ema.following == "h1"


def test_a_report_shows_both_curves_of_the_log_beside_it(tmp_path: Path) -> None:
    sided(tmp_path, "both", report=tmp_path)
    text = (tmp_path / "report.html").read_text()
    facts = json.loads(re.findall(r'id="facts">(.*?)</script>', text)[0])
    both = [plot for plot in facts["plots"] if len(plot.get("lines", ())) == 2]
    assert [line["label"] for line in both[0]["lines"]] == ["raw", "average"]
    assert all(f"Constant({beta})" in text for beta in (0.5, 0.9))
    with pytest.raises(polyak.ConfigError, match="this trainer has no folder of its own"):
        WeightAveraging(0.9, report=True)  # pyright: ignore[reportArgumentType]


def test_a_report_shows_each_file_with_its_row_though_keras_counts_epochs_two_ways(tmp_path: Path) -> None:
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "epoch_{epoch}.keras")
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    train(network(), saver, logger, validation_data=(X, Y))
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = {int(row["epoch"]): float(row["val_loss"]) for row in csv.DictReader(file)}
    assert list(rows) == [0, 1, 2]
    [run] = collect([tmp_path])
    [logged] = [one for one in run.logged if one.name == "val_loss"]
    found = {one.file: logged_value(logged, one) for one in run.weights}
    assert found == {f"epoch_{epoch + 1}.keras": loss for epoch, loss in rows.items()}
