"""A worker: python worker.py ADDRESS NAME STEPS."""

import sys
from pathlib import Path

import torch
from first import model, true

import polyak.server

address, name, steps = sys.argv[1:]
client = polyak.server.Client(address, Path("avg/token").read_text(), worker=name)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(1, int(steps) + 1):
    inputs = torch.randn(16, 8)
    loss = (model(inputs) - inputs @ true - torch.randn(16, 1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    receipt = client.push(model, step=step, samples=len(inputs))
client.close()  # returns when everything is on disk
print(f"{name}: push {receipt.id}, version {receipt.version}")
