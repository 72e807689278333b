"""An EMA reference policy: rollouts come from an average of the policy, and each batch is held to the version
that made it."""

import tempfile
from queue import Queue
from threading import Thread

import torch
from torch import nn

import polyak
import polyak.server

BATCHES = 30
torch.manual_seed(0)
policy = nn.Linear(4, 3)
good = torch.randn(4, 3)  # an action is right if it is the largest of state @ good
server = polyak.server.start(
    policy, polyak.HalfLife(steps=10), folder=tempfile.mkdtemp(), name="policy", keep=50, every=0.05
)
batches: Queue = Queue(maxsize=4)


def act() -> None:  # a rollout worker; in earnest many processes
    reference, client = nn.Linear(4, 3), server.client()
    for _ in range(BATCHES):
        version = client.pull(into=reference).version
        states = torch.randn(64, 4)
        with torch.no_grad():
            actions = torch.distributions.Categorical(logits=reference(states)).sample()
        rewards = (actions == (states @ good).argmax(1)).float()
        batches.put((version, states, actions, rewards))


rollouts = Thread(target=act)
rollouts.start()
rewarded = []
with server:
    client = server.client("learner")
    optimizer, reference = torch.optim.Adam(policy.parameters(), lr=0.1), nn.Linear(4, 3)
    for step in range(1, BATCHES + 1):
        version, states, actions, rewards = batches.get()
        client.pull(into=reference, version=version)  # exactly the policy that made this batch
        with torch.no_grad():
            old = torch.distributions.Categorical(logits=reference(states))
        new = torch.distributions.Categorical(logits=policy(states))
        ratio = (new.log_prob(actions) - old.log_prob(actions)).exp()
        away = torch.distributions.kl_divergence(old, new).mean()
        loss = -(ratio * (rewards - rewards.mean())).mean() + 0.1 * away
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        client.push(policy, step=step)
        rewarded.append(rewards.mean().item())
    rollouts.join()
print(f"rewards: {sum(rewarded[:5]) / 5:.2f} in the first batches, {sum(rewarded[-5:]) / 5:.2f} in the last")
