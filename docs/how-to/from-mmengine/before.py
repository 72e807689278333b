import torch
from mmengine.model import ExponentialMovingAverage
from sklearn.datasets import load_digits
from torch import nn

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ema = ExponentialMovingAverage(model, momentum=0.01)

for _ in range(200):
    rows = torch.randint(1500, (64,))
    loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update_parameters(model)

with torch.no_grad():
    accuracy = (ema.eval()(images[1500:]).argmax(1) == labels[1500:]).float().mean()
torch.save(ema.module.state_dict(), "average.pt")
