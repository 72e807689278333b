"""Starting and stopping a server: its folder, its token, its actors."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from polyak._files.write import rights_of
from polyak.errors import ConfigError, ServerError
from polyak.schedules.decay import DecayLike, as_decay, check, check_integer
from polyak.server.client import Client, SharedAverage
from polyak.server.cluster import address as address_of_cluster
from polyak.server.cluster import ask, attach, begin, connected, create, end, find, kill
from polyak.server.layout import Layout
from polyak.server.ledger import Ledger, Rules, patiently
from polyak.server.shard import Shard
from polyak.server.tensors import Model, Values, values_of
from polyak.server.versions import Record, Versions

TOKEN = "token"  # the file in a server's folder
_PATIENCE = 120.0  # seconds for actors to start
_BYTES = 32  # of a token


class Server:
    """A running server; made by ``start``. Leaving its ``with`` stops it.

    Args:
        address: for clients.
        token: for clients; "" in a cluster that this process did not begin.
        folder: of the versions.
        name: of the average.
    """

    def __init__(
        self, address: str, token: str, folder: Path, name: str, began: bool, attached: bool
    ) -> None:
        self.address, self.token, self.folder, self.name = address, token, folder, name
        self._began, self._attached = began, attached
        self._last: SharedAverage | None = None

    def client(self, worker: str | None = None, **options: Any) -> Client:
        """A client in this process; ``options`` as of ``Client``.

        Returns:
            A worker, or a reader if ``worker`` is None.
        """
        return Client(self.address, name=self.name, worker=worker, **options)

    def metrics(self) -> dict[str, float]:
        """Figures of the server: versions, refusals by reason, staleness, bytes.

        Raises:
            ServerError: it does not answer.
        """
        return self.client().metrics()

    def stop(self) -> SharedAverage:
        """Write everything to disk, the newest version also as ``name.safetensors``, and end the actors.

        Returns:
            That version; again, if it was stopped before.

        Raises:
            ServerError: it does not answer.
            CheckpointError: the disk is full; the server goes on.
        """
        if self._last is not None:
            return self._last
        patiently(lambda: ask(find(f"{self.name}/ledger"), "flush", "", timeout=_PATIENCE), _PATIENCE)
        last = self.client().pull()
        last.save(self.folder / f"{self.name}.safetensors")
        self._end()
        self._last = last
        return last

    def _end(self) -> None:
        record = Versions(self.folder).newest()
        kill(f"{self.name}/ledger")
        for i in range(record.shards if record else 0):
            kill(f"{self.name}/{i}")
        if self._began or self._attached:
            end()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(
    first: Model,
    decay: DecayLike,
    *,
    folder: str | Path,
    shards: int = 1,
    name: str = "average",
    step: int = 0,
    max_staleness: int = 10_000,
    max_ahead: int = 10_000,
    keep: int = 10,
    every: float = 1.0,
    address: str | None = None,
    token: str | None = None,
    store: int | None = None,
) -> Server:
    """Serve one average that many workers push to: ``avg = Σ m·θ / Σ m``, each θ with its schedule's weight.

    Starts Ray on this machine, or joins a cluster. A folder that holds versions goes on from the newest;
    ``first`` is then compared with it, not used. For one trainer ``polyak.EMA`` does the same alone.

    Args:
        first: a torch module, a Paddle layer, tensors or arrays by name, or a file: names, shapes, and the
            average before the first push. It has no weight afterwards.
        decay: β, a schedule or a function of the step; time is the steps that workers push with.
        folder: for versions and the token. In a cluster of several machines all of them must reach it.
        shards: processes that share the elements, ≥ 1; more are faster for large models.
        name: of the average, several of which can be in one cluster.
        step: the training step of ``first``.
        max_staleness: pushes from more steps before the newest are refused.
        max_ahead: pushes from more steps after the newest are refused. It must be larger than the steps
            between two pushes of a worker.
        keep: versions that stay on disk, ≥ 1; each is as large as the average.
        every: seconds between two versions, at least. A ``flush`` makes one at once.
        address: of a cluster to join; None to begin one that ends with this server, unless this process is
            already connected to one.
        token: of the cluster; None makes one, in the file ``token`` of the folder.
        store: bytes of shared memory for pushes under way, in a cluster begun here; Ray's choice if None.

    Returns:
        The server, with ``address`` and ``token`` for ``Client``.

    Raises:
        ConfigError: an argument is invalid, or the folder holds an average of other tensors or another
            schedule.
        ServerError: the cluster cannot be joined, or the actors do not start.
        CheckpointError: the folder cannot be written.

    The page "A shared average" has examples, which the tests run.

    Source: the weights are those of the schedule's profile; see ``polyak.Profile``.
    """
    rules = Rules(as_decay(decay), max_staleness, max_ahead, keep, every)
    for key, value, least in (
        ("shards", shards, 1), ("step", step, 0), ("max_staleness", max_staleness, 0),
        ("max_ahead", max_ahead, 1), ("keep", keep, 1),
    ):  # fmt: skip
        check_integer(key, value, least)
    check("every", every, "seconds must not be negative", every >= 0)
    if "/" in name or not name:
        raise ConfigError(f"name={name!r}: must not be empty and must not contain a slash.")
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    _prepare(Versions(place), values_of(first), rules, shards, step)
    began, attached, key = _connect(place, address, token, store)
    server = Server(address_of_cluster(), key, place, name, began, attached)
    try:
        _create(server, shards, rules)
    except BaseException:
        server._end()  # pyright: ignore[reportPrivateUsage]
        raise
    return server


def _connect(
    folder: Path, address: str | None, token: str | None, store: int | None
) -> tuple[bool, bool, str]:
    """Whether a cluster was begun, whether one was joined, and the token."""
    if address is None and not connected():
        key = token or _token(folder / TOKEN)
        begin(key, store)
        return True, False, key
    return False, attach(address, token), token or ""


def _create(server: Server, shards: int, rules: Rules) -> None:
    folder = str(server.folder.resolve())
    actors = [create(Shard, f"{server.name}/{i}", folder, i) for i in range(shards)]
    ledger = create(Ledger, f"{server.name}/ledger", folder, server.name, rules)
    served = patiently(lambda: ask(ledger, "folder", timeout=_PATIENCE), _PATIENCE)
    if served != folder:
        raise ServerError(f"name={server.name!r}: a server of this name runs already, on {served}.")
    patiently(lambda: ask(ledger, "standing", "", timeout=_PATIENCE), _PATIENCE)
    del actors


def _prepare(versions: Versions, first: Values, rules: Rules, shards: int, step: int) -> None:
    """Write version 0, or check that the folder's newest goes on with these arguments."""
    layout, config = Layout.of(first.arrays, first.copied), rules.decay.to_config()
    old = versions.newest()
    if old is None:
        bad = [n for n, a in first.arrays.items() if a.dtype.kind in "fc" and not np.isfinite(a).all()]
        if bad:
            raise ConfigError(f"first: {bad[0]} is not finite.")
        versions.write(Record(0, shards, layout, config, step), first.arrays)
        return
    if old.layout != layout:
        differing = min({*old.layout} ^ {*layout})
        raise ConfigError(
            f"folder={str(versions.folder)!r} holds an average of other tensors: {differing.name} is not in "
            "both, or not the same. Give another folder."
        )
    if old.decay != config:
        raise ConfigError(
            f"folder={str(versions.folder)!r} holds an average of {old.decay}, not of {config}: its weights "
            "would not add up. Give another folder, or the same schedule."
        )
    if old.shards != shards:
        arrays = versions.arrays(old)
        old.shards = shards
        versions.write(old, arrays)


def _token(file: Path) -> str:
    """The token in a file, which only its owner may read; made if there is none."""
    if file.exists():
        rights = rights_of(file)
        if os.name == "posix" and rights is not None and rights.mode & 0o077:
            raise ConfigError(
                f"{file} can be read by others: chmod 600 {file}, or remove it for a new token."
            )
        return file.read_text().strip()
    token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(_BYTES)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(token)
    return token
