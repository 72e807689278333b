"""A diffusion model with two widths and an archive; the width is chosen by `polyak sweep` afterwards."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

import polyak

COMMON = '''
import numpy as np
import torch
from torch import nn


class UNet(nn.Module):
    """One level down and up again, told the level of the noise."""

    def __init__(self):
        super().__init__()
        self.enter, self.level = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(1, 16)
        self.down = nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1))
        self.middle = nn.Sequential(nn.GroupNorm(4, 32), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1))
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.leave = nn.Sequential(nn.SiLU(), nn.Conv2d(32, 1, 3, padding=1))

    def forward(self, noisy, level):
        high = self.enter(noisy) + self.level(level)[:, :, None, None]
        return self.leave(torch.cat([high, self.up(self.middle(self.down(high)))], 1))


def loss_of(model, clean):
    level = torch.rand(len(clean), 1)
    noise = torch.randn_like(clean)
    mixed = level[:, :, None, None]
    return (model((1 - mixed).sqrt() * clean + mixed.sqrt() * noise, level) - noise).square().mean()


images = torch.tensor(np.load("images.npy")[:, None] / 8 - 1, dtype=torch.float32)
'''
EVALUATE = """
import sys

from safetensors.torch import load_file

from unet import *

model = UNet()
model.load_state_dict(load_file(sys.argv[1]))
torch.manual_seed(0)
with torch.no_grad():
    print(float(loss_of(model, images[1500:])))
"""
np.save("images.npy", load_digits().images)
Path("unet.py").write_text(COMMON)
Path("evaluate.py").write_text(EVALUATE)
sys.path.insert(0, ".")
from unet import UNet, images, loss_of  # noqa: E402

torch.manual_seed(0)
model = UNet()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
ema = polyak.EMA(model, {"narrow": polyak.Power(sigma_rel=0.05), "wide": polyak.Power(sigma_rel=0.10)})
ema.attach(optimizer)
with polyak.Archive("snapshots", ema, every=10) as archive:
    for _ in range(300):
        loss = loss_of(model, images[torch.randint(1500, (32,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
ema.save("raw.safetensors", track="raw")

subprocess.run("polyak synthesize snapshots", shell=True, check=True)
subprocess.run(
    'polyak sweep snapshots --eval "python evaluate.py {weights}" --mode min --points 2 --refine 0'
    " --out sweep --raw raw.safetensors",
    shell=True,
    check=True,
)
subprocess.run("polyak inspect sweep/best.safetensors --plot", shell=True, check=True)

found = json.loads(Path("sweep/sweep.json").read_text())
assert found["best"]["metric"] < found["raw"]["metric"], "the best width is better than the raw weights"
assert len(found["trials"]) == 2
