"""The doctor on a script with mistakes, and on the same script when they are mended."""

import subprocess
from pathlib import Path

WRONG = """import copy

import torch
from torch import nn

model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
ema_model = copy.deepcopy(model)
optimizer = torch.optim.AdamW(model.parameters())
scaler = torch.amp.GradScaler()

for step in range(100):
    loss = model(torch.randn(32, 8)).square().mean()
    scaler.scale(loss).backward()
    for average, parameter in zip(ema_model.parameters(), model.parameters()):
        average.data.mul_(0.999).add_(parameter.data, alpha=0.001)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()

torch.save(model.state_dict(), "model.pt")
"""
RIGHT = """import torch
from torch import nn

import polyak

model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
optimizer = torch.optim.AdamW(model.parameters())
scaler = torch.amp.GradScaler()
ema = polyak.EMA(model)
ema.attach(optimizer)

for step in range(100):
    loss = model(torch.randn(32, 8)).square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()

torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, "last.pt")
"""


def doctor(name, script):
    Path(name).write_text(script)
    done = subprocess.run(["polyak", "doctor", name], capture_output=True, text=True, check=False)
    print(f"$ polyak doctor {name}\n{done.stdout}{done.stderr}exit status {done.returncode}\n")
    return done


wrong = doctor("wrong.py", WRONG)
assert wrong.returncode == 1
loop = 1 + next(i for i, line in enumerate(WRONG.splitlines()) if "in zip(" in line)
assert f"wrong.py:{loop}" in wrong.stdout, "an update before the step"
assert "[never-updated]" not in wrong.stdout
right = doctor("right.py", RIGHT)
assert right.returncode == 0
assert "recognised ema (polyak.EMA), updated in line 10" in right.stdout, "by the optimizer it is attached to"
