"""Which devices may take part: their public keys are registered with a SuperLink, or no longer.

A device's record, next to its keys, holds the node id that the SuperLink gave it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from common.errors import UserError
from server.deployment.control import ControlClient
from server.deployment.keys import KeyFolder, device_key_pair, write_secret


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
