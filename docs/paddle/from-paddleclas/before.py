import paddle
from paddle import nn
from ppcls.utils.ema import ExponentialMovingAverage

layer = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1D(32), nn.ReLU(), nn.Linear(32, 2))
optimizer = paddle.optimizer.Momentum(0.05, parameters=layer.parameters())
ema = ExponentialMovingAverage(layer, decay=0.98)

for _ in range(200):
    layer(paddle.randn([64, 16])).square().mean().backward()
    optimizer.step()
    optimizer.clear_grad()
    ema.update(layer)

prediction = ema.module(paddle.ones([1, 16]))
paddle.save(ema.module.state_dict(), "model.ema.pdparams")
