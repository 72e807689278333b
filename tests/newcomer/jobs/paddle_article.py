"""An article's training loop: the class that it takes from paddle.optimizer, which has none, is polyak's."""

import subprocess

import numpy as np
import paddle
from paddle import nn
from sklearn.datasets import load_digits

from polyak.paddle import ExponentialMovingAverage

paddle.seed(0)
generator = np.random.default_rng(0)
images, labels = load_digits(return_X_y=True)
images, labels = paddle.to_tensor(images / 16, "float32"), paddle.to_tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1D(64), nn.ReLU(), nn.Linear(64, 10))
optimizer = paddle.optimizer.Adam(learning_rate=1e-2, parameters=model.parameters())
ema = ExponentialMovingAverage(model, decay=0.99, bias_correction=True)
criterion = nn.CrossEntropyLoss()


def loss_held_out():
    model.eval()
    with paddle.no_grad():
        loss = float(criterion(model(images[1400:]), labels[1400:]))
    model.train()
    return loss


for _ in range(400):
    rows = paddle.to_tensor(generator.integers(1400, size=32))
    loss = criterion(model(images[rows]), labels[rows])
    loss.backward()
    optimizer.step()
    optimizer.clear_grad()
    ema.step()

raw = loss_held_out()
with ema.apply_to():
    average = loss_held_out()
print(f"raw {raw:.4f}, average {average:.4f}")
assert average < raw, "at a constant rate"
assert loss_held_out() == raw

paddle.save(ema.state_dict(), "ema.pdparams")
ema.set_state_dict(paddle.load("ema.pdparams"))
ema.save("average.safetensors")
subprocess.run("polyak inspect average.safetensors ema.pdparams", shell=True, check=True)
