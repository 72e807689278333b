"""Writes the files that the tests read: ``python make_pdparams.py FOLDER``, with paddlepaddle 3.3.1.

Paddle takes 700 MB, so what it wrote is kept here and not the package.
"""

import sys
from pathlib import Path


def make(folder: Path) -> None:
    import numpy as np
    import paddle

    paddle.seed(0)
    model = paddle.nn.Sequential(paddle.nn.Linear(4, 3), paddle.nn.BatchNorm1D(3), paddle.nn.Linear(3, 300))
    for name, tensor in model.state_dict().items():
        values = np.linspace(-1, 1, tensor.size, dtype="float32").reshape(tensor.shape)
        tensor.set_value(values + (0.5 if "weight" in name else 0.0))
    paddle.save(model.state_dict(), str(folder / "model.pdparams"))
    paddle.save(model.state_dict(), str(folder / "protocol2.pdparams"), protocol=2)
    halves = {name: tensor.astype("bfloat16") for name, tensor in model.state_dict().items()}
    paddle.save(halves, str(folder / "bf16.pdparams"))
    paddle.save({"model": model.state_dict(), "epoch": 3, "lr": 0.1}, str(folder / "nested.pdparams"))
    optimizer = paddle.optimizer.Adam(parameters=model.parameters())
    model(paddle.ones([2, 4])).sum().backward()
    optimizer.step()
    paddle.save(optimizer.state_dict(), str(folder / "model.pdopt"))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
