"""Saving in the background: a file holds one consistent state, and errors are not lost."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping

from polyak._core.tensors import T, TensorOps
from polyak.errors import CheckpointError


class Saving:
    """A file being written by a background thread; returned by ``ema.save(path, background=True)``.

    The interpreter does not exit before it is written. ``wait`` raises an error of the thread; without a
    call of ``wait`` the error becomes a warning when the handle is garbage-collected.
    """

    def __init__(self, path: str | os.PathLike[str], write: Callable[[], None]) -> None:
        self.path = os.fspath(path)
        self._process = os.getpid()
        self._errors: list[BaseException] = []
        weakref.finalize(self, _report, self.path, self._errors)
        # Not a daemon, so that the interpreter waits; holds no reference to this handle, so that it can go.
        self._thread = threading.Thread(target=_run, args=(write, self._errors), name="polyak-save")
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the thread has ended: the file is written, or ``wait`` raises."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return when the file is on disk.

        Raises:
            CheckpointError: it could not be written (an old file is intact), or it is written by the process
                from which this one was forked.
        """
        if os.getpid() != self._process:
            raise CheckpointError(
                f"{self.path} is written by process {self._process}, which must wait for it."
            )
        self._thread.join()
        if self._errors:
            raise self._errors.pop()

    def finish(self) -> None:
        """Return when the thread has ended, even if it failed; at once in a forked child, which has none."""
        if os.getpid() == self._process:
            self._thread.join()

    def __repr__(self) -> str:
        return f"Saving({self.path!r}, {'done' if self.done else 'running'})"


# Not an attribute of the averages, so that a copy or a pickle of an EMA contains no thread.
_latest: weakref.WeakKeyDictionary[object, Saving] = weakref.WeakKeyDictionary()


def save_in_background(owner: object, path: str | os.PathLike[str], write: Callable[[], None]) -> Saving:
    """Write in the background; at most one file of each owner is written at a time."""
    _latest[owner] = saving = Saving(path, write)
    return saving


def wait_for_last(owner: object) -> None:
    """Wait for the owner's last background save, so that files are replaced in order."""
    saving = _latest.get(owner)
    if saving is not None:
        saving.finish()


def host_copies(tensors: Mapping[str, T], ops: TensorOps[T]) -> dict[str, T]:
    """Copies in host memory; one per tensor, whatever its number of names."""
    once = {id(tensor): tensor for tensor in tensors.values()}
    copies = {key: ops.on_host(tensor) for key, tensor in once.items()}
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}


def unchanged_check(
    tensors: Mapping[str, T], ops: TensorOps[T], begun: int | None, moment: Callable[[], int | None]
) -> Callable[[], None]:
    """A check that no update ran since ``begun``, and no tensor was written since this call.

    Args:
        tensors: what is about to be read.
        ops: the framework's tensors.
        begun: the result of ``moment`` before the tensors were looked up.
        moment: a number that changes with each update; None during one.

    Returns:
        A function that raises CheckpointError if something changed.
    """
    versions = {name: ops.version(tensor) for name, tensor in tensors.items()}

    def check() -> None:
        changed = [name for name, tensor in tensors.items() if ops.version(tensor) != versions[name]]
        if begun is None or moment() != begun or changed:
            what = f"{changed[0]} was" if changed else "the averages were"
            raise CheckpointError(
                f"{what} changed while they were read, by another thread or by an update that never ended: "
                "the file would mix two states. Nothing was replaced. Save between two updates; "
                "save(..., background=True), called there, writes while training continues."
            )

    if begun is None:
        check()
    return check


def _run(write: Callable[[], None], errors: list[BaseException]) -> None:
    try:
        write()
    except BaseException as error:
        errors.append(error)


def _report(path: str, errors: list[BaseException]) -> None:
    for error in errors:
        warnings.warn(f"{path} was not saved: {error}", RuntimeWarning, stacklevel=2)
