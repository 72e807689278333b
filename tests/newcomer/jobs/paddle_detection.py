"""PaddleDetection's trainer with the one line of docs/paddle/from-paddledetection.md changed in its source.

The package's own requirements are not installed, so the file is not imported whole: what it does with its
average is read out of it and done.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

import paddle
from paddle import nn

OLD, NEW = "from ppdet.optimizer import ModelEMA", "from polyak.dropin.paddle_detection import ModelEMA"

source = (Path(find_spec("ppdet").origin).parent / "engine" / "trainer.py").read_text()
assert source.count(f"{OLD}\n") == 1
tree = ast.parse(source.replace(OLD, NEW))
calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
[made] = [call for call in calls if ast.unparse(call.func) == "ModelEMA"]
verbs = {call.func.attr: call for call in calls if ast.unparse(call.func).startswith("self.ema.")}
assert {"update", "apply"} <= verbs.keys()

exec(NEW)
values = {"decay": 0.9998, "ema_decay_type": "threshold", "cycle_epoch": -1}
given = {keyword.arg: values.get(keyword.arg) for keyword in made.keywords} | {"ema_filter_no_grad": False}
layer = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1D(8), nn.Linear(8, 2))
ema = eval("ModelEMA")(layer, **given)
optimizer = paddle.optimizer.Momentum(0.01, parameters=layer.parameters())
for _ in range(20):
    layer(paddle.randn([16, 8])).square().mean().backward()
    optimizer.step()
    optimizer.clear_grad()
    assert not verbs["update"].args
    ema.update()

raw = {name: tensor.numpy().copy() for name, tensor in layer.state_dict().items()}
layer.set_dict(ema.apply())  # as the trainer does before it evaluates and saves
assert (layer.state_dict()["0.weight"].numpy() != raw["0.weight"]).any()
