"""A tutorial's training script with the lines of the README, and its file opened as any safetensors file."""

import subprocess

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

import polyak

torch.manual_seed(0)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float().view(-1, 1, 8, 8) / 16


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


model = network()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
ema = polyak.EMA(model)


def evaluate(model):
    model.eval()
    with torch.no_grad():
        output = model(images[1400:])
    model.train()
    return criterion(output, labels[1400:]).item(), (output.argmax(1) == labels[1400:]).float().mean().item()


for epoch in range(10):
    for rows in torch.randperm(1400).split(32):
        optimizer.zero_grad()
        loss = criterion(model(images[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        ema.update()
    raw = evaluate(model)
    with ema.average_parameters():
        average = evaluate(model)
    print(f"epoch {epoch + 1}: raw {raw[0]:.3f} {raw[1]:.1%}, average {average[0]:.3f} {average[1]:.1%}")
assert average[0] < raw[0], "lower loss at a constant rate, as the tutorial says"
assert evaluate(model) == raw, "the model holds its own weights after the block"

torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, "last.pt")
resumed = polyak.EMA(network())
resumed.load_state_dict(torch.load("last.pt", weights_only=True)["ema"])
assert resumed.step == ema.step

ema.save("average.safetensors")
deployed = network()
deployed.load_state_dict(load_file("average.safetensors"))
assert evaluate(deployed) == average
subprocess.run("polyak inspect average.safetensors last.pt", shell=True, check=True)
subprocess.run("polyak inspect average.safetensors --plot", shell=True, check=True)
