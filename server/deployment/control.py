"""An operator's commands to a SuperLink, through Flower's own ``flwr``.

They go to the SuperLink's Control API: an operator's address, not the one that devices are given.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from common.errors import UserError
from common.settings import Scalar
from server.refusals import REFUSED

COMMAND_SECONDS = 120
"""How long one command to the SuperLink may take."""

FLWR = [sys.executable, "-c", "from flwr.cli.app import app; app()"]
CONNECTION = "fleet"
REFUSED_STATUS = "finished:refused"
GONE = {"unregistered", "deleted"}
UNREACHABLE = "Connection to the SuperLink is unavailable"
"""What Flower says where nothing answers at the address."""


class ControlClient:
    """``flwr`` for one SuperLink; a context manager that removes its temporary files.

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
        self._ca_certificate = ca_certificate
        # A home of its own: the user's Flower configuration is neither read nor changed.
        self._home = tempfile.TemporaryDirectory(prefix="fedquarc-")
        # JSON's strings are TOML's.
        (Path(self._home.name) / "config.toml").write_text(
            f"[superlink.{CONNECTION}]\n"
            f"address = {json.dumps(address)}\n"
            f"root-certificates = {json.dumps(str(ca_certificate.resolve()))}\n",
            encoding="utf-8",
        )
        self._environment = {
            **os.environ,
            "FLWR_HOME": self._home.name,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_COLOR": "1",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._home.cleanup()

    def register(self, public_key: Path, name: str) -> str:
        """Let the owner of a public key take part; returns its node id."""
        path = str(public_key.resolve())
        answer = self._flwr("supernode", "register", path, CONNECTION, "--name", name)
        return str(answer["node-id"])

    def node_id_of(self, public_key: Path) -> str | None:
        """Id of the node that is registered with a public key; None: there is none.

        Raises:
            UserError: if the CA certificate can't be read.
        """
        # Imported late: it needs Flower, which takes seconds.
        from server.deployment.control_api import registered_node

        return registered_node(self.address, self._ca_certificate, public_key)

    def unregister(self, node_id: str) -> None:
        """Never let this node take part again."""
        self._flwr("supernode", "unregister", node_id, CONNECTION)

    def node_ids(self) -> set[str]:
        """Ids of the nodes that are registered."""
        nodes = self._flwr("supernode", "list", CONNECTION)["nodes"]
        return {str(node["node-id"]) for node in nodes if node["status"] not in GONE}

    def start_run(self, project: Path, settings: Mapping[str, Scalar]) -> str:
        """Start a federation with the app in a project's folder; returns its run id."""
        # JSON's scalars are TOML's.
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
        arguments = ["run", str(project.resolve()), CONNECTION]
        answer = self._flwr(*arguments, *(("--run-config", pairs) if pairs else ()))
        return str(answer["run-id"])

    def run_status(self, run_id: str) -> str:
        """A run's status, for example ``running`` or ``finished:completed``.

        Flower's, but for a run that failed because it was refused: `REFUSED_STATUS`.
        """
        (run,) = self._flwr("list", CONNECTION, "--run-id", run_id)["runs"]
        return REFUSED_STATUS if REFUSED in run["status-details"] else str(run["status"])

    def follow_log(self, run_id: str) -> None:
        """Copy a run's log to the output until the run is over or the SuperLink is gone."""
        subprocess.run(
            [*FLWR, "log", run_id, CONNECTION, "--stream"],
            env=self._environment,
            cwd=self._home.name,
        )

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        try:
            done = subprocess.run(
                [*FLWR, *arguments, "--format", "json"],
                env=self._environment,
                cwd=self._home.name,
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
            if UNREACHABLE in reason:
                raise UserError(
                    f"the SuperLink at {self.address} can't be reached: is it running, is "
                    f"{self.address} its Control API, and is its certificate still good?"
                )
            raise UserError(f"the SuperLink at {self.address} refused: {_one_line(reason)}")
        return dict(answer)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300] or "no reason given"
