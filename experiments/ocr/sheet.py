"""Draw lines.png, what the network has to read: training lines in the upper half, test lines below.

python -m experiments.ocr.sheet
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from experiments.ocr.configs import FULL, Lines
from experiments.ocr.data import Part, line, strings

PICTURE = Path(__file__).parent / "lines.png"
PARTS: tuple[Part, Part] = ("train", "test")
ROWS, COLUMNS = 3, 6  # of each part


def sheet(lines: Lines) -> Image.Image:
    """The first lines of both parts side by side, as the network gets them."""
    rows = []
    for part in PARTS:
        found = strings(lines, part)[: ROWS * COLUMNS]
        images = np.array([line(lines, part, number, string) for number, string in enumerate(found)])
        grid = images.reshape(ROWS, COLUMNS, lines.height, lines.width)
        rows.append(grid.transpose(0, 2, 1, 3).reshape(ROWS * lines.height, COLUMNS * lines.width))
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    sheet(FULL.lines).save(PICTURE, optimize=True)
    print(PICTURE)


if __name__ == "__main__":
    main()
