"""BYOL: the teacher is an average whose decay rises to 1; with it the features tell digits apart."""

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

import polyak

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32) / 16


def mlp(wide, out):
    return nn.Sequential(nn.Linear(wide, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, out))


def view(x):
    return x + 0.1 * torch.randn_like(x)


def distance(a, b):
    return (2 - 2 * nn.functional.cosine_similarity(a, b)).mean()


STEPS = 300
student, predictor = mlp(64, 32), mlp(32, 32)
optimizer = torch.optim.Adam([*student.parameters(), *predictor.parameters()], lr=1e-3)
teacher = polyak.EMA(student, polyak.Cosine(0.97, 1.0, total=STEPS), buffers="copy")
losses = []
for _ in range(STEPS):
    x = images[torch.randint(1500, (128,))]
    one, two = view(x), view(x)
    with torch.no_grad():
        goal_one, goal_two = teacher.module(one), teacher.module(two)
    loss = distance(predictor(student(one)), goal_two) + distance(predictor(student(two)), goal_one)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    teacher.update()
    losses.append(loss.item())

features = teacher.module.eval()(images).numpy()
fit = LogisticRegression(max_iter=500).fit(features[:1500], labels[:1500])
accuracy = fit.score(features[1500:], labels[1500:])
print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}; linear probe of the teacher {accuracy:.3f}")
print(teacher)
assert losses[-1] < losses[0]
assert accuracy > 0.85
assert teacher.metrics()["decay"] > 0.9999
