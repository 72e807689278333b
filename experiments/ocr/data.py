"""Lines of Chinese text as a camera might see them, made from fonts: nothing is downloaded.

    python -m experiments.ocr.data               # the full size: 42,000 lines, 130 MB, half a minute
    python -m experiments.ocr.data --quick

Every line is a function of the seed, its part and its number. No string of the test part is in the
training part, and no font either: the test part's typefaces are other designs of the same three styles.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from experiments.ocr.configs import FULL, QUICK, Lines

Part = Literal["test", "train"]
CACHE = Path("runs/ocr")
FONTS = Path("/usr/share/fonts")
# File below FONTS, and the face in it that is drawn for mainland China.
SEEN = {
    "truetype/wqy/wqy-zenhei.ttc": 0,  # sans
    "opentype/noto/NotoSansCJK-Regular.ttc": 2,
    "opentype/noto/NotoSansCJK-Bold.ttc": 2,
    "truetype/arphic-gbsn00lp/gbsn00lp.ttf": 0,  # Song
    "truetype/arphic/uming.ttc": 0,
    "truetype/arphic-gkai00mp/gkai00mp.ttf": 0,  # Kai
    "truetype/arphic/ukai.ttc": 0,
}
HELD_OUT = {
    "truetype/wqy/wqy-microhei.ttc": 0,  # sans
    "opentype/noto/NotoSerifCJK-Regular.ttc": 2,  # Song
    "truetype/lxgw-wenkai/LXGWWenKai-Regular.ttf": 0,  # Kai
}
PACKAGES = (
    "fonts-wqy-microhei fonts-wqy-zenhei fonts-arphic-gbsn00lp fonts-arphic-gkai00mp "
    "fonts-arphic-ukai fonts-arphic-uming fonts-noto-cjk fonts-lxgw-wenkai"
)


def common() -> str:
    """The 3755 characters of GB2312's first level: rows 16 to 55."""
    codes = bytes(byte for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF) for byte in (row, cell))
    return codes.decode("gb2312", errors="ignore")


@lru_cache
def alphabet(count: int) -> str:
    """So many of them, the same for the same count."""
    characters = common()
    chosen = np.random.default_rng(0).permutation(len(characters))[:count]
    return "".join(characters[i] for i in sorted(chosen))


def strings(lines: Lines, part: Part) -> list[list[int]]:
    """The lines of one part as numbers from 1; 0 is left to CTC's blank."""
    test: list[list[int]] = []
    taken: set[tuple[int, ...]] = set()
    rng = np.random.default_rng([lines.seed, 0])
    while len(test) < lines.test:
        test.append(_string(lines, rng))
        taken.add(tuple(test[-1]))
    if part == "test":
        return test
    rng = np.random.default_rng([lines.seed, 1])
    train: list[list[int]] = []
    while len(train) < lines.train:
        string = _string(lines, rng)
        if tuple(string) not in taken:
            train.append(string)
    return train


def _string(lines: Lines, rng: np.random.Generator) -> list[int]:
    length = rng.integers(lines.shortest, lines.longest + 1)
    return rng.integers(1, lines.characters + 1, length).tolist()


def drawn(text: str, face: tuple[str, int], lines: Lines, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One line: ink on paper, seen from the side, blurred, noisy. Returns [height, width]."""
    height, width = lines.height, lines.width
    size = int(min(height * rng.uniform(0.62, 0.84), 0.97 * width / len(text)))
    gap = min(rng.uniform(0, 0.15) * size, (0.97 * width - size * len(text)) / len(text))
    left = rng.uniform(0, max(1.0, width - (size + gap) * len(text)) / 4)
    ink = Image.new("L", (width, height))
    pen, font = ImageDraw.Draw(ink), typeface(*face, size)
    for i, character in enumerate(text):
        middle = left + (size + gap) * i + size / 2, height / 2 + rng.uniform(-1, 1)
        pen.text(middle, character, fill=255, font=font, anchor="mm")
    tilt = _tilt(height, width, rng)
    ink = ink.transform(ink.size, Image.Transform.PERSPECTIVE, tilt, Image.Resampling.BILINEAR)
    ink = ink.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.1)))
    share = np.asarray(ink, np.float64) / 255 * rng.uniform(0.75, 1)
    paper = _paper(height, width, rng)
    dark = rng.uniform(0, 1) < 0.7
    colour = rng.uniform(0, 90) if dark else rng.uniform(190, 255)
    seen = (paper if dark else paper - 110) * (1 - share) + colour * share
    seen += rng.normal(0, rng.uniform(2, 16), seen.shape)
    return np.clip(np.rint(seen), 0, 255).astype(np.uint8)


def _paper(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A grey level that goes from side to side, with stains."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    stains = Image.fromarray(rng.normal(0, 1, (3, 8)).astype(np.float32))
    cloudy = np.asarray(stains.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    slope = rng.uniform(-25, 25, 2)
    return rng.uniform(150, 240) + slope[0] * y + slope[1] * x + rng.uniform(0, 18) * cloudy


def _tilt(height: int, width: int, rng: np.random.Generator) -> list[float]:
    """The eight numbers Pillow wants: where each pixel of the result comes from.

    ``x' = (a·x + b·y + c) / (g·x + h·y + 1)``, ``y' = (d·x + e·y + f) / (g·x + h·y + 1)``, at four corners.
    """
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    moved = corners + rng.uniform(-0.09, 0.09, (4, 2)) * height
    rows, sides = [], []
    for (x, y), (u, v) in zip(corners, moved, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        sides += [u, v]
    return np.linalg.solve(rows, sides).tolist()


@lru_cache(maxsize=256)
def typeface(file: str, number: int, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(FONTS / file, size, number)
    except OSError as error:
        raise SystemExit(f"{FONTS / file} is missing: apt-get install {PACKAGES}") from error


def line(lines: Lines, part: Part, number: int, string: list[int]) -> NDArray[np.uint8]:
    """Line ``number`` of a part."""
    rng = np.random.default_rng([lines.seed, 2 if part == "test" else 3, number])
    faces = list((HELD_OUT if part == "test" else SEEN).items())
    text = "".join(alphabet(lines.characters)[i - 1] for i in string)
    return drawn(text, faces[rng.integers(len(faces))], lines, rng)


def prepared(lines: Lines, folder: Path) -> Path:
    """The folder with both parts of these lines; made if they are not there."""
    about = folder / "about.json"
    wanted = asdict(lines) | {"seen": list(SEEN), "held_out": list(HELD_OUT)}
    if about.exists() and json.loads(about.read_text()) == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in ("test", "train"):
        _make(lines, part, folder)
    about.write_text(json.dumps(wanted, indent=1) + "\n")  # last: it says that the rest is complete
    return folder


def _make(lines: Lines, part: Part, folder: Path) -> None:
    every = strings(lines, part)
    labels = np.zeros((len(every), lines.longest), np.int32)
    shape = len(every), lines.height, lines.width
    images = np.lib.format.open_memmap(folder / f"{part}-images.npy", "w+", np.uint8, shape)
    for number, string in enumerate(every):
        labels[number, : len(string)] = string
        images[number] = line(lines, part, number, string)
    np.save(folder / f"{part}-labels.npy", labels)


def load(folder: Path, part: Part) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images [line, height, width] and labels [line, longest], zeros after each line's end."""
    return np.load(folder / f"{part}-images.npy", mmap_mode="r"), np.load(folder / f"{part}-labels.npy")


def digest(folder: Path) -> str:
    """Equal on two machines when their lines are; another FreeType draws other pixels."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.npy")):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the quick size instead of the full one")
    config = QUICK if parser.parse_args().quick else FULL
    print(prepared(config.lines, CACHE / config.name / "lines"))


if __name__ == "__main__":
    main()
