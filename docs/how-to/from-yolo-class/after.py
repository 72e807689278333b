import torch
from sklearn.datasets import load_digits
from torch import nn

from polyak.dropin.yolo import ModelEMA

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ema = ModelEMA(model, decay=0.99)

for _ in range(200):
    rows = torch.randint(1500, (64,))
    loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update(model)

model.eval()
ema.apply_shadow(model)
with torch.no_grad():
    accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean()
torch.save(model.state_dict(), "average.pt")
ema.restore(model)
