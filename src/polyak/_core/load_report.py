"""What loading a state found to differ."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """The mismatches that ``load_state_dict(strict=False)`` found, by how they were handled."""

    schedules: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])
    unexpected: list[str] = field(default_factory=list[str])
    converted: list[str] = field(default_factory=list[str])
    resized: list[str] = field(default_factory=list[str])

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        lines = {
            "schedules": "kept this EMA's own",
            "missing": "not in the state, left as they are",
            "unexpected": "in the state only, ignored",
            "converted": "of another dtype, converted",
            "resized": "of another shape or kind, left as they are",
        }
        return "; ".join(f"{', '.join(vars(self)[k])}: {what}" for k, what in lines.items() if vars(self)[k])
