import torch
from sklearn.datasets import load_digits
from torch import nn


class EMA:
    def __init__(self, model, beta):
        self.model, self.beta, self.raw = model, beta, []
        self.average = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self):
        for kept, p in zip(self.average, self.model.parameters(), strict=True):
            kept.mul_(self.beta).add_(p, alpha=1 - self.beta)

    def apply(self):
        self.raw = [p.data for p in self.model.parameters()]
        for p, kept in zip(self.model.parameters(), self.average, strict=True):
            p.data = kept

    def restore(self):
        for p, raw in zip(self.model.parameters(), self.raw, strict=True):
            p.data = raw


images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ema = EMA(model, beta=0.99)

for _ in range(200):
    rows = torch.randint(1500, (64,))
    loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update()

model.eval()
ema.apply()
with torch.no_grad():
    accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean()
torch.save(model.state_dict(), "average.pt")
ema.restore()
