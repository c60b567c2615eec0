"""A SuperLink's Control API itself, for what Flower's own commands do not tell."""

from __future__ import annotations

from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from common.errors import UserError
from server.deployment.control import GONE


def connect(address: str, ca_certificate: Path) -> ControlHttpClient:
    """A client of the Control API at HOST:PORT.

    Raises:
        UserError: if the certificate can't be read.
    """
    try:
        return ControlHttpClient.from_server_address(
            address,
            insecure=False,
            root_certificates=ca_certificate.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
    except OSError as error:  # of OpenSSL as well
        raise UserError(f"--ca {ca_certificate}: no CA certificate: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--ca {ca_certificate}: expected a certificate in PEM form") from error


def registered_node(address: str, ca_certificate: Path, public_key: Path) -> str | None:
    """Id of the node that is registered with a public key; None without one, or without an answer.

    Raises:
        UserError: see `connect`.
    """
    key = load_ssh_public_key(public_key.read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    wanted = public_key_to_bytes(key)
    client = connect(address, ca_certificate)
    try:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    except (httpx.HTTPError, ValueError):
        return None
    finally:
        client.close()
    found = (node for node in nodes if node.status not in GONE)
    return next((str(node.node_id) for node in found if node.public_key == wanted), None)
