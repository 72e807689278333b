"""An evaluator: it follows the average while the workers train, and never makes them wait."""

import tempfile
from threading import Thread

import torch
from torch import nn

import polyak
import polyak.server

STEPS = 120
torch.manual_seed(0)
true, held_out = torch.randn(8, 1), torch.randn(256, 8)
model = nn.Linear(8, 1)
folder = tempfile.mkdtemp()
server = polyak.server.start(model, polyak.HalfLife(steps=20), folder=folder, name="evaluated", every=0.2)


def train() -> None:  # in earnest a process of its own, as the evaluator is
    with server.client("trainer") as client:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(1, STEPS + 1):
            inputs = torch.randn(16, 8)
            loss = (model(inputs) - inputs @ true - torch.randn(16, 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            client.push(model, step=step, samples=len(inputs))


trainer = Thread(target=train)
trainer.start()
evaluated, best = nn.Linear(8, 1), float("inf")
with server:
    client = server.client()
    for average in client.follow(every=0.1):
        evaluated.load_state_dict({name: torch.from_numpy(array) for name, array in average.tensors.items()})
        with torch.no_grad():
            error = (evaluated(held_out) - held_out @ true).square().mean().item()
        print(f"version {average.version:3}, step {average.step:3}: {error:.4f}")
        if error < best:
            best = error
            average.save(f"{folder}/best.safetensors")
        if average.step == STEPS:
            break
    trainer.join()
