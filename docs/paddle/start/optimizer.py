import paddle
from paddle import nn

from polyak.paddle import ExponentialMovingAverage

layer = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1D(64), nn.ReLU(), nn.Linear(64, 2))
optimizer = paddle.optimizer.AdamW(0.01, parameters=layer.parameters())
ema = ExponentialMovingAverage(layer, decay=0.99, bias_correction=True)
mixed = paddle.is_compiled_with_cuda()  # Paddle has no mixed precision on CPUs

for _ in range(20):
    with paddle.amp.auto_cast(mixed, dtype="bfloat16"):
        loss = layer(paddle.randn([64, 16])).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.clear_grad()
    ema.step()

layer.eval()
with ema.apply_to(), paddle.no_grad():
    prediction = layer(paddle.ones([1, 16]))
paddle.save(ema.state_dict(), "ema.pdparams")
ema.set_state_dict(paddle.load("ema.pdparams"))
