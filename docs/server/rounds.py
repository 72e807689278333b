"""Rounds, as in DiLoCo: each worker trains on its own for a while, then all go on from the mean."""

import tempfile
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import polyak.server

WORKERS, ROUNDS, LOCAL_STEPS = 2, 5, 20
torch.manual_seed(0)
first, true = nn.Linear(8, 1), torch.randn(8, 1)

# Time is counted in rounds. A decay of 0 forgets the rounds before: the average is the mean of the newest.
server = polyak.server.start(first, 0.0, folder=tempfile.mkdtemp(), name="rounds", every=0)


def work(worker: int) -> list[float]:
    client, losses = server.client(f"worker-{worker}"), []
    model = nn.Linear(8, 1)
    model.load_state_dict(first.state_dict())
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.5, nesterov=True)
    data = torch.Generator().manual_seed(worker)
    for round in range(1, ROUNDS + 1):
        begin = [p.detach().clone() for p in model.parameters()]
        inner = torch.optim.SGD(model.parameters(), lr=0.02)
        for _ in range(LOCAL_STEPS):
            inputs = torch.randn(16, 8, generator=data)
            loss = (model(inputs) - inputs @ true).square().mean()
            inner.zero_grad()
            loss.backward()
            inner.step()
        client.push(model, step=round, samples=16 * LOCAL_STEPS)
        client.flush()
        # The version with all pushes of this round: the last worker's flush wrote it.
        for newest in client.follow(every=0.05):
            if newest.version >= WORKERS * round:
                break
        client.pull(into=model, version=WORKERS * round)
        # The outer step, the same in all workers: from the weights at the beginning towards the mean.
        for p, old in zip(model.parameters(), begin, strict=True):
            p.grad = old - p.detach()
            p.data.copy_(old)
        outer.step()
        losses.append(loss.item())
    return losses


with server, ThreadPoolExecutor() as pool:  # in earnest each worker is a process, on any machine
    losses = list(pool.map(work, range(WORKERS)))
for worker, one in enumerate(losses):
    print(f"worker {worker}: loss {one[0]:.3f} in round 1, {one[-1]:.3f} in round {ROUNDS}")
