"""A release gate: the first file passes, a better one replaces it, a worse or a broken one does not."""

import subprocess
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import polyak

images, labels = load_digits(return_X_y=True)
np.savez("held_out.npz", images=images[1400:] / 16, labels=labels[1400:])
Path("evaluate.py").write_text("""
import sys

import numpy as np
from safetensors.numpy import load_file

weights = load_file(sys.argv[1])
held_out = np.load("held_out.npz")
generator = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
rows = generator.integers(len(held_out["labels"]), size=200)
logits = held_out["images"][rows] @ weights["weight"].T + weights["bias"]
print((logits.argmax(1) == held_out["labels"][rows]).mean())
""")
EVALUATE = '--eval "python evaluate.py {weights}"'
NOISY = '--eval "python evaluate.py {weights} {repeat}"'

torch.manual_seed(0)
images, labels = torch.tensor(images), torch.tensor(labels)
model = nn.Linear(64, 10)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
ema = polyak.EMA(model)
for step in range(1, 301):
    rows = torch.randint(1400, (32,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[rows].float() / 16), labels[rows]).backward()
    optimizer.step()
    ema.update()
    if step == 30:
        ema.save("early.safetensors")
ema.save("late.safetensors")


def gate(line):
    done = subprocess.run(f"polyak gate {line}", shell=True, capture_output=True, text=True, check=False)
    print(f"$ polyak gate {line}\n{done.stdout}{done.stderr}exit status {done.returncode}\n")
    return done


refused = gate(f"early.safetensors best.safetensors {EVALUATE} --promote")
assert refused.returncode == 2
assert "--allow-missing" in refused.stdout + refused.stderr
best = Path("best.safetensors")
assert gate(f"early.safetensors {best} {EVALUATE} --promote --allow-missing").returncode == 0
assert best.read_bytes() == Path("early.safetensors").read_bytes()
assert gate(f"late.safetensors {best} {EVALUATE} --promote").returncode == 0
assert best.read_bytes() == Path("late.safetensors").read_bytes()
assert gate(f"early.safetensors {best} {EVALUATE} --promote").returncode == 1
assert gate(f"late.safetensors early.safetensors {NOISY} --repeats 3").returncode == 0
assert gate(f'late.safetensors {best} --eval "python nowhere.py {{weights}}"').returncode == 2
assert best.read_bytes() == Path("late.safetensors").read_bytes()
subprocess.run("polyak inspect best.safetensors", shell=True, check=True)
