"""`python` and `polyak` that begin with PyTorch imported: two or three seconds of a core less each.

One process imports what every user's script imports, but nothing of polyak, and forks a child for each
start. Two small programs, in a folder that comes first in PATH, ask it to: they hand over their arguments,
folder, environment and open files, forward signals, and end as the child does. All but a script, ``-m`` and
``-c`` begins Python itself, and so does everything where there is no fork to trust, or PaddlePaddle, which
has threads once it is imported.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

HERE = Path(__file__)
USUAL = ("torch", "torch._dynamo", "safetensors.numpy", "sklearn.datasets", "rich.console", "typer")
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
what = (arguments or [""])[0]
if name == "python" and what not in ("-m", "-c") and not os.path.isfile(what):
    os.execv({python!r}, [{python!r}, *arguments])
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = json.dumps([name, arguments, os.getcwd(), dict(os.environ)])
socket.send_fds(server, [request.encode()], [0, 1, 2])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
status = int.from_bytes(server.recv(2), "big", signed=True)
if status < 0:
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""

COLD = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # a PATH on which they begin as ever
POSSIBLE = sys.platform == "linux" and find_spec("torch") is not None


@contextmanager
def warm(folder: Path) -> Generator[str]:
    """A PATH on which `python` and `polyak` begin warm. The folder must be empty."""
    if not POSSIBLE:
        yield COLD
        return
    for name in ("python", "polyak"):
        client = folder / name
        client.write_text(CLIENT.format(python=sys.executable, address=str(folder / "socket")))
        client.chmod(0o700)
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE), str(folder / "socket")]
    with subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin
        assert server.stdout
        assert server.stdout.readline(), "the warm process did not start"
        yield f"{folder}{os.pathsep}{COLD}"
        server.stdin.close()


def serve(address: str) -> Callable[[], Any]:
    """Fork for each request until the input ends. In a child: return what it shall run."""
    path = sys.path[1:]  # without this folder
    for name in filter(lambda name: find_spec(name.partition(".")[0]), USUAL):
        import_module(name)
    sys.path[0] = str(HERE.parents[1])
    from tests.shims import torchvision_without_ops

    torchvision_without_ops()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        gc.freeze()  # or a child that collects garbage would copy all memory
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            with listener.accept()[0] as connection:
                if os.fork() == 0:
                    listener.close()
                    return _keep(connection, path)
    sys.exit()


def _keep(connection: socket.socket, path: list[str]) -> Callable[[], Any]:
    """Fork once more; stay to forward signals, and to say how the child ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
    child = os.fork()
    if child == 0:
        return _begin(*json.loads(request), files=files, path=path)
    for file in (0, 1, *files):
        os.close(file)
    ended = os.pidfd_open(child)
    while ended not in select.select([connection, ended], [], [])[0]:
        number = connection.recv(1)
        os.kill(child, number[0] if number else signal.SIGKILL)
        if not number:
            break
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):
        connection.send(status.to_bytes(2, "big", signed=True))
    os._exit(0)


def _begin(
    name: str,
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    files: list[int],
    path: list[str],
) -> Callable[[], Any]:
    """Become the process that was asked for; what it runs is run outside of all functions here."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", 1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    import_module("numpy.random").seed()  # or all children would draw the same
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *path]
    if name == "polyak":
        sys.argv = [name, *arguments]
        return lambda: sys.exit(import_module("polyak.cli").main())
    first, *rest = sys.argv = arguments
    if first == "-m":
        sys.path.insert(0, folder)
        sys.argv = rest
        return lambda: runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    if first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        return lambda: _main(rest[0], "<string>")
    script = os.path.abspath(first)
    sys.path.insert(0, os.path.dirname(script))
    return lambda: _main(Path(script).read_text(), script, __file__=script)


def _main(source: str, name: str, **variables: str) -> None:
    main = sys.modules["__main__"] = ModuleType("__main__")
    vars(main).update(variables)
    exec(compile(source, name, "exec"), vars(main))


def _run(job: Callable[[], Any]) -> NoReturn:
    """Run it and end as Python ends, but for taking every module to pieces: that would copy all memory."""
    status = 0
    try:
        job()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        status = -signal.SIGINT
        traceback.print_exc()
    except BaseException:
        status = 1
        traceback.print_exc()
    for module, last in ((threading, "_shutdown"), (atexit, "_run_exitfuncs")):
        getattr(module, last)()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


if __name__ == "__main__":
    _run(serve(sys.argv[1]))
