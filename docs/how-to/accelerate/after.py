import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn

import polyak
from polyak.trainers.accelerate import weight_averaging

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
ema = weight_averaging(accelerator, model, optimizer, polyak.Warmup(0.999))

for rows in torch.randperm(1500).split(30):
    with accelerator.accumulate(model):
        accelerator.backward(nn.functional.cross_entropy(model(images[rows]), labels[rows]))
        optimizer.step()
        optimizer.zero_grad()
accelerator.save_state("runs")

model.eval()
with torch.no_grad(), ema.average_parameters():
    accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean()
