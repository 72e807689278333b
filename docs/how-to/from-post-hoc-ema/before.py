import torch
from ema_pytorch import PostHocEMA
from sklearn.datasets import load_digits
from torch import nn

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
emas = PostHocEMA(model, sigma_rels=(0.05, 0.28), update_every=1, checkpoint_every_num_steps=20)

for _ in range(200):
    rows = torch.randint(1500, (64,))
    loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    emas.update()

average = emas.synthesize_ema_model(sigma_rel=0.15)
with torch.no_grad():
    accuracy = (average.ema_model.eval()(images[1500:]).argmax(1) == labels[1500:]).float().mean()
torch.save(average.ema_model.state_dict(), "average.pt")
