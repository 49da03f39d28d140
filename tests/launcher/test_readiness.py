import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from launcher.readiness import is_healthy, is_taken, reachable_host


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(self.server.status if self.path == "/health" else 404)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_only_200_is_ready(server: HTTPServer, status: int, healthy: bool) -> None:
    server.status = status  # type: ignore[attr-defined]
    assert is_healthy("0.0.0.0", server.server_port) is healthy


def test_nobody_listening_is_not_ready() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert not is_healthy("127.0.0.1", unused.getsockname()[1])


def test_a_port_is_taken_by_who_listens_there_and_not_by_what_is_left_of_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert all(is_taken(host, port) for host in ("127.0.0.1", "localhost", "0.0.0.0", ""))
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()
    assert not is_taken("127.0.0.1", port)
    # Its server says why not.
    assert not is_taken("192.0.2.1", port)
    assert not is_taken("no-such-host.invalid", port)
    assert not is_taken("a..b", port)
    assert not is_healthy("a..b", port)


def test_a_port_of_the_other_family_is_free_unless_both_are_asked_for() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        assert not is_taken("::1", port)
        assert is_taken("::", port) is socket.has_dualstack_ipv6()


def test_an_unspecified_address_is_reached_over_loopback() -> None:
    assert reachable_host("0.0.0.0") == "127.0.0.1"
    assert reachable_host("::") == "::1"
    assert reachable_host("10.1.2.3") == "10.1.2.3"
    assert reachable_host("example.test") == "example.test"
