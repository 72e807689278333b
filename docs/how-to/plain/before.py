import torch
from sklearn.datasets import load_digits
from torch import nn

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scaler = torch.amp.GradScaler("cpu")

for _ in range(4):
    model.train()
    for i, rows in enumerate(torch.randperm(1500).split(50), 1):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        scaler.scale(loss / 2).backward()
        if i % 2 == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean()
    torch.save({"model": model.state_dict()}, "last.pt")
