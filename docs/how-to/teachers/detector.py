import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

import polyak

SIZE, QUERIES, STEPS = 16, 3, 300


def scenes(count):
    """Images with one or two bright squares, and their boxes (centre and size, from 0 to 1)."""
    images, boxes = torch.zeros(count, 1, SIZE, SIZE), []
    for image in images:
        found = []
        for _ in range(int(torch.randint(1, 3, ()))):
            width = int(torch.randint(4, 7, ()))
            x, y = torch.randint(0, SIZE - width, (2,)).tolist()
            image[0, y : y + width, x : x + width] = 1
            found.append([x + width / 2, y + width / 2, width, width])
        boxes.append(torch.tensor(found) / SIZE)
    return images, boxes


class Detector(nn.Module):
    """A DETR in small: a convolutional backbone, a decoder over queries, no anchors and no suppression."""

    def __init__(self, width=48):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1)
        )
        self.places = nn.Parameter(0.1 * torch.randn(SIZE // 4 * (SIZE // 4), width))
        self.queries = nn.Parameter(torch.randn(QUERIES, width))
        layer = nn.TransformerDecoderLayer(width, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.out = nn.Linear(width, 5)

    def forward(self, images):
        seen = self.backbone(images).flatten(2).transpose(1, 2) + self.places
        out = self.out(self.decoder(self.queries.expand(len(images), -1, -1), seen))
        return out[..., 0], out[..., 1:].sigmoid()  # whether there is an object, and its box


def loss_of(answers, targets):
    """Each box is the task of the query that fits it best; the others have to say that there is none."""
    total = torch.zeros(())
    for logit, box, wanted in zip(*answers, targets, strict=True):
        distance = torch.cdist(box, wanted, 1)
        rows, columns = linear_sum_assignment((5 * distance - logit.sigmoid()[:, None]).detach())
        objects = torch.zeros(QUERIES)
        objects[rows] = 1
        total = (
            total + F.binary_cross_entropy_with_logits(logit, objects) + 5 * distance[rows, columns].mean()
        )
    return total / len(targets)


torch.manual_seed(0)
labelled, boxes = scenes(64)
unlabelled, _ = scenes(400)
test = scenes(100)
student = Detector()
teacher = polyak.Teacher(student, polyak.Warmup(0.99))  # BatchNorm answers with averaged statistics
optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
teacher.attach(optimizer)
used = 0
for step in range(STEPS):
    rows = torch.randint(len(labelled), (16,))
    loss = loss_of(student(labelled[rows] + 0.2 * torch.randn(16, 1, SIZE, SIZE)), [boxes[i] for i in rows])
    if step >= STEPS // 2:  # until then the teacher has nothing to teach
        x = unlabelled[torch.randint(len(unlabelled), (16,))]
        logits, found = teacher(x)  # sees the clean image
        sure = [box[logit.sigmoid() > 0.7] for logit, box in zip(logits, found, strict=True)]
        kept = [i for i, box in enumerate(sure) if len(box)]
        used += len(kept)
        if kept:
            answers = student((x + 0.2 * torch.randn_like(x))[kept])  # has to find the same in a noisy one
            loss = loss + 0.5 * loss_of(answers, [sure[i] for i in kept])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

student.eval()
with torch.no_grad():
    raw, average = (float(loss_of(net(test[0]), test[1])) for net in (student, teacher))
print(f"{used} images labelled by the teacher; loss on new images: student {raw:.3f}, teacher {average:.3f}")
