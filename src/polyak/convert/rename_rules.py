r"""Converting names and layouts between frameworks by a list of rules.

A rule is an object with ``from``, a regular expression for the full name; ``to``, the new name, in which
``\1`` is the first group, or null to drop the tensor; and ``transpose``, true to transpose matrices. The
first matching rule applies; a name without a match is kept.

    {"layers": [{"from": "(.*)\\.running_mean", "to": "\\1._mean"},
                {"from": "head\\.weight", "to": "fc.weight", "transpose": true}]}
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyak._files.checkpoint import LazyTensor
from polyak.errors import CheckpointError, ConfigError

# A linear layer's matrix is [out, in] in torch and [in, out] in paddle; an embedding's is [entries, width]
# in both, and only its name distinguishes it.
_TORCH_TO_PADDLE = [
    {"from": r"(|.*\.)running_mean", "to": r"\1_mean"},
    {"from": r"(|.*\.)running_var", "to": r"\1_variance"},
    {"from": r"(|.*\.)num_batches_tracked", "to": None},
    {"from": r"(|.*\.)bias", "to": r"\1bias"},
    {"from": r"(.*(?:emb|Emb|wte|wpe|shared|lookup)[^.]*)\.weight", "to": r"\1.weight"},
    {"from": r"(|.*\.)weight", "to": r"\1weight", "transpose": True},
]
_GROUP = re.compile(r"\\(\d)")


@dataclass(frozen=True)
class Rule:
    """One line of a map: see the top of this file."""

    pattern: str
    to: str | None
    transpose: bool = False

    def inverse(self) -> Rule | None:
        r"""The rule that leads back; None where nothing does, for what was left out."""
        if self.to is None:
            return None
        texts, groups = _pieces(self.pattern)
        order = [int(number) for number in _GROUP.findall(self.to)]
        if sorted(order) != list(range(1, len(groups) + 1)) or "\\" in _GROUP.sub("", self.to):
            raise ConfigError(
                f"the rule {self.pattern!r} → {self.to!r} cannot be inverted: the new name must use each "
                "group of the old one once."
            )
        pattern = "".join(
            groups[int(piece) - 1] if i % 2 else re.escape(piece)
            for i, piece in enumerate(_GROUP.split(self.to))
        )
        plain = [text.replace("\\", r"\\") for text in texts]
        back = plain[0] + "".join(f"\\{order.index(i) + 1}{text}" for i, text in enumerate(plain[1:], 1))
        return Rule(pattern, back, self.transpose)


@dataclass(frozen=True)
class Renamed:
    """The new names of a file's tensors under a map."""

    places: Mapping[str, tuple[str, bool]]  # new name → (old name, whether its two axes change places)
    unmatched: tuple[str, ...]  # names that no rule fits; they are among ``places`` unchanged
    dropped: tuple[str, ...]  # names that a rule leaves out


@dataclass(frozen=True)
class NameMap:
    """A list of rules; made by ``name_map``."""

    rules: tuple[Rule, ...]

    def inverse(self) -> NameMap:
        """The inverse map."""
        return NameMap(tuple(back for rule in self.rules if (back := rule.inverse()) is not None))

    def apply(self, tensors: Mapping[str, LazyTensor]) -> Renamed:
        """The new names of these tensors."""
        places: dict[str, tuple[str, bool]] = {}
        found = {name: self._first(name) for name in tensors}
        names = {name: new for name, (_, new) in found.items() if new is not None}
        twice = [new for new, count in Counter(names.values()).items() if count > 1]
        if twice:
            olds = [name for name, new in names.items() if new == twice[0]]
            raise CheckpointError(
                f"{' and '.join(olds)} would both be named {twice[0]} ({len(twice)} such names). "
                "Nothing was written; give them different names."
            )
        for name, new in names.items():
            rule = found[name][0]
            transposed = rule is not None and rule.transpose and len(tensors[name].shape) == 2
            places[new] = (name, transposed)
        unmatched = tuple(name for name, (rule, _) in found.items() if rule is None)
        return Renamed(places, unmatched, tuple(name for name in found if name not in names))

    def _first(self, name: str) -> tuple[Rule | None, str | None]:
        for rule in self.rules:
            match = re.fullmatch(rule.pattern, name)
            if match:
                return rule, None if rule.to is None else match.expand(rule.to)
        return None, name


def name_map(given: str) -> NameMap:
    """The rules of a JSON file, or one of polyak's own maps.

    Args:
        given: a path, "torch-to-paddle" or "paddle-to-torch".

    Examples:
        >>> name_map("torch-to-paddle").rules[0]
        Rule(pattern='(|.*\\\\.)running_mean', to='\\\\1_mean', transpose=False)
        >>> name_map("paddle-to-torch").rules[0]
        Rule(pattern='(|.*\\\\.)_mean', to='\\\\1running_mean', transpose=False)
    """
    if given in ("torch-to-paddle", "paddle-to-torch"):
        there = NameMap(tuple(_rule(fields) for fields in _TORCH_TO_PADDLE))
        return there if given == "torch-to-paddle" else there.inverse()
    try:
        data = json.loads(Path(given).read_text(encoding="utf-8"))
        return NameMap(tuple(_rule(fields) for fields in data["layers"]))
    except OSError as error:
        raise ConfigError(
            f"names={given!r}: no such file ({error}), and neither torch-to-paddle nor paddle-to-torch."
        ) from error
    except (ValueError, KeyError, TypeError, re.error, RecursionError) as error:
        raise ConfigError(f'names={given!r}: must hold {{"layers": [rules]}}: {error!r}.') from error


def _rule(fields: Mapping[str, Any]) -> Rule:
    unknown = set(fields) - {"from", "to", "transpose"}
    to, transpose = fields["to"], fields.get("transpose", False)
    if unknown or not isinstance(to, (str, type(None))) or not isinstance(transpose, bool):
        raise ValueError(f"{dict(fields)} is no rule")
    re.compile(fields["from"]).sub(to or "", "")  # refuses groups that are not there
    return Rule(fields["from"], to, transpose)


def _pieces(pattern: str) -> tuple[Sequence[str], Sequence[str]]:
    """The plain texts of a pattern and the groups between them."""
    texts, groups, depth, escaped = [""], [""], 0, False
    for letter in pattern:
        if depth:
            groups[-1] += letter
        elif escaped and not letter.isalnum():
            texts[-1] += letter
        elif letter == "(":
            groups[-1] += letter
        elif letter != "\\" and (escaped or letter in ".^$*+?{}[]|)"):
            raise _not_plain(pattern)
        elif letter != "\\":
            texts[-1] += letter
        depth += 0 if escaped else (letter == "(") - (letter == ")")
        if depth == 0 and groups[-1]:
            texts.append("")
            groups.append("")
        escaped = letter == "\\" and not escaped
    if re.compile(pattern).groups != len(groups) - 1:
        raise _not_plain(pattern)
    return texts, groups[:-1]


def _not_plain(pattern: str) -> ConfigError:
    return ConfigError(
        f"the pattern {pattern!r} cannot be inverted: outside of groups it must be plain text with its "
        "dots escaped, and no group may lie in another."
    )
