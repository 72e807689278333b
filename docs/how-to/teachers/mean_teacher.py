import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import polyak

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
STEPS, LABELLED = 400, 60  # of 1,000 images, the others have none


def noisy(x):
    return x + 0.3 * torch.randn_like(x)


def train(seed, weight):
    """Accuracy of the student and of its teacher, on images neither has seen."""
    torch.manual_seed(seed)
    body = nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3)
    student = nn.Sequential(*body, nn.Linear(128, 10))
    teacher = polyak.Teacher(student, polyak.Warmup(0.99))
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    teacher.attach(optimizer)
    for step in range(STEPS):
        known, any_of = torch.randint(LABELLED, (32,)), torch.randint(1000, (96,))
        x = torch.cat([images[known], images[any_of]])
        answer = student(noisy(x))
        loss = F.cross_entropy(answer[:32], labels[known])
        if weight:
            agreement = polyak.losses.consistency(answer, teacher(noisy(x)))
            loss = loss + weight * polyak.losses.ramp(step, STEPS // 2) * agreement
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.eval()
    with torch.no_grad():
        right = [net(images[1000:]).argmax(1) == labels[1000:] for net in (student, teacher)]
    return [100 * float(one.float().mean()) for one in right]


results = torch.tensor([[train(seed, weight) for weight in (0.0, 50.0)] for seed in range(3)])
gain = results[:, 1] - results[:, 0]  # by seed, of the student and of its teacher
for who, name in enumerate(("student", "teacher")):
    (plain, taught), by = results.mean(0)[:, who], gain[:, who]
    print(f"{name}: {plain:.2f} % without, {taught:.2f} % with, {by.mean():+.2f} ± {by.std():.2f}")
