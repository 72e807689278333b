import paddle
from paddle import nn

import polyak
from polyak.paddle import EMA

layer = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = paddle.optimizer.Adam(0.001, parameters=layer.parameters())
ema = EMA(layer, 0.9)  # PaddleScience's ExponentialMovingAverage(layer, decay=0.9)
swa = EMA(layer, polyak.Uniform())  # its StochasticWeightAverage(layer)

for _ in range(10):
    layer(paddle.randn([64, 2])).square().mean().backward()
    optimizer.step()
    optimizer.clear_grad()
    ema.update()
    swa.update()

with ema.average_parameters(), paddle.no_grad():  # in place of apply_shadow() and restore()
    prediction = layer(paddle.ones([1, 2]))
