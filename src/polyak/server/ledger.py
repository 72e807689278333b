"""The ledger: which pushes were counted, in which order, and with what weight.

It alone decides, so all shards count the same pushes in the same order. Whatever fails, everything goes back
to the newest version on disk, and the workers send again what that version lacks: they keep each push until
it is on disk. An answer "gap" asks them to.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from polyak._files.locks import lock_folder
from polyak.errors import CheckpointError, ServerError
from polyak.schedules import Decay, Profile
from polyak.server.cluster import Unreachable, ask_all, find
from polyak.server.versions import Record, Versions
from polyak.server.weighting import counted

_PATIENCE = 60.0  # seconds for a shard to answer, or to start again
_SHARE = 10  # at most a tenth of the time goes into writing versions
_LONGEST = 200  # characters of a worker's name
_RECENT = 1000  # pushes whose staleness is in the metrics
_WHOLE = 1 << 53  # steps are below it: float64, in which decays are computed, has all whole numbers up to it
_SAMPLES = 1e9  # of one push

Outcome: TypeAlias = Literal["counted", "repeated", "refused", "gap"]


class Rules(NamedTuple):
    """How a server counts.

    decay: the schedule.
    max_staleness, max_ahead: steps behind and ahead of the newest that are taken.
    keep: versions on disk.
    every: seconds between two, at least.
    """

    decay: Decay
    max_staleness: int
    max_ahead: int
    keep: int
    every: float


class Push(NamedTuple):
    """A push without its values, which are at the shards.

    session: of the client; the newest of a worker is the one that counts.
    before: the worker's highest id that the client knows to be counted.
    profile: of a pushed average, as JSON; "" for raw parameters.
    again: it was taken once, before the servers went back to an older version.
    """

    worker: str
    session: int
    id: int
    before: int
    step: int
    samples: float
    profile: str
    nbytes: int
    again: bool


class Standing(NamedTuple):
    """A worker's highest id that is counted, and that is on disk."""

    counted: int
    durable: int


class Answer(NamedTuple):
    """To a push; ``reason`` of a refusal."""

    outcome: Outcome
    standing: Standing
    version: int
    staleness: int
    reason: str = ""


class Ledger:
    """Counts pushes; one for each average.

    Args:
        folder: of the server.
        name: of the average; the shards' actors are ``name/0``, ``name/1`` …
        rules: how to count.
    """

    def __init__(self, folder: str, name: str, rules: Rules) -> None:
        advice = "give another folder, or stop that server"
        # A ledger that was killed may take a moment to be gone.
        self._lock = lock_folder(Versions(folder).folder, ".server.lock", 10.0, f"{folder} is served", advice)
        self._versions, self._name, self._rules = Versions(folder), name, rules
        self._written = self._versions.newest() or _empty(folder)
        self._record = self._versions.record(self._written.version)
        self._staleness = deque[int](maxlen=_RECENT)
        self._shown: dict[str, Any] = {"version": None}  # computed for a reader: the profile takes a while
        self._settled, self._wrote_at, self._cost = False, -float("inf"), 0.0

    def count(self, push: Any) -> Answer:
        """Count a push that all shards have staged, unless it was before.

        Raises:
            ServerError: it is not what a client sends; nothing was changed.
        """
        push, profile = _checked(push)
        self._settle()
        highest = self._record.ids.get(push.worker, 0)
        if push.session < self._record.sessions.get(push.worker, 0):
            raise ServerError(
                f"worker={push.worker!r}: another client has this name since. Each worker needs its own."
            )
        if push.id <= highest:
            return self._answer("repeated", push)
        if push.before != highest:
            return self._answer("gap", push)
        staleness = max(0, self._record.total.newest - push.step)
        reason = "" if push.again else self._refusal(push)
        if reason:
            return self._answer("refused", push, staleness, reason)
        total, share = counted(self._record.total, self._rules.decay, push.step, push.samples)
        version = self._record.version + 1
        applied = (version, push.worker, push.id, share, staleness == 0)
        if not self._all("apply", *applied):
            return self._answer("gap", push)
        self._record.version, self._record.total = version, total
        self._record.ids[push.worker], self._record.sessions[push.worker] = push.id, push.session
        self._record.contributions.add(self._rules.decay, push.step, push.samples, profile)
        self._note("bytes", push.nbytes)
        self._staleness.append(staleness)
        self._write_if_due()
        return self._answer("counted", push, staleness)

    def flush(self, worker: str) -> Standing:
        """Write all that is counted to disk.

        Raises:
            CheckpointError: the disk takes no more. Nothing is lost; try again.
        """
        self._settle()
        if self._record.version > self._written.version:
            self._write()
        return self._standing(worker)

    def standing(self, worker: str) -> Standing:
        """Of a worker that begins, or begins again."""
        self._settle()
        return self._standing(worker)

    def about(self, version: int | None) -> dict[str, Any]:
        """A version on disk, the newest if None: its number, step, profile, decay, layout, shards.

        Raises:
            ServerError: this version is gone.
        """
        self._settle()
        if version is None:
            self._write_if_due()
        record = self._written if version is None else self._versions.record(version)
        if self._shown["version"] != record.version:
            self._shown = self._about(record)
        return self._shown

    def _about(self, record: Record) -> dict[str, Any]:
        profile = record.contributions.profile(self._rules.decay, record.total)
        if record.version == 0:
            profile = Profile.raw(record.step)
        return {
            "version": record.version,
            "step": record.total.newest,
            "profile": profile,
            "decay": self._rules.decay,
            "layout": record.layout.to_config(),
            "shards": record.shards,
        }

    def newest(self) -> int:
        """The newest version on disk; what is counted is written first, if that is due."""
        self._settle()
        self._write_if_due()
        return self._written.version

    def metrics(self) -> dict[str, float]:
        """Figures since the average began; those of staleness are over the last 1000 pushes."""
        recent = np.array(self._staleness or [0])
        counts = {key: self._record.counts.get(key, 0) for key in _COUNTS}
        return {
            "version": self._record.version,
            "version_on_disk": self._written.version,
            "step": self._record.total.newest,
            "workers": len(self._record.ids),
            **counts,
            "staleness_median": float(np.median(recent)),
            "staleness_90_percent": float(np.quantile(recent, 0.9)),
            "staleness_largest": int(recent.max()),
            "seconds_to_write": self._cost,
        }

    def folder(self) -> str:
        """Of the server."""
        return str(self._versions.folder)

    def _refusal(self, push: Push) -> str:
        newest = self._record.total.newest
        if push.step < newest - self._rules.max_staleness:
            self._note("too_stale")
            return f"step {push.step} is more than max_staleness={self._rules.max_staleness} behind {newest}"
        newest = max(newest, self._record.step)
        if push.step > newest + self._rules.max_ahead:
            self._note("too_far_ahead")
            return (
                f"step {push.step} is more than max_ahead={self._rules.max_ahead} ahead of {newest}: it "
                "could leave no weight to all before it. For a run under way start the server with step="
            )
        return ""

    def _answer(self, outcome: Outcome, push: Push, staleness: int = 0, reason: str = "") -> Answer:
        if outcome in ("repeated", "gap"):
            self._note(outcome)
        return Answer(outcome, self._standing(push.worker), self._record.version, staleness, reason)

    def _standing(self, worker: str) -> Standing:
        return Standing(self._record.ids.get(worker, 0), self._written.ids.get(worker, 0))

    def _note(self, what: str, amount: int = 1) -> None:
        self._record.counts[what] = self._record.counts.get(what, 0) + amount

    def _write_if_due(self) -> None:
        due = time.monotonic() - self._wrote_at > max(self._rules.every, _SHARE * self._cost)
        if due and self._record.version > self._written.version:
            with suppress(CheckpointError):  # such as a full disk: flush raises it
                self._write()

    def _write(self) -> None:
        """Make what is counted a version on disk; on failure go back to the last one."""
        begun = time.monotonic()
        try:
            if self._all("write", self._record.version):
                self._versions.write_record(self._record)
                self._written = Record.from_json(self._record.to_json())
                self._versions.prune(self._rules.keep)
        finally:
            self._wrote_at = time.monotonic()
            self._cost = self._wrote_at - begun

    def _all(self, method: str, *arguments: Any) -> bool:
        """Call all shards. If one fails, all go back to the last version on disk."""
        try:
            self._ask(method, *arguments)
        except ServerError:
            self._note("returns_to_disk")
            self._settled = False
            self._settle()
            return False
        return True

    def _ask(self, method: str, *arguments: Any) -> None:
        shards = [find(f"{self._name}/{i}") for i in range(self._record.shards)]
        ask_all([(shard, arguments) for shard in shards], method, timeout=_PATIENCE)

    def _settle(self) -> None:
        """Bring everything to the newest version on disk, when this ledger or a shard began again.

        Raises:
            ServerError: a shard did not come back.
        """
        if self._settled:
            return
        counts = self._record.counts
        self._record = Record.from_json(self._written.to_json())
        self._record.counts = counts
        patiently(lambda: self._ask("rewind", self._written.version), _PATIENCE)
        self._settled = True


_COUNTS = ("bytes", "repeated", "gap", "too_stale", "too_far_ahead", "returns_to_disk")


def patiently(call: Callable[[], Any], patience: float) -> Any:
    """Call until it answers; after ``patience`` seconds raise the last error."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with suppress(Unreachable):
            return call()
        time.sleep(0.1)
    return call()


def _empty(folder: str) -> Record:
    raise ServerError(f"{folder} holds no version of an average: start the server first.")


def _checked(push: Any) -> tuple[Push, Profile | None]:
    """A push and the profile in it, or a ``ServerError`` that says what is wrong with it."""
    if type(push) is not Push:
        raise ServerError(f"a push must be arrays and numbers, not {type(push).__name__}.")
    where = f"push {push.id!r:.40} of {push.worker!r:.80}"
    named = type(push.worker) is str and 0 < len(push.worker) <= _LONGEST
    whole = all(type(n) is int for n in (push.session, push.id, push.before, push.step, push.nbytes))
    if not (named and whole and push.id >= 1 and min(push.session, push.nbytes) >= 0):
        raise ServerError(f"{where}: a worker has a name and whole numbers, its ids are ≥ 1 and rise.")
    if not 1 <= push.step < _WHOLE:
        raise ServerError(f"{where}: step={push.step!r:.40} must be a whole number from 1 to 2⁵³.")
    if type(push.samples) not in (int, float) or not 0 < push.samples <= _SAMPLES:
        raise ServerError(f"{where}: samples={push.samples!r:.40} must be above 0 and at most {_SAMPLES:g}.")
    if type(push.profile) is not str or type(push.again) is not bool:
        raise ServerError(f"{where}: its profile must be JSON.")
    return push, _profile(push, where) if push.profile else None


def _profile(push: Push, where: str) -> Profile:
    try:
        profile = Profile.from_json(push.profile)
    except CheckpointError as error:
        raise ServerError(f"{where}: {error}") from error
    if not profile.known or abs(profile.total - 1) > 1e-6 or profile.steps > push.step:
        raise ServerError(
            f"{where}: its profile must be known, add up to 1 and end at step {push.step} at the latest; it "
            f"adds up to {profile.total:.6g} and ends at {profile.steps}."
        )
    return profile
