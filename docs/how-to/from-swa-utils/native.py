import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import SWALR

import polyak

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ema = polyak.EMA(model, polyak.Uniform())
swa_scheduler = SWALR(optimizer, swa_lr=0.05)

for epoch in range(8):
    for rows in torch.randperm(1500).split(50):
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch >= 3:
        ema.update()
        swa_scheduler.step()
polyak.update_batchnorm(ema.module, images[:1500].split(50))

with torch.no_grad():
    accuracy = (ema(images[1500:]).argmax(1) == labels[1500:]).float().mean()
ema.save("average.safetensors")
