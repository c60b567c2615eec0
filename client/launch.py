"""Starting a SuperNode: this device's settings -> Flower's command line."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from client.node import MAX_PARTITION_ID, NodeSettings
from common.bit_widths import parse_bits
from common.config import BIT_CHOICES
from common.errors import UserError
from common.events import PRINT_VARIABLE

DEFAULT_PORT = 9094
"""Flower's, for a SuperNode's own processes."""

_ADDRESS = re.compile(r"[A-Za-z0-9.:\[\]_-]+:[0-9]{1,5}")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a device takes part with."""

    superlink: str
    """HOST:PORT."""
    data: Path | None
    """Folder of its own images; None: an emulated device, with its part of the run's data set."""
    key: Path
    """The device's private key."""
    ca: Path
    partition_id: int | None = None
    """None: a number made from the key."""
    port: int = 0
    """Of 127.0.0.1, for the SuperNode's own processes; 0: `DEFAULT_PORT`."""
    threads: int = 0
    max_memory_bytes: int = 0
    max_temperature: float = 0.0
    min_battery: float = 0.0
    weight_bits: str = ""
    """Bit-widths that the device trains at, as "4" or "2,4"; empty: any."""


def check_launch(launch: Launch) -> None:
    """Check what would fail later and less clearly.

    Raises:
        UserError: naming the first thing that is wrong.
    """
    parse_address(launch.superlink)
    parse_bits("--bits", launch.weight_bits, BIT_CHOICES)
    NodeSettings(  # what the device would else refuse with every message
        partition_id=launch.partition_id or 0,
        threads=launch.threads,
        max_memory=launch.max_memory_bytes,
        max_temperature=launch.max_temperature,
        min_battery=launch.min_battery,
    )
    if launch.data is None and launch.partition_id is None:
        raise UserError("expected --data DIR, or --partition-id N for an emulated device")
    if launch.data is not None:
        _check_folder(launch.data)
    if not 0 <= launch.port < 65536:
        raise UserError(f"--port {launch.port}: expected 1 to 65535")
    for option, path in (("--key", launch.key), ("--ca", launch.ca)):
        require_file(option, path)
    mode = launch.key.stat().st_mode & 0o077
    if mode:
        raise UserError(f"--key {launch.key} is readable by others: chmod 600 {launch.key}")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"--data {folder}: there is no such folder")
    if "'" in str(folder.resolve()) or '"' in str(folder.resolve()):
        raise UserError(f"--data {folder}: the path has a quotation mark, which Flower refuses")


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"--port {port} can't be had on 127.0.0.1 ({error.strerror}): expected one that "
                f"no other device or program of this machine uses"
            ) from error


def require_file(option: str, path: Path) -> None:
    """Refuse a path that is no file, by the option that gave it.

    Raises:
        UserError: naming the option and the path.
    """
    if not path.is_file():
        raise UserError(f"{option} {path}: there is no such file")


def parse_address(address: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT.

    Raises:
        UserError: it is none.
    """
    host, _, port = address.rpartition(":")
    if not _ADDRESS.fullmatch(address) or not 0 < int(port) < 65536:
        raise UserError(f"--superlink {address!r}: expected HOST:PORT, as fleet.example.org:9443")
    return host.strip("[]"), int(port)


def supernode_command(launch: Launch) -> list[str]:
    """The command that starts the SuperNode; TLS and authentication are always on."""
    node_config: dict[str, int | float | str] = {
        "partition-id": (
            partition_id_of(launch.key) if launch.partition_id is None else launch.partition_id
        ),
    }
    for key, value in (
        ("data-dir", str(launch.data.resolve()) if launch.data else ""),
        ("threads", launch.threads),
        ("max-memory", launch.max_memory_bytes),
        ("max-temperature", launch.max_temperature),
        ("min-battery", launch.min_battery),
        ("weight-bits", launch.weight_bits),
    ):
        if value:
            node_config[key] = value
    return [
        *(sys.executable, "-m", "client.supernode"),
        "--superlink",
        launch.superlink,
        "--root-certificates",
        str(launch.ca),
        "--auth-supernode-private-key",
        str(launch.key),
        *(("--port", str(launch.port)) if launch.port else ()),
        "--node-config",
        " ".join(
            f"{key}='{value}'" if isinstance(value, str) else f"{key}={value}"
            for key, value in node_config.items()
        ),
    ]


def run_supernode(launch: Launch) -> None:
    """Become the SuperNode: signals reach it, and its exit code is this process's.

    Raises:
        UserError: if something that it needs is missing, or its port is in use.
    """
    check_launch(launch)
    _check_port(launch.port or DEFAULT_PORT)
    command = supernode_command(launch)
    programs = sysconfig.get_path("scripts")
    environment = {
        # Fewer arenas of the allocator: less freed memory that stays with the process.
        "MALLOC_ARENA_MAX": "2",
        # Flower would tell its makers of every start.
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        PRINT_VARIABLE: "1",
        **os.environ,
        # Flower starts programs of its own by name; a service's path has none of an environment's.
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
    }
    if launch.threads:
        environment["OMP_NUM_THREADS"] = str(launch.threads)
    os.execve(command[0], command, environment)


def partition_id_of(key: Path) -> int:
    """A number that belongs to a device for as long as it has its key.

    Raises:
        UserError: if it is no private key that Flower can read.
    """
    try:
        private = serialization.load_ssh_private_key(key.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(
            f"--key {key}: expected a private key in OpenSSH's format, as keys add makes it"
        ) from error
    text = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") & MAX_PARTITION_ID
