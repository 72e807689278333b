import numpy as np
import paddle
from paddle import nn

rng = np.random.default_rng(0)
x = paddle.to_tensor(rng.normal(size=(2048, 16)).astype("float32"))
y = (x[:, :4].sum(1) * x[:, 4:8].sum(1) > 0).astype("int64")
layer = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1D(64), nn.ReLU(), nn.Linear(64, 2))
optimizer = paddle.optimizer.AdamW(0.01, parameters=layer.parameters())

for _ in range(300):
    rows = paddle.to_tensor(rng.integers(0, 1536, 64))
    loss = nn.functional.cross_entropy(layer(x[rows]), y[rows])
    loss.backward()
    optimizer.step()
    optimizer.clear_grad()

layer.eval()
with paddle.no_grad():
    accuracy = float((layer(x[1536:]).argmax(1) == y[1536:]).astype("float32").mean())
paddle.save(layer.state_dict(), "last.pdparams")
