"""The fleet's keys: a certificate authority, the server's certificate, one key pair per device.

TLS certificates are those of `server.deployment.certificates`; a device's key pair is a NIST P-384
one in OpenSSH's format, which is what Flower's SuperNode authentication takes. Every file is
readable by its owner alone, and none is ever overwritten.
"""

from __future__ import annotations

import datetime
import itertools
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import UserError
from server.deployment.certificates import alternative_names, ca_certificate, server_certificate

CURVE = ec.SECP384R1()
DEVICE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
NOTICE_BEFORE = datetime.timedelta(days=30)
"""How long before its end operators are told of the server's certificate."""


@dataclass(frozen=True, kw_only=True)
class KeyFolder:
    """Where a fleet's keys lie."""

    root: Path

    @property
    def ca_certificate(self) -> Path:
        """What devices and operators check the server's certificate with; not a secret."""
        return self.root / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Signs server certificates; no service needs it."""
        return self.root / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """The SuperLink's and the proxy's."""
        return self.root / "server.crt"

    @property
    def server_key(self) -> Path:
        """Private key of the server's certificate."""
        return self.root / "server.key"

    @property
    def superexec_secret(self) -> Path:
        """Shared by the SuperLink and the process that runs its ServerApps."""
        return self.root / "superexec.secret"

    @property
    def devices(self) -> Path:
        """Key pairs of the devices."""
        return self.root / "devices"

    def device_key(self, name: str) -> Path:
        """A device's private key."""
        return self.devices / f"{name}.key"

    def device_public_key(self, name: str) -> Path:
        """A device's public key: what the SuperLink is told."""
        return self.devices / f"{name}.pub"

    def device_record(self, name: str) -> Path:
        """The node id that the SuperLink gave to the device's key."""
        return self.devices / f"{name}.json"

    def device_names(self) -> list[str]:
        """Devices that have a key, in order."""
        return sorted(path.stem for path in self.devices.glob("*.pub"))

    def check_device(self, name: str) -> None:
        """Make sure that a device's public key is here; its private one may be on the device alone.

        Raises:
            UserError: for a name that is not allowed or not known.
        """
        check_device_names([name])
        path = self.device_public_key(name)
        if not path.is_file():
            known = ", ".join(self.device_names()) or "none"
            raise UserError(f"device {name!r} has no '{path}': devices with keys: {known}")


def create_fleet_keys(folder: KeyFolder, hosts: Sequence[str], devices: Sequence[str]) -> None:
    """Make everything that a fleet needs, in a folder that holds none of it.

    Args:
        folder: made when it is missing.
        hosts: DNS names and IP addresses that devices and operators reach the server by.
        devices: names of the devices.

    Raises:
        UserError: for a name that is not allowed, a file that exists, or a folder that can't be
            written; nothing is written then.
    """
    alternative_names(hosts)
    check_device_names(devices)
    _refuse_existing(
        [
            folder.ca_certificate,
            folder.ca_key,
            folder.server_certificate,
            folder.server_key,
            folder.superexec_secret,
            *_pair_files(folder, devices),
        ]
    )
    _make_folder(folder.root)
    key = ec.generate_private_key(CURVE)
    certificate = ca_certificate(key)
    write_secret(folder.ca_key, _pem_key(key))
    write_secret(folder.ca_certificate, certificate.public_bytes(serialization.Encoding.PEM))
    write_secret(folder.superexec_secret, secrets.token_bytes(32))
    for path, content in _server_files(folder, hosts).items():
        write_secret(path, content)
    create_device_keys(folder, devices)


def renew_server_certificate(folder: KeyFolder, hosts: Sequence[str]) -> None:
    """Replace the server's key and certificate; the old ones are kept as ``*.old``, ``*.old-2``...

    Args:
        folder: holds the CA.
        hosts: subject alternative names: DNS names and IP addresses.

    Raises:
        UserError: if a name is not allowed, the CA is missing or damaged, or a file can't be
            written; the old files are in place then.
    """
    contents = _server_files(folder, hosts)
    new_paths = {path: path.with_name(f"{path.name}.new") for path in contents}
    for path, new_path in new_paths.items():
        new_path.unlink(missing_ok=True)
        write_secret(new_path, contents[path])
    ending = _free_ending(contents)
    for path, new_path in new_paths.items():
        if path.exists():
            os.replace(path, path.with_name(f"{path.name}.{ending}"))
        os.replace(new_path, path)


def certificate_notice(folder: KeyFolder, now: datetime.datetime) -> str:
    """What an operator has to know of the server's certificate; empty where it is good for long.

    Raises:
        UserError: if the file is no certificate.
    """
    path = folder.server_certificate
    if not path.exists():  # keys may be kept apart from the server's
        return ""
    try:
        end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' can't be read as a certificate") from error
    if end - now > NOTICE_BEFORE:
        return ""
    verb = "ended" if end < now else "ends"
    return f"the server's certificate {verb} on {end:%Y-%m-%d}: make the next one with keys renew"


def create_device_keys(folder: KeyFolder, devices: Sequence[str]) -> None:
    """Make one key pair per device.

    Raises:
        UserError: for a name that is not allowed, a file that exists, or a folder that can't be
            written; nothing is written then.
    """
    check_device_names(devices)
    _refuse_existing(_pair_files(folder, devices))
    _make_folder(folder.devices)
    for name in devices:
        private, public = device_key_pair(name)
        write_secret(folder.device_key(name), private)
        write_secret(folder.device_public_key(name), public)


def device_key_pair(name: str) -> tuple[bytes, bytes]:
    """A new private and public key in OpenSSH's format; the public one says the device's name."""
    key = ec.generate_private_key(CURVE)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private, public + f" {name}\n".encode()


def check_device_names(names: Sequence[str]) -> None:
    """Refuse names that can't be file names, or that come twice.

    Raises:
        UserError: naming the first such name.
    """
    for index, name in enumerate(names):
        if not DEVICE_NAME.fullmatch(name):
            raise UserError(
                f"device {name!r}: expected 1 to 63 lower-case letters, digits and hyphens"
            )
        if name in names[:index]:
            raise UserError(f"device {name!r} is named twice")


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone can read.

    Raises:
        UserError: if it exists or can't be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
        except OSError:  # a part of a key would be taken for one
            path.unlink()
            raise
    except OSError as error:
        raise UserError(f"'{path}' can't be written: {error.strerror}") from error


def _server_files(folder: KeyFolder, hosts: Sequence[str]) -> dict[Path, bytes]:
    """A new key of the server and its certificate for ``hosts``, signed by the folder's CA."""
    names = alternative_names(hosts)
    ca_key, ca = _load_ca(folder)
    key = ec.generate_private_key(CURVE)
    certificate = server_certificate(key, names, ca_key, ca)
    return {
        folder.server_key: _pem_key(key),
        folder.server_certificate: certificate.public_bytes(serialization.Encoding.PEM),
    }


def _free_ending(paths: Iterable[Path]) -> str:
    """The first of ``old``, ``old-2``, ... that goes with none of these files' names yet."""
    endings = itertools.chain(["old"], (f"old-{number}" for number in itertools.count(2)))
    return next(
        ending
        for ending in endings
        if not any(path.with_name(f"{path.name}.{ending}").exists() for path in paths)
    )


def _load_ca(folder: KeyFolder) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key(folder.ca_key.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(folder.ca_certificate.read_bytes())
    except OSError as error:
        raise UserError(f"'{error.filename}' can't be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"the CA in '{folder.root}' is damaged: expected PEM files") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"'{folder.ca_key}': expected an elliptic-curve key")
    return key, certificate


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pair_files(folder: KeyFolder, devices: Iterable[str]) -> list[Path]:
    return [
        path
        for name in devices
        for path in (folder.device_key(name), folder.device_public_key(name))
    ]


def _refuse_existing(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise UserError(f"'{path}' exists: keys are never overwritten")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"'{path}' can't be made: {error.strerror}") from error
