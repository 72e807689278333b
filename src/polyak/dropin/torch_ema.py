"""torch_ema's ``ExponentialMovingAverage``, as of torch_ema 0.3."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyak._core.swap_guard import Block
from polyak.dropin._follower import Follower, matching, moved, overwrite, restored, tensors_in
from polyak.errors import ConfigError
from polyak.schedules import Capped
from polyak.schedules.decay import beta_at, check_beta
from polyak.torch.swap import exchange_of

Parameters = Iterable[nn.Parameter] | None


class ExponentialMovingAverage:
    """An average of a list of parameters.

    ``avg ← avg + (1-β)·(θ - avg)``, ``βₜ = min(decay, (1+t)/(10+t))`` under ``use_num_updates``

    The arguments are torch_ema's; of ``parameters``, trained or not, only weak references are kept.

    Raises:
        ConfigError: ``decay`` is outside [0, 1].

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> ema = ExponentialMovingAverage(model.parameters(), decay=0.995)
        >>> ema.update()
        >>> with ema.average_parameters():
        ...     prediction = model(torch.ones(1, 2))

    Source: torch_ema 0.3.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], decay: float, use_num_updates: bool = True
    ) -> None:
        check_beta("decay", decay)
        self.decay = decay
        self.num_updates: int | None = 0 if use_num_updates else None
        given = list(parameters)
        self.shadow_params: list[Tensor] = [p.clone().detach() for p in given]
        self.collected_params: list[Tensor] | None = None
        self._params_refs = [weakref.ref(p) for p in given]
        self._follower = Follower()

    def update(self, parameters: Parameters = None) -> None:
        """Update the averages with the current parameters."""
        lives = self._lives(parameters)
        beta = self.decay
        if self.num_updates is not None:
            self.num_updates += 1
            beta = beta_at(Capped(self.decay), self.num_updates)
        self._follower.update(self.shadow_params, lives, beta)

    def copy_to(self, parameters: Parameters = None) -> None:
        """Overwrite the parameters with their averages."""
        overwrite(self._lives(parameters), self.shadow_params)

    def store(self, parameters: Parameters = None) -> None:
        """Keep a copy of the parameters for ``restore``."""
        self.collected_params = [live.detach().clone() for live in self._lives(parameters)]

    def restore(self, parameters: Parameters = None) -> None:
        """Overwrite the parameters with the copy.

        Raises:
            RuntimeError: there is none.
        """
        overwrite(self._lives(parameters), restored(self.collected_params))

    def average_parameters(self, parameters: Parameters = None) -> Block[None]:
        """The parameters hold their averages while the block runs. Nothing is copied; it must not nest."""
        return Block(None, lambda: exchange_of(self._lives(parameters), self.shadow_params))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        """Move the averages and the stored weights; floating tensors change their dtype too."""
        self.shadow_params = moved(self.shadow_params, device, dtype)
        if self.collected_params is not None:
            self.collected_params = moved(self.collected_params, device, dtype)

    def state_dict(self) -> dict[str, Any]:
        """The complete state under torch_ema's keys; the tensors are not copies."""
        names = ("decay", "num_updates", "shadow_params", "collected_params")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of this class or of torch_ema's.

        Raises:
            ConfigError: a value is of the wrong kind. Nothing is changed then.
        """
        state = state_dict
        check_beta("decay", state["decay"])
        if type(state["num_updates"]) not in (int, type(None)):
            raise ConfigError(f"num_updates={state['num_updates']!r}: must be a whole number or None.")
        shadows = tensors_in("shadow_params", state["shadow_params"], self.shadow_params)
        collected = state["collected_params"]
        if collected is not None:
            collected = self._beside(tensors_in("collected_params", collected, shadows))
        self.decay, self.num_updates = state["decay"], state["num_updates"]
        self.shadow_params, self.collected_params = self._beside(shadows), collected

    def _beside(self, tensors: list[Tensor]) -> list[Tensor]:
        lives = [reference() for reference in self._params_refs]
        if any(live is None for live in lives):
            return tensors
        pairs = [(t, p) for t, p in zip(tensors, lives, strict=True) if p is not None]
        # Never narrower than it was: a float32 average of bfloat16 parameters must survive a resume.
        return [t.to(p.device, torch.promote_types(t.dtype, p.dtype)) for t, p in pairs]

    def _lives(self, parameters: Parameters) -> Sequence[nn.Parameter]:
        given = [r() for r in self._params_refs] if parameters is None else list(parameters)
        lives = [p for p in given if p is not None]
        if len(lives) != len(given):
            raise ConfigError("a parameter this average was made for no longer exists: pass parameters.")
        return matching(lives, self.shadow_params)
