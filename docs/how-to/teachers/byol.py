import torch
from sklearn.datasets import load_digits
from torch import nn

import polyak

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
STEPS = 400


def head(inputs, hidden, outputs):
    body = nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU()
    return nn.Sequential(*body, nn.Linear(hidden, outputs))


def view(x):
    """Some pixels are hidden, all are noisy."""
    return x * (torch.rand_like(x) > 0.3) + 0.1 * torch.randn_like(x)


def probe(features):
    """Accuracy of a linear classifier on frozen features: ridge regression on 1,000 labels."""
    with torch.no_grad():
        x = nn.functional.normalize(features(images) - features(images[:1000]).mean(0))
    a, b = x[:1000], nn.functional.one_hot(labels[:1000], 10).float()
    weights = torch.linalg.solve(a.T @ a + 0.1 * torch.eye(a.shape[1]), a.T @ b)
    return float(((x[1000:] @ weights).argmax(1) == labels[1000:]).float().mean())


torch.manual_seed(0)
online = nn.Sequential(head(64, 128, 64), head(64, 64, 32))  # encoder and projector
predictor = head(32, 64, 32)
untrained = probe(online[0].eval())
online.train()
teacher = polyak.Teacher(online, polyak.Cosine(0.98, 1.0, total=STEPS), batchnorm="batch")
optimizer = torch.optim.AdamW([*online.parameters(), *predictor.parameters()], lr=2e-3)
teacher.attach(optimizer)
for _ in range(STEPS):
    x = images[torch.randint(1000, (128,))]
    one, other = view(x), view(x)
    loss = polyak.losses.byol(predictor(online(one)), teacher(other))
    loss = loss + polyak.losses.byol(predictor(online(other)), teacher(one))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
trained, averaged = probe(online[0].eval()), probe(teacher.module[0])
print(f"linear probe: untrained {untrained:.3f}, online {trained:.3f}, teacher {averaged:.3f}")
