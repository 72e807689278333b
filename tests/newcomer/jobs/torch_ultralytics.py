"""Ultralytics' own trainer on a folder of digits, raw and average validated, one best file of each."""

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from ultralytics import YOLO

from polyak.trainers.ultralytics import WeightAveraging

digits = load_digits()
for i in range(48):
    path = Path("digits", ("train", "val")[i >= 32], ("even", "odd")[digits.target[i] % 2], f"{i}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((digits.images[i] * 15).astype(np.uint8)).convert("RGB").resize((32, 32)).save(path)

model = YOLO("yolov8n-cls.yaml")
average = WeightAveraging(evaluate="both").attach(model)
model.train(
    data="digits", epochs=2, imgsz=32, batch=8, nbs=8, workers=0, device="cpu",
    amp=False, plots=False, project=str(Path.cwd()), name="runs",
)  # fmt: skip

columns = Path("runs/results.csv").read_text().splitlines()[0].split(",")
assert {"val/loss", "raw/val/loss", "ema/decay"} <= {column.strip() for column in columns}, columns
for name in ("best.pt", "best-raw.pt", "last.pt"):
    prediction = YOLO(f"runs/weights/{name}")("digits/val/even", imgsz=32, verbose=False)
    assert len(prediction) == len(list(Path("digits/val/even").iterdir()))
subprocess.run("polyak inspect runs/weights", shell=True, check=True)
subprocess.run(
    "polyak convert runs/weights/last.polyak.pt average.safetensors --part average", shell=True, check=True
)
subprocess.run("polyak inspect average.safetensors", shell=True, check=True)
