"""DQN on a corridor: the target network is an average, and the greedy policy walks to the goal."""

import torch
from torch import nn

import polyak

torch.manual_seed(0)
LENGTH = 6


def step(place, action):
    place = (place + 2 * action - 1).clamp(0, LENGTH - 1)
    return place, (place == LENGTH - 1).float()


def seen(place):
    return nn.functional.one_hot(place, LENGTH).float()


online = nn.Sequential(nn.Linear(LENGTH, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(online.parameters(), lr=1e-2)
target = polyak.EMA(online, 1 - 0.05)
for _ in range(400):
    place, action = torch.randint(LENGTH - 1, (32,)), torch.randint(2, (32,))
    following, reward = step(place, action)
    with torch.no_grad():
        goal = reward + (1 - reward) * 0.9 * target.module(seen(following)).max(1).values
    loss = (online(seen(place)).gather(1, action[:, None]).squeeze(1) - goal).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    target.update()

places = torch.arange(LENGTH - 1)
with torch.no_grad():
    values = target.module(seen(places)).max(1).values
    policy = target.module(seen(places)).argmax(1)
print("values", values.round(decimals=2).tolist(), "mean age", target.metrics()["mean_age"])
assert policy.tolist() == [1] * (LENGTH - 1), "to the right, everywhere"
torch.testing.assert_close(values, 0.9 ** (LENGTH - 2 - places.float()), atol=0.05, rtol=0)

torch.save({"online": online.state_dict(), "target": target.state_dict()}, "agent.pt")
again = polyak.EMA(online, 1 - 0.05)
again.load_state_dict(torch.load("agent.pt", weights_only=True)["target"])
assert torch.equal(again.module(seen(places)), target.module(seen(places)))
