import torch
from sklearn.datasets import load_digits
from torch import nn

import polyak

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
EPOCHS = 12


def train(seed, switch_from, half_life):
    """Loss of the raw weights and of the average, on images the model has not seen."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ema = polyak.EMA(model, polyak.HalfLife(steps=half_life))
    ema.attach(optimizer)
    for epoch in range(EPOCHS):
        model.train()
        for rows in torch.randperm(1000).split(32):
            x = images[rows] + 0.3 * torch.randn(len(rows), 64)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels[rows]).backward()
            optimizer.step()
        if epoch >= switch_from:
            ema.copy_to()  # SwitchEMA: training goes on from the average
    model.eval()
    with torch.no_grad():
        return [float(nn.functional.cross_entropy(net(images[1000:]), labels[1000:])) for net in (model, ema)]


ARMS = {  # 32 steps are an epoch
    "no switching": (EPOCHS, 5),
    "the last 4 epochs, half-life 5 steps": (EPOCHS - 4, 5),
    "every epoch, half-life 5 steps": (0, 5),
    "every epoch, half-life 32 steps": (0, 32),
}
losses = {name: torch.tensor([train(seed, *arm) for seed in range(3)]) for name, arm in ARMS.items()}
for name, found in losses.items():
    (raw, average), (a, b) = found.mean(0), found.std(0)
    print(f"{name}: loss {raw:.3f} ± {a:.3f} raw, {average:.3f} ± {b:.3f} average")
