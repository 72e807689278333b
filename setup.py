"""What pyproject.toml cannot say: links that work on a package index, and a wheel that needs no platform."""

import os
import re
from pathlib import Path

from setuptools import Distribution, setup

HERE = Path(__file__).parent
# What a link of the README begins with when it names a file of the repository.
LINK = re.compile(r'(?P<before>\]\(|(?P<picture>src="|srcset="))(?!https?:|#)')


class WithoutKernel(Distribution):
    """polyak with its C kernel left out: one wheel for every platform."""

    def has_ext_modules(self) -> bool:
        """No, whatever pyproject.toml lists."""
        return False


def on_an_index(readme: str, project: str) -> str:
    """The README with links that lead to this version's files in the repository."""
    source = re.search(r'^Source = "(.+)"', project, re.MULTILINE)[1]
    version = re.search(r'^version = "(.+)"', project, re.MULTILINE)[1]
    place = lambda m: f"{m['before']}{source}/{'raw' if m['picture'] else 'blob'}/v{version}/"  # noqa: E731
    return LINK.sub(place, readme)


setup(
    long_description=on_an_index(
        *((HERE / name).read_text("utf-8") for name in ("README.md", "pyproject.toml"))
    ),
    long_description_content_type="text/markdown",
    distclass=WithoutKernel if os.environ.get("POLYAK_WITHOUT_KERNEL") == "1" else Distribution,
)
