"""The loop of docs/paddle/index.md around a layer of one's own; the average is loaded into another layer."""

import paddle
from paddle import nn

import polyak
from polyak.paddle import EMA

paddle.seed(0)
teacher = paddle.randn([16, 1])
layer = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = paddle.optimizer.Adam(0.01, parameters=layer.parameters())
ema = EMA(layer)


def loss_on(x: paddle.Tensor) -> paddle.Tensor:
    return (layer(x) - x @ teacher).square().mean()


for _ in range(400):
    loss_on(paddle.randn([32, 16])).backward()
    optimizer.step()
    optimizer.clear_grad()
    ema.update()

held_out = paddle.randn([512, 16])
layer.eval()
with paddle.no_grad():
    raw = float(loss_on(held_out))
    with ema.average_parameters():
        average = float(loss_on(held_out))
print(f"raw {raw:.4f}, average {average:.4f}")
assert average < raw, "what the article promises of a constant rate"

ema.save("average.safetensors")
fresh = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
missing, unexpected = fresh.set_state_dict(polyak.load("average.safetensors").tensors)
assert not missing
assert not unexpected
assert float((fresh(held_out) - ema(held_out)).abs().max()) < 1e-6
