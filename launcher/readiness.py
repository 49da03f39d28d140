"""Asks the router whether the service is ready. The router's /health speaks for all ranks."""

import http.client
import ipaddress


def reachable_host(hostname: str) -> str:
    """Where a client on this machine finds a server that listens on `hostname`."""
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:
        return hostname
    if not address.is_unspecified:
        return hostname
    return "127.0.0.1" if address.version == 4 else "::1"


def is_healthy(hostname: str, port: int, *, timeout_s: float = 1.0) -> bool:
    connection = http.client.HTTPConnection(reachable_host(hostname), port, timeout=timeout_s)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
