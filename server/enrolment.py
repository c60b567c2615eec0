"""Which devices may take part: their public keys are registered with a SuperLink, or no longer.

Through ``flwr supernode``, which speaks to the SuperLink's Control API: an operator's address, not
the one that devices are given.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import UserError
from server.keys import KeyFolder, device_key_pair, write_secret

COMMAND_SECONDS = 120
"""How long one command to the SuperLink may take."""

FLWR = [sys.executable, "-c", "from flwr.cli.app import app; app()"]
CONNECTION = "fleet"
GONE = {"unregistered", "deleted"}


class ControlClient:
    """``flwr supernode`` for one SuperLink.

    Args:
        address: HOST:PORT of the Control API.
        ca_certificate: what the SuperLink's certificate is checked with.

    Raises:
        UserError: if the address is not HOST:PORT or there is no such certificate.
    """

    def __init__(self, address: str, ca_certificate: Path) -> None:
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})", address)
        if match is None or not 0 < int(match[2]) < 65536:
            raise UserError(f"--superlink = {address!r}: expected HOST:PORT")
        if not ca_certificate.is_file():
            raise UserError(f"there is no CA certificate '{ca_certificate}'")
        self.address = address
        self.ca_certificate = ca_certificate.resolve()

    def register(self, public_key: Path, name: str) -> str:
        """Let the owner of a public key take part; returns its node id."""
        answer = self._flwr("register", str(public_key.resolve()), CONNECTION, "--name", name)
        return str(answer["node-id"])

    def unregister(self, node_id: str) -> None:
        """Never let this node take part again."""
        self._flwr("unregister", node_id, CONNECTION)

    def node_ids(self) -> set[str]:
        """Ids of the nodes that are registered."""
        nodes = self._flwr("list", CONNECTION)["nodes"]
        return {str(node["node-id"]) for node in nodes if node["status"] not in GONE}

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="fedquarc-") as home:
            # A home of its own: the user's Flower configuration is neither read nor changed.
            # JSON's strings are TOML's.
            (Path(home) / "config.toml").write_text(
                f"[superlink.{CONNECTION}]\n"
                f"address = {json.dumps(self.address)}\n"
                f"root-certificates = {json.dumps(str(self.ca_certificate))}\n",
                encoding="utf-8",
            )
            environment = {
                **os.environ,
                "FLWR_HOME": home,
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
            }
            try:
                done = subprocess.run(
                    [*FLWR, "supernode", *arguments, "--format", "json"],
                    env=environment,
                    cwd=home,
                    capture_output=True,
                    text=True,
                    timeout=COMMAND_SECONDS,
                )
            except subprocess.TimeoutExpired as error:
                raise UserError(
                    f"the SuperLink at {self.address} did not answer in {COMMAND_SECONDS} s"
                ) from error
        # Its exit code is 0 for errors as well.
        start = done.stdout.find("{")
        try:
            answer = json.loads(done.stdout[start:]) if start >= 0 else {}
        except json.JSONDecodeError:
            answer = {}
        if not answer.get("success"):
            reason = answer.get("error-message") or done.stderr or done.stdout
            raise UserError(f"the SuperLink at {self.address} refused: {_one_line(reason)}")
        return dict(answer)


def register_devices(folder: KeyFolder, names: Iterable[str], client: ControlClient) -> list[str]:
    """Register devices that are not registered yet; returns their names.

    Raises:
        UserError: for an unknown device, or what the SuperLink refuses.
    """
    names = list(names)
    for name in names:
        folder.check_device(name)
    known = client.node_ids()
    new = [name for name in names if _node_id(folder, name) not in known]
    for name in new:
        _record(folder, name, client.register(folder.device_public_key(name), name))
    return new


def revoke_device(folder: KeyFolder, name: str, client: ControlClient) -> None:
    """Shut a device out for good; its key pair is removed, since it can't be registered again.

    Raises:
        UserError: for a device that is not registered, or what the SuperLink refuses.
    """
    folder.check_device(name)
    node_id = _node_id(folder, name)
    if node_id is None:
        raise UserError(f"device {name!r} is not registered: there is nothing to revoke")
    client.unregister(node_id)
    for path in (
        folder.device_record(name),
        folder.device_key(name),
        folder.device_public_key(name),
    ):
        path.unlink()


def rotate_device(folder: KeyFolder, name: str, client: ControlClient) -> None:
    """Give a device a new key pair: register the new one, shut out the old one.

    The device takes part again when its SuperNode is started with the new private key. If the
    SuperLink refuses the new key, nothing has changed.

    Raises:
        UserError: for an unknown device, or what the SuperLink refuses.
    """
    folder.check_device(name)
    old_node_id = _node_id(folder, name)
    private, public = device_key_pair(name)
    new_key = folder.devices / f"{name}.key.new"
    new_public_key = folder.devices / f"{name}.pub.new"
    for path in (new_key, new_public_key):
        path.unlink(missing_ok=True)
    try:
        write_secret(new_key, private)
        write_secret(new_public_key, public)
        node_id = client.register(new_public_key, name)
    except UserError:
        new_key.unlink(missing_ok=True)
        new_public_key.unlink(missing_ok=True)
        raise
    os.replace(new_key, folder.device_key(name))
    os.replace(new_public_key, folder.device_public_key(name))
    _record(folder, name, node_id)
    if old_node_id is not None and old_node_id in client.node_ids():
        client.unregister(old_node_id)


def _node_id(folder: KeyFolder, name: str) -> str | None:
    path = folder.device_record(name)
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["node-id"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' can't be read: expected the device's node id") from error


def _record(folder: KeyFolder, name: str, node_id: str) -> None:
    path = folder.device_record(name)
    path.unlink(missing_ok=True)
    write_secret(path, json.dumps({"node-id": node_id}).encode() + b"\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300] or "no reason given"
