"""The report page, served on this machine while a training runs.

Why the standard library's ``http.server``: there are two addresses to answer and a handful of readers, all on
the loopback interface, and no part of an address ever becomes the path of a file. An ASGI server would bring
packages to install and keep up to date, for the same two answers.

Who may read: whoever has the address, whose token is random and compared in constant time. The socket is
bound to 127.0.0.1. A site that has its own name resolve to 127.0.0.1 (DNS rebinding) sends that name as
``Host`` and is refused; any port is accepted there, because a tunnel through SSH may have another. Nothing
can be changed through it: GET and HEAD are all it answers.
"""

from __future__ import annotations

import hashlib
import secrets
import socketserver
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any, NamedTuple

from polyak.errors import ConfigError
from polyak.report.live import Live
from polyak.report.page import body, live_html, policy
from polyak.report.words import Language

_HOSTS = ("127.0.0.1", "localhost")
_PAGE, _PARTS = "", "parts"
_ONLY_A_HEADER_CAN = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


class _Shown(NamedTuple):
    """What readers get of one version: the page, what of it changes, and a name for that content."""

    version: int
    tag: str
    page: bytes
    parts: bytes


class LiveServer(ThreadingHTTPServer):
    """Serves the page of runs and what of it changes, until it is closed.

    Args:
        live: the runs.
        port: on 127.0.0.1; 0 for any that is free.
        language: "en" or "zh".
        every: seconds between two questions of an open page.

    Raises:
        ConfigError: the port cannot be had.
    """

    daemon_threads = True  # a reader that does not hang up does not keep the command from ending

    def __init__(self, live: Live, port: int = 0, language: Language = "en", every: float = 2.0) -> None:
        self._live, self._every = live, every
        self._language: Language = language
        self._token = secrets.token_urlsafe(24)
        self._rendering, self._shown = Lock(), _Shown(0, "", b"", b"")
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"port={port} cannot be had: {error.strerror or error}. Choose another, or 0 for a free one."
            ) from error

    @property
    def address(self) -> str:
        """The page's, with the token."""
        return f"http://127.0.0.1:{self.server_port}/{self._token}/"

    def server_bind(self) -> None:
        """Bind, without the look-up of a name that ``HTTPServer`` makes."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()

    def knows(self, token: str) -> bool:
        """Whether a reader may read, in a time that says nothing of the token."""
        return secrets.compare_digest(token.encode(), self._token.encode())

    def shown(self) -> _Shown:
        """The newest version; drawn once, however many ask."""
        view = self._live.look()
        with self._rendering:
            if view.version > self._shown.version:
                parts = body(view.runs, self._language)
                tag = f'"{hashlib.sha256(parts.encode()).hexdigest()[:32]}"'
                page = live_html(view.runs, self._language, tag, self._every)
                self._shown = _Shown(view.version, tag, page.encode(), parts.encode())
            return self._shown

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of readers that hung up."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0: each has its own connection, so that none waits in a thread for another."""

    server: LiveServer  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version, sys_version = "polyak", ""
    timeout = 10  # seconds for a reader to say what it wants

    def do_GET(self) -> None:
        """Answer with the page, what of it changes, or that nothing has."""
        refusal = self._refusal()
        if refusal is not None:
            self._send(*refusal)
            return
        shown = self.server.shown()
        wanted = self._after_token()
        if wanted == _PAGE:
            self._send(HTTPStatus.OK, shown.page, shown.tag)
        elif wanted != _PARTS:
            self._send(HTTPStatus.NOT_FOUND, b"There is nothing here.\n")
        elif self.headers.get("If-None-Match") == shown.tag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", shown.tag)
        else:
            self._send(HTTPStatus.OK, shown.parts, shown.tag)

    do_HEAD = do_GET

    def refuse_method(self) -> None:
        """Refuse what would change something."""
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, b"GET and HEAD only.\n")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = refuse_method

    def _refusal(self) -> tuple[HTTPStatus, bytes] | None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].split(":")[0].lower() not in _HOSTS:
            return HTTPStatus.MISDIRECTED_REQUEST, b"This is served as 127.0.0.1 and localhost only.\n"
        if not self.server.knows(self.path.split("/")[1] if self.path.startswith("/") else ""):
            return HTTPStatus.FORBIDDEN, b"The address lacks the token that polyak watch printed.\n"
        return None

    def _after_token(self) -> str | None:
        """The rest of the address; None if there is no slash between."""
        _, _, *rest = self.path.split("/", 2)
        return rest[0] if rest else None

    def _send(self, status: HTTPStatus, content: bytes, tag: str = "") -> None:
        self.send_response(status)
        kind = "html" if tag else "plain"
        headers = {
            "Content-Type": f"text/{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": f"{policy(live=True)}; {_ONLY_A_HEADER_CAN}",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",  # the address has the token
            "X-Content-Type-Options": "nosniff",
        }
        if tag:
            headers["ETag"] = tag
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: an open page asks every other second."""
