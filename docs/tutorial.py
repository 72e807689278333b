# --8<-- [start:data]
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import polyak

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
labels = torch.tensor(labels)
train, test = slice(0, 1400), slice(1400, None)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
# --8<-- [end:data]

# --8<-- [start:train]
ema = polyak.EMA(model, polyak.Warmup(0.995))


def train_epoch() -> None:
    model.train()
    for batch in torch.randperm(1400).split(16):
        loss = cross_entropy(model(images[train][batch]), labels[train][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()


def test_loss() -> float:
    model.eval()
    with torch.no_grad():
        return cross_entropy(model(images[test]), labels[test]).item()


for _epoch in range(4):
    train_epoch()
    raw = test_loss()
    with ema.average_parameters():
        average = test_loss()
    print(f"raw {raw:.3f}   average {average:.3f}")
# --8<-- [end:train]

# --8<-- [start:look]
profile = ema.tracks["average"].profile
print(f"half of the average is younger than {profile.half_life:.0f} steps")
print(f"it is as steady as the mean of {profile.effective_samples:.0f} steps")
print(f"what it began with weighs {profile.initial_weight:.1e}")
# --8<-- [end:look]

# --8<-- [start:resume]
torch.save(
    {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}, "run.pt"
)

saved = torch.load("run.pt", weights_only=True)
model.load_state_dict(saved["model"])
optimizer.load_state_dict(saved["optimizer"])
ema.load_state_dict(saved["ema"])  # a schedule, name or shape that differs is refused by name
# --8<-- [end:resume]

# --8<-- [start:ship]
ema.save("average.safetensors")
header = polyak.load("average.safetensors").header
print(header.role, "of track", repr(header.track), "after", header.step, "steps of", header.decay)
# --8<-- [end:ship]
