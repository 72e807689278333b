import torch
from sklearn.datasets import load_digits
from torch import nn

from polyak.dropin.swa_utils import SWALR, AveragedModel, update_bn

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
swa_model = AveragedModel(model)
swa_scheduler = SWALR(optimizer, swa_lr=0.05)

for epoch in range(8):
    for rows in torch.randperm(1500).split(50):
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch >= 3:
        swa_model.update_parameters(model)
        swa_scheduler.step()
update_bn(images[:1500].split(50), swa_model)

with torch.no_grad():
    accuracy = (swa_model.eval()(images[1500:]).argmax(1) == labels[1500:]).float().mean()
torch.save(swa_model.module.state_dict(), "average.pt")
