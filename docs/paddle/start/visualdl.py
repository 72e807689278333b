import paddle
from paddle import nn
from visualdl import LogWriter

from polyak.paddle import EMA

layer = nn.Linear(16, 1)
optimizer = paddle.optimizer.Adam(0.01, parameters=layer.parameters())
ema = EMA(layer)

with LogWriter("runs") as writer:
    for _ in range(100):
        layer(paddle.randn([64, 16])).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
        ema.update()
        if ema.step % 20 == 0:
            metrics = ema.metrics()
            for name in ("decay", "mean_age", "distance", "initial_weight"):
                writer.add_scalar(f"ema/{name}", metrics[name], ema.step)
