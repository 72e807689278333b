"""A reader: python evaluate.py ADDRESS."""

import sys
from pathlib import Path

import torch
from first import model, true

import polyak.server

client = polyak.server.Client(sys.argv[1], Path("avg/token").read_text())
average = client.pull(into=model)
inputs = torch.randn(1000, 8)
with torch.no_grad():
    error = (model(inputs) - inputs @ true).square().mean()
print(f"{average}: error {error:.3f}, half-life {average.profile.half_life:.0f} steps")
