import keras
from sklearn.datasets import load_digits

import polyak
from polyak.trainers.keras import WeightAveraging, load

images, labels = load_digits(return_X_y=True)
held_out = images[1500:], labels[1500:]
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(32),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
average = WeightAveraging(polyak.Warmup(0.999))
callbacks = [
    average,
    keras.callbacks.BackupAndRestore("runs/backup"),
    keras.callbacks.ModelCheckpoint("runs/best.keras", monitor="val_loss", save_best_only=True),
]
model.fit(images[:1500], labels[:1500], epochs=3, validation_data=held_out, callbacks=callbacks, verbose=0)

average.save("average.keras")
best = load("runs/best.keras", keras.saving.load_model("runs/best.keras"))  # chosen by the average's loss
best.save("best.average.keras")
