import torch
from sklearn.datasets import load_digits
from torch import nn

from polyak.dropin.timm import ModelEmaV3

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ema = ModelEmaV3(model, decay=0.95, use_warmup=True)

for step in range(1, 201):
    rows = torch.randint(1500, (64,))
    loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update(model, step=step)

with torch.no_grad():
    accuracy = (ema(images[1500:]).argmax(1) == labels[1500:]).float().mean()
torch.save(ema.module.state_dict(), "average.pt")
