import torch
from sklearn.datasets import load_digits
from torch import nn

import polyak

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
# "now" is θ itself, since a decay of 0 keeps nothing; the archive keeps θ₀.
ema = polyak.EMA(model, {"average": polyak.HalfLife(steps=40), "now": 0.0})
ema.attach(optimizer)
with polyak.Archive("snapshots", ema, every=100, dtype="float32") as archive:
    for _ in range(300):
        rows = torch.randint(1000, (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()


def loss():
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(images[1000:]), labels[1000:]))


held_out = {"raw": loss()}
with ema.average_parameters("average"):
    held_out["average"] = loss()
average = ema.tracks["average"].profile
paper = (10 + ema.step) ** -0.2
for alpha in (0.1, 0.2, paper):
    # ema + α·(θ - θ₀): the average of the profile that is moved towards now and away from the start
    profile = average + alpha * polyak.Profile.raw(ema.step) + -alpha * polyak.Profile.raw(0)
    made = polyak.synthesize(archive, profile)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in made.tensors.items()})
    held_out[f"α = {alpha:.2f}"] = loss()
for name, value in held_out.items():
    print(f"{name}: loss {value:.4f}")
weight = profile.weights()[0]
print(f"mean age {average.mean_age:.0f} → {profile.mean_age:.0f} steps; weight of θ₀ {weight:+.2f}")
