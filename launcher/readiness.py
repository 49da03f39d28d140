"""Asks the router whether the service is ready, and before that whether its ports are free: another service there would
answer for it. The router's /health speaks for all ranks.
"""

import errno
import http.client
import ipaddress
import socket
from contextlib import ExitStack

# Within which /health has to answer.
_ANSWER_S = 1.0


def reachable_host(hostname: str) -> str:
    """Where a client on this machine finds a server that listens on `hostname`."""
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:
        return hostname
    if not address.is_unspecified:
        return hostname
    return "127.0.0.1" if address.version == 4 else "::1"


def is_taken(hostname: str, port: int) -> bool:
    """Whether somebody listens there already. Other reasons not to get a port are its server's."""
    family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # The router's "::" takes IPv4 as well.
            both = hostname == "::" and socket.has_dualstack_ipv6()
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        try:
            probe.bind((hostname, port))
        except (OSError, UnicodeError) as error:
            return getattr(error, "errno", None) == errno.EADDRINUSE
    return False


def free_ports(count: int) -> list[int]:
    """Different ones of the loopback interface, for a launcher that is started next."""
    with ExitStack() as held:
        listeners = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def is_healthy(hostname: str, port: int) -> bool:
    connection = http.client.HTTPConnection(reachable_host(hostname), port, timeout=_ANSWER_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, UnicodeError, http.client.HTTPException):  # the second: of what cannot be a name
        return False
    finally:
        connection.close()
