"""Flower's SuperNode, made to wait for a SuperLink behind a proxy: ``python -m client.supernode``.

Where a proxy or a port forwarding (Docker's, ssh's) takes connections for a server that is away, a
TLS handshake ends in the middle, or in no time. Flower 1.41 takes that for a wrong certificate: the
SuperNode gives up for good, and its process stays there, idle. Here it is an outage, as a refused
connection is: it tries again until the SuperLink answers. The arguments are flower-supernode's.
"""

from __future__ import annotations

import httpx
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode

INTERRUPTIONS = ("eof occurred", "timed out", "connection reset")
"""In what OpenSSL says of a handshake that was cut off."""


def patient_retry_invoker() -> RetryInvoker:
    """Flower's, but a TLS handshake that was interrupted is tried again."""
    invoker = make_simple_http_retry_invoker()
    gives_up = invoker.should_giveup
    assert gives_up is not None
    invoker.should_giveup = lambda error: not is_interruption(error) and gives_up(error)
    return invoker


def is_interruption(error: Exception) -> bool:
    """Whether a connection was cut off, in the TLS handshake or later."""
    text = str(error).lower()
    return isinstance(error, httpx.TransportError) and any(term in text for term in INTERRUPTIONS)


def main() -> None:
    """Become the SuperNode."""
    fleet_http_connection.make_simple_http_retry_invoker = patient_retry_invoker
    flower_supernode()


if __name__ == "__main__":
    main()
