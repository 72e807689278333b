"""Ray: a cluster of one's own or somebody else's, actors by name, and calls that never wait forever.

Everything that polyak asks of Ray is here. Ray's own token is the lock; who has it runs code in the cluster.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from polyak.errors import MissingExtraError, PolyakError, ServerError

NAMESPACE = "polyak"
_QUIET: dict[str, Any] = {"namespace": NAMESPACE, "configure_logging": False, "log_to_driver": False}


class Unreachable(ServerError):
    """An actor or the cluster gives no answer now; it may be starting again."""


def begin(token: str, store: int | None) -> str:
    """Start a cluster on this machine, without a dashboard, that asks for this token; returns its address.

    Args:
        token: 32 characters or more.
        store: bytes of its object store, in shared memory; Ray's choice if None.
    """
    _lock(token)
    _ray().init(address="local", include_dashboard=False, object_store_memory=store, **_QUIET)
    return address()


def attach(where: str | None, token: str | None) -> bool:
    """Connect this process to a cluster; False if it was connected already.

    Raises:
        ServerError: nothing answers there, the token is wrong, or this process is connected elsewhere.
    """
    if connected():
        if where not in (None, "auto", address()):
            raise ServerError(
                f"address={where!r}: this process is connected to {address()}, and Ray allows one connection "
                "for each process. Use another process, or call ray.shutdown() first."
            )
        return False
    if token is not None:
        _lock(token)
    try:
        _ray().init(address=where or "auto", **_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ServerError(
            f"address={where!r}: nothing answers there, or the token is another: {error}"
        ) from error
    return True


def connected() -> bool:
    """Whether this process is connected to a cluster."""
    return "ray" in sys.modules and bool(_ray().is_initialized())


def end() -> None:
    """Disconnect; a cluster that this process began ends."""
    _ray().shutdown()


def address() -> str:
    """Of the cluster that this process is connected to."""
    return str(_ray().get_runtime_context().gcs_address)


def create(cls: type, name: str, *arguments: Any) -> Any:
    """An actor that outlives this process and is started again when it dies; the existing one of that name.

    Ray repeats no call: a call that may have been carried out is its caller's to judge.
    """
    options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 0}
    lasting = {"lifetime": "detached", "max_restarts": -1, "max_task_retries": 0}
    return _ray().remote(cls).options(**options, **lasting).remote(*arguments)


def find(name: str) -> Any:
    """The actor of a name.

    Raises:
        ServerError: there is none.
    """
    try:
        return _ray().get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise ServerError(f"{address()} runs no {name}: it was stopped, or has another name.") from error


def kill(name: str) -> None:
    """End an actor for good, if there is one."""
    ray = _ray()
    try:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    except ValueError:
        return


def ask(actor: Any, method: str, *arguments: Any, timeout: float) -> Any:
    """Call a method of an actor and wait for the answer; its polyak errors are raised here.

    Raises:
        Unreachable: no answer came in time, or the actor died.
    """
    return ask_all([(actor, arguments)], method, timeout=timeout)[0]


def ask_all(calls: Iterable[tuple[Any, Sequence[Any]]], method: str, *, timeout: float) -> list[Any]:
    """Call a method of several actors at the same time, each with its own arguments, and wait for all.

    After an error some calls may still be under way; an actor takes those of one caller in order.
    """
    ray = _ray()
    try:
        return ray.get(
            [getattr(actor, method).remote(*arguments) for actor, arguments in calls], timeout=timeout
        )
    except ray.exceptions.RayTaskError as error:
        cause: Any = error.cause
        if isinstance(cause, PolyakError):
            raise cause from None
        raise ServerError(f"{method} failed: {cause!r}") from error
    except ray.exceptions.RayError as error:
        raise Unreachable(f"{method}: no answer within {timeout:g} s: {str(error)[:300]}") from error


def put(value: Any) -> Any:
    """Copy arrays into the object store once; every process of this machine reads them there."""
    ray = _ray()
    try:
        return ray.put(value)
    except ray.exceptions.RayError as error:
        raise ServerError(f"the object store of this machine takes no more: {error}") from error


def _lock(token: str) -> None:
    """Have Ray use this token, which it reads once in each process, and the mode when it is imported."""
    known = os.environ.get("RAY_AUTH_TOKEN")
    if known not in (None, token):
        raise ServerError(
            "token: this process has used another one, and Ray keeps the first. Use a new process, or the "
            "token in the environment variable RAY_AUTH_TOKEN."
        )
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise ServerError(
            "token: Ray was imported without one. Set RAY_AUTH_MODE=token before Python starts, or import "
            "ray after polyak.server has connected."
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = token


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # it would build an environment for workers
    try:
        import ray
        import ray.exceptions  # pyright: ignore[reportUnusedImport]
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingExtraError("ray", "server", "One process needs no server: polyak.EMA") from error
    return ray
