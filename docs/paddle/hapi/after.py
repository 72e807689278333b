import numpy as np
import paddle
from paddle import nn

from polyak.trainers.hapi import WeightAveraging, load

rng = np.random.default_rng(0)
x = rng.normal(size=(2048, 16)).astype("float32")
y = (x[:, :4].sum(1) * x[:, 4:8].sum(1) > 0).astype("int64")[:, None]
points = paddle.io.TensorDataset([paddle.to_tensor(x), paddle.to_tensor(y)])
train, held_out = paddle.io.Subset(points, range(1536)), paddle.io.Subset(points, range(1536, 2048))

paddle.seed(0)
network = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1D(64), nn.ReLU(), nn.Linear(64, 2))
model = paddle.Model(network)
optimizer = paddle.optimizer.AdamW(0.01, parameters=model.parameters())
model.prepare(optimizer, nn.CrossEntropyLoss(), paddle.metric.Accuracy())
average = WeightAveraging(evaluate="both")
callbacks = [
    average,
    paddle.callbacks.EarlyStopping("acc", mode="max", patience=10, verbose=0),
    paddle.callbacks.VisualDL("runs/log"),
]
model.fit(train, held_out, batch_size=64, epochs=6, save_dir="runs", callbacks=callbacks, verbose=0)

average.save("average")  # average.pdparams: model.load opens it without polyak
best = load("runs/best_model", model)  # chosen by the average's accuracy
best.save("best")
