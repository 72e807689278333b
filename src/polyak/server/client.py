"""What workers and readers hold: pushes kept until they are on disk, and versions that are pulled."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from polyak._dtypes import Array
from polyak._files.header import Header
from polyak._files.write import write_arrays
from polyak.errors import ConfigError, ServerError
from polyak.schedules import Decay, Profile
from polyak.server.cluster import Unreachable, ask, ask_all, attach, end, find, put
from polyak.server.layout import Layout, compressed, wire
from polyak.server.ledger import Answer, Push, Standing, patiently
from polyak.server.shard import Message
from polyak.server.tensors import Model, values_of, write_into


class Receipt(NamedTuple):
    """The answer to a push.

    accepted: whether the average contains it.
    id: of the push; ids of a worker rise.
    staleness: steps it was behind the newest.
    version: pushes counted when it was answered.
    reason: why it was refused; "" otherwise.
    """

    accepted: bool
    id: int
    staleness: int
    version: int
    reason: str = ""


@dataclass(frozen=True)
class SharedAverage:
    """A version of the shared average.

    Args:
        tensors: NumPy arrays by name; floats as float32, or float64 where the first value was.
        version: how many pushes it contains.
        step: the newest step pushed.
        profile: the weight of each step; None if no push has any.
        decay: the server's schedule.
    """

    tensors: Mapping[str, Array]
    version: int
    step: int
    profile: Profile | None
    decay: Decay

    def __repr__(self) -> str:
        return f"SharedAverage(version {self.version} at step {self.step}; {len(self.tensors)} tensors)"

    def save(self, path: str | Path) -> None:
        """Write it as an average of polyak, which ``polyak.load`` and every safetensors reader open.

        Raises:
            CheckpointError: an error of the operating system.
        """
        header = Header("average", self.step, self.decay, self.profile, "average", "")
        write_arrays(path, self.tensors, header.to_metadata())


@dataclass
class _Pending:
    """A push that is not on disk: its values in the object store, for each shard."""

    id: int
    values: list[Any]
    step: int
    samples: float
    profile: str
    nbytes: int
    answer: Answer | None = None


class Client:
    """A worker that pushes, or a reader that pulls.

    A push is kept here, in the object store of this machine, until it is on disk at the server, and is sent
    again if a part of the server was started again. At most ``unacknowledged`` pushes and ``max_bytes`` are
    kept; then ``push`` waits.

    Args:
        address: of the server, such as "192.0.2.1:6379"; None or "auto" for this machine's cluster.
        token: of the server; None to use Ray's own settings.
        name: of the average.
        worker: this worker's name, which no other has at the same time; its ids go on from those counted
            before. None for a reader.
        unacknowledged: pushes that may be under way, ≥ 1.
        max_bytes: of these pushes together; one push may be larger.
        compress: "bf16" sends parameters rounded to bfloat16: half the bytes, and 3 digits.
        timeout: seconds to wait for a server that does not answer, before ``ServerError``.

    Raises:
        ConfigError: an argument is invalid.
        ServerError: no such server, a wrong token, or it does not answer.
    """

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        *,
        name: str = "average",
        worker: str | None = None,
        unacknowledged: int = 64,
        max_bytes: int = 1 << 28,
        compress: Literal["bf16"] | None = None,
        timeout: float = 60.0,
    ) -> None:
        if unacknowledged < 1 or max_bytes < 1:
            raise ConfigError(f"unacknowledged={unacknowledged}, max_bytes={max_bytes}: must be at least 1.")
        if compress not in ("bf16", None):
            raise ConfigError(f'compress={compress!r}: must be "bf16" or None.')
        self.worker, self._name, self._compress, self._timeout = worker, name, compress, timeout
        self._most, self._most_bytes = unacknowledged, max_bytes
        self._session = time.time_ns()
        self._began = attach(address, token)
        self._ledger = find(f"{name}/ledger")
        about = self._patiently("about", None)
        self._layout = Layout.from_config(about["layout"])
        self._pieces = self._layout.divided(about["shards"])
        self._shards = [find(f"{name}/{i}") for i in range(len(self._pieces))]
        self._pending: list[_Pending] = []
        self._counted = self._patiently("standing", worker).counted if worker is not None else 0
        self._last = self._counted

    def push(
        self,
        model: Model,
        *,
        step: int | None = None,
        samples: float = 1.0,
        profile: Profile | None = None,
        id: int | None = None,
    ) -> Receipt:
        """Count parameters in the shared average: ``A ← A + (m/M')·(θ-A)``.

        Args:
            model: a torch module, a Paddle layer, arrays or tensors by name, an average from ``polyak.load``,
                or a file; with the names, shapes and kinds of the server's first value.
            step: the training step at which these were the parameters, ≥ 1, in the unit of the server's
                schedule; that of a file or average if it has one.
            samples: n > 0, in which the weight is proportional.
            profile: for a pushed average, the weight of each step in it; that of a file or average.
            id: above this worker's last; by default the next number. After a crash the same id again is
                counted once.

        Returns:
            Whether it was counted, how stale it was, and its id. One that was counted before is accepted.

        Raises:
            ServerError: the push does not fit or is not finite: nothing was changed. Or the server does not
                answer: push again with the same ``id``, and it is counted once.
            ConfigError: an argument is missing or invalid.
        """
        if self.worker is None:
            raise ConfigError("push: this client is a reader; give it a name, Client(…, worker=…).")
        values = values_of(model)
        step = values.step if step is None else step
        profile = values.profile if profile is None else profile
        if step is None:
            raise ConfigError("push: step= is missing, the training step of these parameters.")
        number = self._last + 1 if id is None else id
        if any(one.id >= number for one in self._pending):
            raise ConfigError(f"push: id={number} must be above this client's last, {self._last}.")
        flat = self._layout.flat(values.arrays)
        nbytes = self._layout.nbytes // (2 if self._compress else 1)
        self._make_room(nbytes)
        text = "" if profile is None else profile.to_json()
        pending = _Pending(number, self._put(flat), step, samples, text, nbytes)
        self._pending.append(pending)
        self._last = max(self._last, number)
        try:
            self._send()
        except BaseException:
            # It may have been counted all the same. Its id is used up: to be sure, push again with this id.
            self._pending = [one for one in self._pending if one is not pending]
            raise
        answer = pending.answer
        assert answer is not None
        accepted = answer.outcome in ("counted", "repeated")
        return Receipt(accepted, number, answer.staleness, answer.version, answer.reason)

    def flush(self) -> None:
        """Return when all that was pushed is on disk: acknowledged.

        Raises:
            ServerError: the server does not answer. Pushes are kept; flush again.
            CheckpointError: its disk is full.
        """
        until = time.monotonic() + self._timeout
        while self._pending:
            self._send()
            self._take(self._patiently("flush", self.worker))
            if self._pending and time.monotonic() > until:
                raise ServerError(
                    f"flush: {len(self._pending)} pushes are not on disk after {self._timeout:g} s."
                )

    @property
    def unacknowledged(self) -> list[int]:
        """The ids of pushes that are not known to be on disk."""
        return [one.id for one in self._pending]

    def pull(self, into: Model | None = None, *, version: int | None = None) -> SharedAverage:
        """A version of the average, from disk.

        Args:
            into: a module, a layer or a mapping whose tensors are overwritten with it.
            version: which one; by default the newest.

        Returns:
            Its tensors, version, step and profile.

        Raises:
            ServerError: the version is gone, or the server does not answer.
        """
        until = time.monotonic() + self._timeout
        while True:
            about = self._patiently("about", version)
            try:
                pulled = self._read(about)
                break
            except (Unreachable, ServerError) as error:
                # A shard was away, or the newest version was replaced while it was read.
                lasting = not isinstance(error, Unreachable) and version is not None
                if lasting or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        if into is not None:
            write_into(into, pulled.tensors)
        return pulled

    def follow(self, every: float = 5.0) -> Iterator[SharedAverage]:
        """Each newer version that is there when this one looks, none twice; for a ``for`` loop.

        Args:
            every: seconds between two looks, > 0.

        Yields:
            The newest version, if it is newer than the last one.

        Raises:
            ServerError: the server does not answer.
        """
        seen = -1
        while True:
            if self._patiently("newest") > seen:
                newest = self.pull()
                seen = newest.version
                yield newest
            time.sleep(every)

    def metrics(self) -> dict[str, float]:
        """Figures of the server: versions, refusals by reason, staleness, bytes.

        Raises:
            ServerError: the server does not answer.
        """
        return self._patiently("metrics")

    def close(self) -> None:
        """Flush, and disconnect this process from the cluster if this client connected it."""
        self.flush()
        if self._began:
            end()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()

    def _put(self, flat: Mapping[str, Array]) -> list[Any]:
        """For each shard its part of the values, in the object store."""
        out: list[Any] = []
        for pieces in self._pieces:
            arrays = [flat[piece.field.name][piece.begin : piece.end] for piece in pieces]
            if self._compress:
                arrays = [
                    compressed(a) if p.field.averaged else a for p, a in zip(pieces, arrays, strict=True)
                ]
            wired = [wire(array) for array in arrays]
            out.append(
                put(Message(self._layout.digest, [name for name, _ in wired], [raw for _, raw in wired]))
            )
        return out

    def _make_room(self, nbytes: int) -> None:
        if self._pending and (
            len(self._pending) >= self._most
            or sum(one.nbytes for one in self._pending) + nbytes > self._most_bytes
        ):
            self.flush()

    def _send(self) -> None:
        """Send, in order, all pending pushes that are not counted; after a gap there are more of them."""
        until = time.monotonic() + self._timeout
        while missing := [one for one in self._pending if one.id > self._counted or one.answer is None]:
            one = missing[0]
            try:
                answer = self._deliver(one)
            except Unreachable:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
                continue
            if answer.outcome != "gap":
                one.answer = one.answer or answer
            if answer.outcome == "refused":
                self._pending.remove(one)
            self._take(answer.standing)

    def _deliver(self, one: _Pending) -> Answer:
        staged = [
            (shard, (self.worker, one.id, value))
            for shard, value in zip(self._shards, one.values, strict=True)
        ]
        ask_all(staged, "stage", timeout=self._timeout)
        push = Push(
            str(self.worker), self._session, one.id, self._counted, one.step, one.samples, one.profile,
            one.nbytes, one.answer is not None,
        )  # fmt: skip
        return ask(self._ledger, "count", push, timeout=self._timeout)

    def _take(self, standing: Standing) -> None:
        """Note what the ledger has, and forget what is on disk."""
        self._counted = standing.counted
        self._pending = [one for one in self._pending if one.id > standing.durable or one.answer is None]

    def _read(self, about: Mapping[str, Any]) -> SharedAverage:
        calls = [(shard, (about["version"],)) for shard in self._shards]
        kept: dict[str, list[Array]] = {}
        for pieces, arrays in zip(self._pieces, ask_all(calls, "read", timeout=self._timeout), strict=True):
            for piece, array in zip(pieces, arrays, strict=True):
                kept.setdefault(piece.field.name, []).append(array)
        tensors = self._layout.assembled(kept)
        return SharedAverage(tensors, about["version"], about["step"], about["profile"], about["decay"])

    def _patiently(self, method: str, *arguments: Any) -> Any:
        """Ask the ledger, also while it starts again."""
        each = self._timeout
        return patiently(lambda: ask(self._ledger, method, *arguments, timeout=each), self._timeout)
