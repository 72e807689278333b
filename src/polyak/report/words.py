"""What the page says, in English and in Chinese: ``assets/words.json``, and numbers as readers want them."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Literal, TypeAlias

Language: TypeAlias = Literal["en", "zh"]


class Words:
    """The words of one language.

    Examples:
        >>> Words("en")("steps", n=3), Words("zh")("steps", n=3)
        ('3 steps', '3 步')
    """

    def __init__(self, language: Language) -> None:
        self.language: Language = language
        path = files("polyak.report") / "assets" / "words.json"
        self._texts: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key, with values in its places."""
        text = self._texts[key][self.language]
        return text.format(**values) if values else text


def number(value: float) -> str:
    """A number as a reader wants it: four digits, thousands apart.

    Examples:
        >>> number(12345.6), number(0.0123456), number(1.5), number(0)
        ('12,346', '0.01235', '1.5', '0')
    """
    if value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share as a percentage with three digits.

    Examples:
        >>> percent(0.051234), percent(0.0), percent(1e-9)
        ('5.12 %', '0 %', '< 0.001 %')
    """
    if 0 < abs(share) < 1e-5:
        return "< 0.001 %"
    return f"{100 * share:.3g} %"


def size(nbytes: float) -> str:
    """Bytes in the largest unit below.

    Examples:
        >>> size(999), size(248024), size(3.2e9)
        ('999 B', '248 kB', '3.2 GB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 1000 or unit == "TB":
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds in a unit of its size.

    Examples:
        >>> duration(0.00035), duration(12.3), duration(7260)
        ('350 µs', '12.3 s', '2 h 1 min')
    """
    if seconds < 1e-3:
        return f"{1e6 * seconds:.3g} µs"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
