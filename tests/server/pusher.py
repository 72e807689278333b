"""A worker in one framework: python pusher.py FRAMEWORK ADDRESS NAME VALUE.

It pushes a network full of a value, pulls the average into another, and prints that network's output.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from polyak.server import Client


def network(framework: str) -> Any:
    """The same in both: parameters of the same names and shapes."""
    nn: Any = import_module(f"{framework}.nn")
    convolution = nn.Conv1d if framework == "torch" else nn.Conv1D
    return nn.Sequential(convolution(1, 2, 3), nn.GroupNorm(1, 2))


def main(framework: str, address: str, name: str, value: float) -> None:
    library: Any = import_module(framework)
    net, into = network(framework), network(framework)
    with library.no_grad():
        for parameter in net.parameters():
            parameter.copy_(library.full_like(parameter, value), False)
    with Client(address, os.environ["RAY_AUTH_TOKEN"], name=name, worker=framework) as client:
        assert client.push(net, step=1).accepted
        client.flush()
        average = client.pull(into)
    values = {key: float(array.max()) for key, array in average.tensors.items()}
    for key, tensor in into.state_dict().items():
        assert (tensor == values[key]).all(), key
    print(average.version, sorted(set(values.values())))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
