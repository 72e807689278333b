"""Keras with one more callback: both curves in the history, the best average, opened without polyak."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import subprocess

import keras
from sklearn.datasets import load_digits

from polyak.trainers.keras import WeightAveraging, load

images, labels = load_digits(return_X_y=True)
held_out = images[1400:] / 16, labels[1400:]
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(64),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
average = WeightAveraging(evaluate="both")
best = {
    name: keras.callbacks.ModelCheckpoint(f"{file}.keras", monitor=name, save_best_only=True, mode="min")
    for name, file in {"val_loss": "best", "raw/val_loss": "best-raw"}.items()
}
history = model.fit(
    images[:1400] / 16,
    labels[:1400],
    epochs=8,
    validation_data=held_out,
    callbacks=[average, *best.values()],
    verbose=0,
).history
print({name: [round(value, 4) for value in history[name]] for name in ("val_loss", "raw/val_loss")})
assert history["val_loss"][-1] < history["raw/val_loss"][-1], "at a constant rate"

both = model.evaluate(*held_out, callbacks=[average], return_dict=True, verbose=0)
assert abs(both["loss"] - history["val_loss"][-1]) < 1e-5
assert abs(both["raw/loss"] - history["raw/val_loss"][-1]) < 1e-5
load("best.keras", keras.saving.load_model("best.keras")).save("best.average.keras")
deployed = keras.saving.load_model("best.average.keras")
assert abs(deployed.evaluate(*held_out, verbose=0)[0] - min(history["val_loss"])) < 1e-5
table = subprocess.check_output("polyak inspect best.keras best.average.keras", shell=True, text=True)
print(table)
assert " 0 " not in table, "what is not known is left out"
