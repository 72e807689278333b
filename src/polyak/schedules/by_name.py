"""A decay for each tensor, by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from polyak.errors import ConfigError
from polyak.schedules.decay import Decay, DecayLike, SeveralDecays, as_decay, warn_if_rate


@dataclass(frozen=True, init=False, repr=False)
class ByName(SeveralDecays):
    """One average whose tensors have different decays, chosen by their names.

    ``avgₜ[n] = βₜ(p)·avgₜ₋₁[n] + (1-βₜ(p))·θₜ[n]``, p the first pattern that matches the tensor's name n.

    For parts of a model that learn at different speeds: embeddings that are all but frozen, a head that
    follows a stream. It is one average: evaluated, saved, loaded and copied as a whole, at the cost of one.

    Args:
        decays: a decay for each pattern, a name or a glob (``"*.attn.*"``); the first that matches decides.
            Names are the model's own, without the prefixes of wrappers; of tied tensors any name counts.

    Raises:
        ConfigError: there is no pattern, or a value is no decay. When an EMA is made: an averaged tensor is
            matched by none, or a pattern decides none.

    Examples:
        >>> import torch, polyak
        >>> model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(9, 4), "head": torch.nn.Linear(4, 2)})
        >>> ema = polyak.EMA(model, ByName({"embed.*": 0.9999, "*": polyak.HalfLife(steps=100)}))
        >>> ema.update()
        >>> round(ema.tracks["average"].profile_of("head.bias").initial_weight, 4)
        0.9931

    Source: polyak's own.
    """

    rules: tuple[tuple[str, Decay], ...]

    def __init__(self, decays: Mapping[str, DecayLike]) -> None:
        if not isinstance(decays, Mapping) or not decays:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f'ByName({decays!r}): must be a decay for each pattern, {{"*": 0.9999}}.')
        for pattern in decays:
            if type(pattern) is not str:
                raise ConfigError(f"ByName({decays!r}): {pattern!r} must be a name or a glob.")
        rules = tuple([(pattern, as_decay(given)) for pattern, given in decays.items()])
        object.__setattr__(self, "rules", rules)
        for given in decays.values():
            warn_if_rate(given, stacklevel=2)

    def __repr__(self) -> str:
        return f"ByName({{{', '.join(f'{pattern!r}: {decay}' for pattern, decay in self.rules)}}})"

    @property
    def decays(self) -> dict[str, Decay]:
        """The decays by pattern, in the order in which they are tried."""
        return dict(self.rules)

    def pattern_of(self, names: Sequence[str]) -> str:
        """The pattern that decides for a tensor with these names.

        Raises:
            ConfigError: none matches.
        """
        for pattern, _ in self.rules:
            if matches((pattern,), names):
                return pattern
        patterns = ", ".join(repr(pattern) for pattern, _ in self.rules)
        raise ConfigError(
            f"{names[0]} is matched by no pattern of ByName ({patterns}), so it has no decay. End with "
            '"*": …, which matches the rest, or leave the tensor out with exclude=.'
        )


def matches(patterns: Iterable[str], names: Sequence[str]) -> bool:
    """Whether a pattern equals one of the names, which may contain brackets, or matches it as a glob."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns for name in names)
