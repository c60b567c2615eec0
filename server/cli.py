"""Keys, devices and runs of a fleet, on its server (python -m server).

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.arguments import add_settings_argument, run_command
from common.errors import UserError
from server.deployment.control import ControlClient
from server.deployment.enrolment import register_devices, revoke_device, rotate_device
from server.deployment.keys import (
    KeyFolder,
    certificate_notice,
    create_device_keys,
    create_fleet_keys,
    renew_server_certificate,
)
from server.deployment.launch import run_settings, run_to_end
from server.deployment.watch import add_watch_command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    keys = commands.add_parser("keys", help="make, register, rotate and revoke keys")
    keys.add_argument(
        "--dir", type=Path, default=Path("secrets"), help="folder of the keys (default: secrets)"
    )
    actions = keys.add_subparsers(required=True, metavar="ACTION")

    create = actions.add_parser("init", help="make the CA, the server's certificate, device keys")
    _add_hosts(create)
    create.add_argument(
        "--device", dest="devices", metavar="NAME", nargs="+", default=[], help="one pair each"
    )
    create.set_defaults(command=_init)

    add = actions.add_parser("add", help="make key pairs for more devices")
    add.add_argument("devices", metavar="NAME", nargs="+")
    add.set_defaults(command=_add)

    renew = actions.add_parser("renew", help="replace the server's certificate and key")
    _add_hosts(renew)
    renew.set_defaults(command=_renew)

    register = actions.add_parser("register", help="let devices take part (default: all)")
    register.add_argument("devices", metavar="NAME", nargs="*")
    _add_superlink(register)
    register.set_defaults(command=_register)

    rotate = actions.add_parser("rotate", help="give one device a new key pair")
    rotate.add_argument("device", metavar="NAME")
    _add_superlink(rotate)
    rotate.set_defaults(command=_rotate)

    revoke = actions.add_parser("revoke", help="shut one device out for good")
    revoke.add_argument("device", metavar="NAME")
    _add_superlink(revoke)
    revoke.set_defaults(command=_revoke)

    run = commands.add_parser("run", help="start a federation and follow it to its end")
    run.add_argument(
        "file", metavar="FILE", type=Path, nargs="?", help="TOML file of settings, by section"
    )
    add_settings_argument(run, "settings of the run, for example data.alpha=0.1")
    run.add_argument(
        "--ca", type=Path, default=Path("secrets/ca.crt"), help="CA (default: secrets/ca.crt)"
    )
    run.add_argument(
        "--app", type=Path, default=Path(), help="the project's folder (default: this one)"
    )
    run.add_argument(
        "--restarts",
        metavar="N",
        type=int,
        default=0,
        help="start a run that failed again, at most N times, to go on in run.resume; not one that "
        "was refused, for a file that is not there for example",
    )
    _add_superlink(run)
    run.set_defaults(command=_run)

    add_watch_command(commands)
    return parser


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        dest="hosts",
        metavar="NAME",
        nargs="+",
        required=True,
        help="DNS names and IP addresses that the server is reached by",
    )


def _add_superlink(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--superlink",
        metavar="HOST:PORT",
        default=os.environ.get("FEDQUARC_SUPERLINK", "127.0.0.1:8000"),
        help="the SuperLink itself, not the proxy of the devices (default: FEDQUARC_SUPERLINK, "
        "else 127.0.0.1:8000)",
    )


def _init(options: argparse.Namespace) -> None:
    create_fleet_keys(KeyFolder(root=options.dir), options.hosts, options.devices)
    _say(f"keys of the fleet: '{options.dir}'; whoever has ca.key can pose as the server")


def _add(options: argparse.Namespace) -> None:
    create_device_keys(KeyFolder(root=options.dir), options.devices)
    _say(f"made a key pair for {', '.join(options.devices)}; to be registered")


def _renew(options: argparse.Namespace) -> None:
    renew_server_certificate(KeyFolder(root=options.dir), options.hosts)
    _say("made a new server certificate; restart the SuperLink and the proxy")


def _register(options: argparse.Namespace) -> None:
    folder = KeyFolder(root=options.dir)
    names = options.devices or folder.device_names()
    if not names:
        raise UserError(f"'{folder.devices}' holds no device keys")
    # First: a SuperLink whose certificate has ended can't be asked.
    if notice := certificate_notice(folder, datetime.datetime.now(datetime.UTC)):
        _say(notice)
    with _client(folder, options) as client:
        new = register_devices(folder, names, client)
    for name in names:
        _say(f"{name}: {'registered' if name in new else 'was registered already'}")


def _rotate(options: argparse.Namespace) -> None:
    folder = KeyFolder(root=options.dir)
    with _client(folder, options) as client:
        rotate_device(folder, options.device, client)
    _say(f"{options.device}: has a new key pair; restart its SuperNode with the new private key")


def _revoke(options: argparse.Namespace) -> None:
    folder = KeyFolder(root=options.dir)
    with _client(folder, options) as client:
        revoke_device(folder, options.device, client)
    _say(f"{options.device}: is shut out, its key pair is removed")


def _run(options: argparse.Namespace) -> int:
    settings = run_settings(options.file, options.settings)
    with ControlClient(options.superlink, options.ca) as client:
        return run_to_end(client, options.app, settings, restarts=options.restarts)


def _client(folder: KeyFolder, options: argparse.Namespace) -> ControlClient:
    return ControlClient(options.superlink, folder.ca_certificate)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
