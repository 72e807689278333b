import torch
from sklearn.datasets import load_digits
from torch import nn

from polyak.dropin.ema_pytorch import EMA

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ema = EMA(model, beta=0.95, update_after_step=20, update_every=1)

for _ in range(200):
    rows = torch.randint(1500, (64,))
    loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update()

with torch.no_grad():
    accuracy = (ema.ema_model.eval()(images[1500:]).argmax(1) == labels[1500:]).float().mean()
torch.save(ema.ema_model.state_dict(), "average.pt")
