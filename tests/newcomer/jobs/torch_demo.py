"""The demo on what every installation of its extra has, and the commands that its last screen names."""

import json
import re
import shlex
import subprocess
from pathlib import Path

screen = subprocess.run(
    "polyak demo --data digits --epochs 3 --out run", shell=True, check=True, capture_output=True, text=True
).stdout
print(screen)
inspect, sweep = re.findall(r"^ *(polyak (?:inspect|sweep) .*)$", screen, re.MULTILINE)
subprocess.run(inspect, shell=True, check=True)
score = shlex.split(sweep)[-1].format(weights="run/average.safetensors")  # what the sweep would run 13 times
loss = float(subprocess.check_output(score, shell=True, text=True).split()[-1])
[*_, last] = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
assert abs(loss - last["ema_test_loss"]) < 1e-3, "the file is what was evaluated"
assert Path("run/curves.png").stat().st_size > 1000
