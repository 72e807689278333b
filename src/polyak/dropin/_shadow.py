"""Averages by name of the parameters that need gradients, and the way into the model and back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from polyak._core.swap_guard import finished
from polyak.dropin._lists import Lists
from polyak.errors import ConfigError, PlanError, SwapError
from polyak.schedules.decay import check_beta
from polyak.torch.swap import ModelExchange


class Shadow:
    """shadow: averages by name.  backup: the raw weights while the model holds the averages."""

    def __init__(self, model: nn.Module, argument: str, beta: float) -> None:
        check_beta(argument, beta)
        self.shadow = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        if not self.shadow:
            raise ConfigError(
                "model: none of its parameters needs a gradient, so there is nothing to average."
            )
        self.backup: dict[str, Tensor] = {}
        self._release: Callable[[], object] | None = None
        self._lists = Lists()

    def _follow(self, model: nn.Module, beta: float) -> None:
        self._refuse_while_applied("update")
        lives = self._lives(model, joining=True)
        self._lists.update(list(self.shadow.values()), list(lives.values()), [False] * len(lives), beta)

    def _put_in(self, model: nn.Module) -> None:
        """The model points at the averages' memory where dtype and device agree: nothing is copied."""
        self._refuse_while_applied("apply")
        lives = self._lives(model)
        memories = [self.shadow[name].to(live.device, live.dtype) for name, live in lives.items()]
        names = {id(live): name for name, live in lives.items()}
        exchange = ModelExchange(names, list(lives.values()), memories)
        try:
            self.backup = {name: live.data for name, live in lives.items()}
            self._release = weakref.finalize(self, exchange.forget)
            exchange.enter(exchange)  # a block that only restore() ends
        except BaseException:
            self._take_out(model)
            raise

    def _take_out(self, model: nn.Module) -> None:
        if not self.backup:
            raise SwapError("restore: the model holds its raw weights already; apply the averages first.")
        lives = self._lives(model)

        def back() -> None:
            for name, raw in self.backup.items():
                lives[name].data = raw
            if self._release is not None:
                self._release()
            self.backup, self._release = {}, None

        finished(back)

    def _refuse_while_applied(self, verb: str) -> None:
        if self.backup:
            raise SwapError(
                f"{verb}: the model holds the averages, not the raw weights. Call restore() first."
            )

    def _lives(self, model: nn.Module, joining: bool = False) -> dict[str, nn.Parameter]:
        """The parameters the averages follow; ones unfrozen since then join with the value they have."""
        named = dict(model.named_parameters())
        if joining:
            fresh = {n: p for n, p in named.items() if p.requires_grad and n not in self.shadow}
            self.shadow.update({n: p.detach().clone() for n, p in fresh.items()})
        if missing := [name for name in self.shadow if name not in named]:
            raise PlanError(f"{missing[0]} is missing in the model; its average is kept here.")
        return {name: named[name] for name in self.shadow}

    def _become(self, averages: Mapping[str, Tensor]) -> None:
        if averages.keys() != self.shadow.keys():
            odd = sorted(averages.keys() ^ self.shadow.keys())
            raise ConfigError(
                f"state_dict: {odd[0]} is only on one side; averaged are {', '.join(self.shadow)}."
            )
        for name, mine in self.shadow.items():
            if averages[name].shape != mine.shape:
                found = tuple(averages[name].shape)
                raise ConfigError(f"state_dict: {name} is {found}; here it is {tuple(mine.shape)}.")
        for name, mine in self.shadow.items():
            mine.copy_(averages[name])
