"""Who may read the live page, and how: real sockets on loopback, requests byte by byte."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest

from polyak.errors import ConfigError
from polyak.report.live import Live
from polyak.report.live_server import LiveServer
from tests.report.opened import opened
from tests.report.test_live import Clock, line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(line(1, 2.0) + line(2, 1.0))
    (folder / "secret.txt").write_text("a secret")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    with LiveServer(Live([folder], every=0, clock=Clock())) as started:
        thread = Thread(target=started.serve_forever)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


class Answer:
    """What came back on one connection until the server closed it."""

    def __init__(self, server: LiveServer, request: str, *headers: str, host: str = "127.0.0.1") -> None:
        lines = [f"{request} HTTP/1.1", *([f"Host: {host}"] if host else []), *headers, "", ""]
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
            connection.sendall("\r\n".join(lines).encode())
            received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        head, _, self.body = received.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = dict(one.split(": ", 1) for one in rest)


def path_of(server: LiveServer) -> str:
    return urlsplit(server.address).path


def test_the_page_has_the_run_and_forbids_all_but_its_own(server: LiveServer) -> None:
    answer = Answer(server, f"GET {path_of(server)}")
    assert answer.status == 200
    assert b"ema_loss" not in answer.body
    assert b"<h1>run</h1>" in answer.body
    policy = answer.headers["Content-Security-Policy"]
    for rule in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "script-src 'sha256-"):
        assert rule in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Python" not in answer.headers["Server"]


def test_it_listens_on_loopback_only(server: LiveServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert urlsplit(server.address).hostname == "127.0.0.1"


def test_two_servers_have_two_long_tokens(server: LiveServer, folder: Path) -> None:
    with LiveServer(Live([folder])) as other:
        assert path_of(other) != path_of(server)
        assert len(path_of(other)) >= 32 + 2


@pytest.mark.parametrize("change", ["short", "long", "other", "empty", "none", "encoded", "bytes", "star"])
def test_a_wrong_token_is_refused_and_nothing_is_read(server: LiveServer, folder: Path, change: str) -> None:
    token = path_of(server).strip("/")
    path = {
        "short": f"/{token[:-1]}/",
        "long": f"/{token}x/",
        "other": f"/{token[:-1]}{'a' if token[-1] != 'a' else 'b'}/",
        "empty": "//",
        "none": "/",
        "encoded": f"/%{ord(token[0]):02x}{token[1:]}/",
        "bytes": "/\u00fc/",
        "star": "*",
    }[change]
    with opened(folder) as seen:
        answer = Answer(server, f"GET {path}")
    assert answer.status == 403
    assert b"<h1>" not in answer.body
    assert seen.read == []


def test_the_token_is_compared_in_constant_time(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr("secrets.compare_digest", lambda a, b: bool(asked.append((a, b))))
    assert Answer(server, f"GET {path_of(server)}").status == 403
    assert asked == [(path_of(server).strip("/").encode(),) * 2]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "10.0.0.1", "[::1]"]
)
def test_another_host_is_refused(server: LiveServer, host: str) -> None:
    answer = Answer(server, f"GET {path_of(server)}", host=host)
    assert answer.status == 421
    assert b"<h1>" not in answer.body


def test_two_hosts_are_refused(server: LiveServer) -> None:
    assert Answer(server, f"GET {path_of(server)}", "Host: evil.example").status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:1234"])
def test_a_tunnel_may_have_another_port(server: LiveServer, host: str) -> None:
    assert Answer(server, f"GET {path_of(server)}", host=host).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_only_reading_is_allowed(server: LiveServer, method: str) -> None:
    answer = Answer(server, f"{method} {path_of(server)}")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_what_is_no_method_is_refused(server: LiveServer) -> None:
    assert Answer(server, f"PROPFIND {path_of(server)}").status == 501


@pytest.mark.parametrize(
    "path",
    ["metrics.jsonl", "secret.txt", "../secret.txt", "%2e%2e/secret.txt", "parts/", "?x", "/etc/passwd"],
)
def test_no_file_and_no_folder_is_served(server: LiveServer, folder: Path, path: str) -> None:
    with opened(folder) as seen:
        answer = Answer(server, f"GET {path_of(server)}{path}")
    assert answer.status == 404
    assert b"secret" not in answer.body
    assert "secret.txt" not in seen.read
    assert Answer(server, f"GET {path_of(server)[:-1]}").status == 404


@pytest.mark.parametrize("what", ["", "parts"])
def test_head_says_what_get_would_send(server: LiveServer, what: str) -> None:
    got, head = (Answer(server, f"{method} {path_of(server)}{what}") for method in ("GET", "HEAD"))
    assert head.status == got.status == 200
    assert head.body == b""
    assert int(head.headers["Content-Length"]) == len(got.body) > 1000
    assert head.headers["ETag"] == got.headers["ETag"]


class _Facts(HTMLParser):
    """The JSON in an inert script."""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self.wanted, self.inside, self.text = wanted, False, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = ("id", self.wanted) in attrs

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def facts_of(page: bytes, wanted: str = "facts") -> dict[str, object]:
    parser = _Facts(wanted)
    parser.feed(page.decode())
    return json.loads(parser.text)


def test_an_unchanged_run_costs_a_line_and_no_reading(server: LiveServer, folder: Path) -> None:
    page = Answer(server, f"GET {path_of(server)}")
    parts = Answer(server, f"GET {path_of(server)}parts")
    assert facts_of(page.body) == facts_of(parts.body)
    assert facts_of(page.body, "live")["tag"] == page.headers["ETag"] == parts.headers["ETag"]
    assert len(parts.body) < 20_000 < len(page.body)
    asked = f"If-None-Match: {parts.headers['ETag']}"
    with opened(folder) as seen:
        same = Answer(server, f"GET {path_of(server)}parts", asked)
    assert (same.status, same.body, seen.read) == (304, b"", [])
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(line(3, 0.25))
    changed = Answer(server, f"GET {path_of(server)}parts", asked)
    assert changed.status == 200
    assert changed.headers["ETag"] != parts.headers["ETag"]
    assert b"0.25" in changed.body


def test_a_page_is_drawn_once_for_all_readers(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    Answer(server, f"GET {path_of(server)}")
    drawn: list[object] = []
    monkeypatch.setattr("polyak.report.live_server.body", drawn.append)
    for _ in range(3):
        assert Answer(server, f"GET {path_of(server)}").status == 200
    assert drawn == []


def test_readers_that_hang_up_are_not_spoken_of(
    server: LiveServer, capfd: pytest.CaptureFixture[str]
) -> None:
    for text in (b"", b"GET ", f"GET {path_of(server)} HTTP/1.1\r\n".encode()):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(text)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    assert Answer(server, f"GET {path_of(server)}").status == 200
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken_is_named(server: LiveServer, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"port={server.server_port} cannot be had"):
        LiveServer(Live([folder]), server.server_port)
