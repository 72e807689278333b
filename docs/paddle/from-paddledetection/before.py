import paddle
from paddle import nn
from ppdet.optimizer import ModelEMA

layer = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1D(32), nn.ReLU(), nn.Linear(32, 2))
optimizer = paddle.optimizer.Momentum(0.05, parameters=layer.parameters())
ema = ModelEMA(layer, decay=0.98, ema_decay_type="normal")

for _ in range(200):
    layer(paddle.randn([64, 16])).square().mean().backward()
    optimizer.step()
    optimizer.clear_grad()
    ema.update(layer)

paddle.save(ema.apply(), "model.pdparams")  # what PaddleDetection deploys is the average
paddle.save(layer.state_dict(), "model.pdema")  # and the raw weights lie beside it
