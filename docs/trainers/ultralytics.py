from pathlib import Path

import numpy as np
from PIL import Image
from ultralytics import YOLO

import polyak
from polyak.trainers.ultralytics import use

for split in ("train", "val"):  # a folder of noisy pictures, dark and bright
    for i in range(8):
        path = Path("pictures", split, ("dark", "bright")[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(128, size=(32, 32, 3)) + 127 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)

model = YOLO("yolov8n-cls.yaml")
average = use(model, polyak.Warmup(0.999))
model.train(
    data="pictures", epochs=2, imgsz=32, batch=4, nbs=4, workers=0, device="cpu",
    amp=False, plots=False, project=str(Path.cwd()), name="runs",
)  # fmt: skip
average.ema.save("average.safetensors")  # in full precision
