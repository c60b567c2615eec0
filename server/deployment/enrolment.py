"""Which devices may take part: their public keys are registered with a SuperLink, or no longer.

A device's record, next to its keys, holds the node id that the SuperLink gave it, and those of keys
that it no longer has until the SuperLink has shut them out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    new = [name for name in names if _read(folder, name).node_id not in known]
    for name in new:
        node_id = _register(folder.device_public_key(name), name, client)
        _write(folder, name, replace(_read(folder, name), node_id=node_id))
    for name in names:
        _shut_out_retired(folder, name, client)
    return new


def revoke_device(folder: KeyFolder, name: str, client: ControlClient) -> None:
    """Shut a device out for good; its key pair is removed, since it can't be registered again.

    Raises:
        UserError: for a device that is not registered, or what the SuperLink refuses.
    """
    folder.check_device(name)
    node_id = _read(folder, name).node_id
    if node_id is None:
        raise UserError(f"device {name!r} is not registered: there is nothing to revoke")
    _shut_out_retired(folder, name, client)
    client.unregister(node_id)
    for path in (
        folder.device_record(name),
        folder.device_key(name),
        folder.device_public_key(name),
    ):
        path.unlink(missing_ok=True)


def rotate_device(folder: KeyFolder, name: str, client: ControlClient) -> None:
    """Give a device a new key pair: register the new one, shut out the old one.

    The device takes part again when its SuperNode is started with the new private key. If the
    SuperLink refuses the new key, nothing has changed; if it fails to shut the old one out, that is
    done by the next call for the device.

    Raises:
        UserError: for an unknown device, or what the SuperLink refuses.
    """
    folder.check_device(name)
    old = _read(folder, name)
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
    retired = [*old.retired, *([old.node_id] if old.node_id else [])]
    _write(folder, name, _Record(node_id=node_id, retired=retired))
    _shut_out_retired(folder, name, client)


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What the folder knows of a device at the SuperLink."""

    node_id: str | None = None
    """None: it was never registered."""
    retired: list[str] = field(default_factory=list)
    """Node ids of earlier keys, until they are shut out."""


def _register(public_key: Path, name: str, client: ControlClient) -> str:
    """The node id of a key that is registered, now or by a call that did not get to note it."""
    try:
        return client.register(public_key, name)
    except UserError:
        node_id = client.node_id_of(public_key)
        if node_id is None:
            raise
        return node_id


def _shut_out_retired(folder: KeyFolder, name: str, client: ControlClient) -> None:
    record = _read(folder, name)
    if not record.retired:
        return
    known = client.node_ids()
    for node_id in record.retired:
        if node_id in known:
            client.unregister(node_id)
    _write(folder, name, replace(record, retired=[]))


def _read(folder: KeyFolder, name: str) -> _Record:
    path = folder.device_record(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        retired = [str(node_id) for node_id in content.get("retired", [])]
        return _Record(node_id=str(content["node-id"]), retired=retired)
    except FileNotFoundError:
        return _Record()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' can't be read: expected the device's node id") from error


def _write(folder: KeyFolder, name: str, record: _Record) -> None:
    content: dict[str, object] = {"node-id": record.node_id}
    if record.retired:
        content["retired"] = record.retired
    path = folder.device_record(name)
    new_path = path.with_name(f"{path.name}.new")
    new_path.unlink(missing_ok=True)
    write_secret(new_path, json.dumps(content).encode() + b"\n")
    os.replace(new_path, path)
