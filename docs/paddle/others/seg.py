import paddle
from paddle import nn

from polyak.paddle import EMA


def paddleseg(t: int) -> float:
    """The decay of PaddleSeg's ``update_ema_model`` at iteration t."""
    return min(1 - 1 / (t + 1), 0.999)


layer = nn.Sequential(nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8), nn.ReLU(), nn.Conv2D(8, 2, 1))
optimizer = paddle.optimizer.Momentum(0.01, parameters=layer.parameters())
ema = EMA(layer, paddleseg)

for _ in range(10):
    layer(paddle.randn([2, 3, 8, 8])).square().mean().backward()
    optimizer.step()
    optimizer.clear_grad()
    ema.update()  # in place of update_ema_model(ema_model, model, step=iter)

ema_model = ema.module  # what PaddleSeg evaluates and saves
paddle.save(ema_model.state_dict(), "ema_model.pdparams")
