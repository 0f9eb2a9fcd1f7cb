"""Where the servers of this package listen, and the names that requests may call them by."""

from __future__ import annotations

import ipaddress
import socket

from searchr1_mini.core.errors import UserError
from searchr1_mini.storage.extras import require

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def listen(host: str, port: int) -> socket.socket:
    """Opens a server's socket before anything is loaded, so that what stands in the way is told at once.

    Raises:
        UserError: the address cannot be had, or the packages of the extra `server` are missing.
    """
    for package in ("fastapi", "uvicorn"):
        require(package, "server")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not, and answers wait 40 ms
        return listener
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}, port {port} ({error}); name another --port, or --host") from error


def in_address(host: str) -> str:
    """Spells the host as an address does: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def loopback_names(listener: socket.socket) -> tuple[str, ...] | None:
    """Returns the names of a server that only this machine reaches; None where other machines reach it."""
    address = listener.getsockname()[0]
    if not ipaddress.ip_address(address).is_loopback:
        return None
    return tuple(dict.fromkeys([*LOOPBACK, in_address(address)]))
