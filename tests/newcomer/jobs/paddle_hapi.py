"""paddle.Model with the callback of docs/paddle/hapi.md, on digits, and its files opened again."""

import paddle
from paddle import nn
from sklearn.datasets import load_digits

from polyak.trainers.hapi import WeightAveraging, load

images, labels = load_digits(return_X_y=True)
tensors = [paddle.to_tensor(images / 16, "float32"), paddle.to_tensor(labels[:, None])]
digits = paddle.io.TensorDataset(tensors)
train, held_out = paddle.io.Subset(digits, range(1500)), paddle.io.Subset(digits, range(1500, 1797))


def prepared() -> paddle.Model:
    paddle.seed(0)
    model = paddle.Model(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    optimizer = paddle.optimizer.Adam(1e-2, parameters=model.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss(), paddle.metric.Accuracy())
    return model


model, average = prepared(), WeightAveraging(evaluate="both")
model.fit(train, held_out, batch_size=64, epochs=5, save_dir="runs", callbacks=[average], verbose=0)
result = model.evaluate(held_out, batch_size=64, verbose=0, callbacks=[average])
print(f"average {result['acc']:.3f}, raw {average.apart['raw/acc']:.3f}")
assert result["acc"] > 0.85

average.save("average")
deployed = prepared()
deployed.load("average")
assert deployed.evaluate(held_out, batch_size=64, verbose=0)["acc"] == result["acc"]
assert load("runs/final", prepared()).ema.step == average.ema.step
