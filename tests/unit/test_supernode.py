"""Which errors of the connection a device waits through, and which end its SuperNode."""

from __future__ import annotations

import httpx
import pytest

from client.supernode import patient_retry_invoker


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), False),
        (
            httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred (_ssl.c:1006)"),
            False,
        ),
        (httpx.ConnectTimeout("_ssl.c:989: The handshake operation timed out"), False),
        (httpx.ReadError("[Errno 104] Connection reset by peer"), False),
        (
            httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer"),
            True,
        ),
        (httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), True),
    ],
)
def test_only_a_wrong_peer_ends_the_supernode(error: Exception, ends: bool) -> None:
    gives_up = patient_retry_invoker().should_giveup
    assert gives_up is not None
    assert gives_up(error) is ends
