import torch
from sklearn.datasets import load_digits
from torch import nn


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

for _ in range(300):
    loss = loss_of(model, images[torch.randint(1500, (64,))])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

torch.manual_seed(0)
with torch.no_grad():
    held_out = float(loss_of(model, images[1500:]))
torch.save(model.state_dict(), "last.pt")
