from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from ultralytics import YOLO

import polyak
from polyak.trainers.ultralytics import WeightAveraging

digits = load_digits()
for i in range(32):  # a folder of pictures, even and odd digits
    path = Path("digits", ("train", "val")[i >= 16], ("even", "odd")[digits.target[i] % 2], f"{i}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((digits.images[i] * 15).astype(np.uint8)).convert("RGB").resize((32, 32)).save(path)

model = YOLO("yolov8n-cls.yaml")
average = WeightAveraging(polyak.Ramp(0.9999, tau=2000)).attach(model)
model.train(
    data="digits", epochs=2, imgsz=32, batch=4, nbs=4, workers=0, device="cpu",
    amp=False, plots=False, project=str(Path.cwd()), name="runs",
)  # fmt: skip
average.ema.save("average.safetensors")
