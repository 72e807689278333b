import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import polyak

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16


def train(seed, weight):
    """Accuracy of the student and of its average, on images neither has seen."""
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    teacher = polyak.Teacher(student, polyak.Warmup(0.999))
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    teacher.attach(optimizer)
    for _ in range(300):
        rows = torch.randint(1000, (64,))
        x = images[rows] + 0.2 * torch.randn(64, 64)
        answer = student(x)
        loss = F.cross_entropy(answer, labels[rows])
        if weight:
            loss = loss + weight * F.mse_loss(answer, teacher(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.eval()
    with torch.no_grad():
        right = [net(images[1000:]).argmax(1) == labels[1000:] for net in (student, teacher)]
    return [100 * float(one.float().mean()) for one in right]


results = torch.tensor([[train(seed, weight) for weight in (0.0, 0.5)] for seed in range(3)])
gain = results[:, 1] - results[:, 0]  # by seed, of the student and of its average
for who, name in enumerate(("student", "average")):
    (plain, taught), by = results.mean(0)[:, who], gain[:, who]
    print(f"{name}: {plain:.2f} % alone, {taught:.2f} % taught, {by.mean():+.2f} ± {by.std():.2f}")
