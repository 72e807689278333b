import torch
from sklearn.datasets import load_digits
from torch import nn

import polyak


class Denoiser(nn.Module):
    """Predicts the noise in an image from the image and the level of its noise."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(65, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)
        )

    def forward(self, noisy, level):
        return self.layers(torch.cat([noisy, level], 1))


def loss_of(model, clean):
    level = torch.rand(len(clean), 1)
    noise = torch.randn_like(clean)
    noisy = (1 - level).sqrt() * clean + level.sqrt() * noise
    return (model(noisy, level) - noise).square().mean()


images = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
model = Denoiser()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

ema = polyak.EMA(model, {"narrow": polyak.Power(sigma_rel=0.05), "wide": polyak.Power(sigma_rel=0.10)})
ema.attach(optimizer)
with polyak.Archive("snapshots", ema, every=10) as archive:
    for _ in range(300):
        loss = loss_of(model, images[torch.randint(1500, (64,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

held_out = {}
for sigma_rel in (0.05, 0.08, 0.12, 0.2):  # no width is trained again: each is made from the snapshots
    made = polyak.synthesize(archive, polyak.Power(sigma_rel=sigma_rel))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in made.tensors.items()})
    torch.manual_seed(0)
    with torch.no_grad():
        held_out[sigma_rel] = float(loss_of(model, images[1500:]))
best = min(held_out, key=held_out.get)
polyak.synthesize(archive, polyak.Power(sigma_rel=best), out="best.safetensors")
