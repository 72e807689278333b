"""Checkpoints of a finished run that no average was kept in, merged on the command line."""

import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(1, 401):
    rows = torch.randint(1400, (16,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
    optimizer.step()
    if step % 20 == 0 and step >= 300:
        state = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "global_step": step}
        torch.save(state, f"step-{step}.pt")


def loss(weights):
    model.load_state_dict(weights)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(images[1400:]), labels[1400:]).item()


last = loss(torch.load("step-400.pt", weights_only=True)["state_dict"])
for arguments, out in [
    ("", "mean"),
    ("--shape 1-sqrt", "annealed"),
    ("--half-life 40", "ema"),
    ("--recency 40", "recent"),
]:
    subprocess.run(f"polyak average step-*.pt {arguments} -o {out}.safetensors", shell=True, check=True)
    merged = loss(load_file(f"{out}.safetensors"))
    print(f"{out}: {merged:.4f}, last checkpoint: {last:.4f}")
    assert merged < last
subprocess.run("polyak inspect step-400.pt mean.safetensors annealed.safetensors", shell=True, check=True)
again = subprocess.run("polyak average step-400.pt -o mean.safetensors missing.pt", shell=True, check=False)
assert again.returncode != 0
assert loss(load_file("mean.safetensors")) < last, "a merge that failed left the file there as it was"
assert not list(Path().glob("*.tmp*"))
