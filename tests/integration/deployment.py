"""A fleet without containers: SuperLink, proxy and SuperNodes as processes of this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from server.cli import main as operate
from server.deployment.keys import KeyFolder, create_fleet_keys
from tests.conftest import ROOT
from tests.waiting import PATIENCE_SECONDS, wait_until

PROGRAMS = Path(sys.executable).parent
SERVICE_PATH = "/usr/local/bin:/usr/bin:/bin"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]


def flower_environment(home: Path) -> dict[str, str]:
    """What Flower's commands are started with; FLWR_HOME also tells whose a process is."""
    return {
        **os.environ,
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_COLOR": "1",
    }


@dataclass
class Fleet:
    """The processes of one fleet, all below one folder and known by it."""

    folder: Path
    keys: KeyFolder
    superlink_port: int
    proxy_port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def with_keys(cls, folder: Path, devices: Sequence[str]) -> Self:
        """No process runs yet; authority, server and devices have their keys."""
        keys = KeyFolder(root=folder / "secrets")
        create_fleet_keys(keys, ["localhost", "127.0.0.1"], devices)
        superlink_port, proxy_port = free_ports(2)
        return cls(folder, keys, superlink_port, proxy_port)

    @property
    def superlink(self) -> str:
        """The operators' address."""
        return f"127.0.0.1:{self.superlink_port}"

    @property
    def device_address(self) -> str:
        """The devices' address: the proxy's, or, without nginx, the SuperLink's."""
        return f"127.0.0.1:{self.proxy_port if NGINX else self.superlink_port}"

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process; its output goes to <folder>/<name>.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=flower_environment(self.folder / "flwr"),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes[name] = process
        return process

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def start_superlink(self) -> None:
        """As the cluster does: ServerApps in a process of their own, which shares a secret."""
        self.start_superlink_alone()
        self.start(
            "serverapp",
            str(PROGRAMS / "flower-superexec"),
            *("--runtime-api-address", self.superlink),
            *("--root-certificates", str(self.keys.ca_certificate), *self._secret()),
        )

    def start_superlink_alone(self) -> None:
        """The SuperLink without ServerApps' process: a restart of it finds its database."""
        keys = self.keys
        self.start(
            "superlink",
            str(PROGRAMS / "flower-superlink"),
            *("--host", "127.0.0.1", "--port", str(self.superlink_port)),
            *("--ssl-ca-certfile", str(keys.ca_certificate)),
            *("--ssl-certfile", str(keys.server_certificate)),
            *("--ssl-keyfile", str(keys.server_key)),
            *("--database", str(self.folder / "state.db")),
            *("--isolation", "process", *self._secret()),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        )
        self._wait_for("superlink", self.superlink_port)

    def _secret(self) -> tuple[str, str]:
        return "--superexec-auth-secret-file", str(self.keys.superexec_secret)

    def start_proxy(self) -> None:
        """The cluster's own configuration, with this fleet's ports and files."""
        assert NGINX is not None
        text = (ROOT / "docker" / "proxy.conf").read_text(encoding="utf-8")
        for old, new in (
            # First: the folders that replace the others may lie in /tmp.
            (" /tmp/", f" {self.folder}/nginx/"),
            ("listen 8443", f"listen 127.0.0.1:{self.proxy_port}"),
            ("$superlink superlink:8000", f"$superlink {self.superlink}"),
            ("proxy_ssl_name superlink", "proxy_ssl_name localhost"),
            ("/run/secrets", str(self.keys.root)),
        ):
            assert old in text
            text = text.replace(old, new)
        (self.folder / "nginx").mkdir()
        configuration = self.folder / "proxy.conf"
        configuration.write_text(text, encoding="utf-8")
        self.start("proxy", NGINX, "-c", str(configuration), "-g", "daemon off;")
        self._wait_for("proxy", self.proxy_port)

    def start_supernode(self, name: str, partition_id: int, *, address: str = "") -> None:
        """One device, with its key, that reaches the server at ``address``; not waited for.

        Its path is that of a service.
        """
        (port,) = free_ports(1)
        self.start(
            name,
            *("/usr/bin/env", f"PATH={SERVICE_PATH}", sys.executable, "-m", "client", "run"),
            *("--superlink", address or self.device_address, "--port", str(port)),
            *("--ca", str(self.keys.ca_certificate), "--key", str(self.keys.device_key(name))),
            *("--partition-id", str(partition_id)),
        )

    def register_devices(self) -> None:
        """Tell the SuperLink their keys."""
        code = operate(
            ["keys", "--dir", str(self.keys.root), "register", "--superlink", self.superlink]
        )
        assert code == 0

    def start_run(self, settings: Mapping[str, object], *options: str) -> subprocess.Popen[bytes]:
        """The operator's command, as in docs/cluster.md."""
        return self.start(
            "run",
            *(sys.executable, "-m", "server", "run", "--app", str(ROOT), *options),
            *("--superlink", self.superlink, "--ca", str(self.keys.ca_certificate)),
            *("--set", *(f"{key}={value}" for key, value in settings.items())),
        )

    def flwr(self, address: str, *arguments: str) -> dict[str, Any]:
        """A command of Flower's for a SuperLink at ``address``; its JSON answer."""
        home = self.folder / "flwr"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink.fleet]\naddress = "{address}"\n'
            f'root-certificates = "{self.keys.ca_certificate}"\n',
            encoding="utf-8",
        )
        done = subprocess.run(
            [str(PROGRAMS / "flwr"), *arguments, "--format", "json"],
            env=flower_environment(self.folder / "flwr"),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        start = done.stdout.find("{")
        assert start >= 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout[start:]))

    def status_of(self, port: int, method: str, target: str) -> int:
        """The HTTP status of an empty request over TLS; ``target`` is sent as it is."""
        context = ssl.create_default_context(cafile=str(self.keys.ca_certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
        with contextlib.closing(connection):
            body = b"" if method == "POST" else None
            connection.request(method, target, body, {"Content-Type": "application/protobuf"})
            return connection.getresponse().status

    def end(self) -> None:
        """End every process of this fleet, those that its processes started among them."""
        if "proxy" in self.processes:
            # nginx ends its workers itself, and wipes the environment that it could be known by.
            self.processes["proxy"].terminate()
            self.processes["proxy"].wait(30)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (pids := list(self.pids())) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.processes.values():
                process.poll()
            time.sleep(0.1)
        assert not pids

    def pids(self, program: str = "") -> Iterator[int]:
        """Processes of this fleet, or those of them that run one of Flower's programs."""
        marker = f"\0FLWR_HOME={self.folder / 'flwr'}\0".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marker not in b"\0" + (folder / "environ").read_bytes():
                    continue
                arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if not program or any(Path(argument).name == program for argument in arguments):
                    yield int(folder.name)

    def processes_of(self, name: str) -> list[int]:
        """A process and all that it started, directly or not, in no particular order."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # pid (program) state parent ...: the program's name may hold anything.
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                parents[int(folder.name)] = int(parent)
        found = [self.processes[name].pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def _wait_for(self, name: str, port: int) -> None:
        def is_up() -> bool:
            assert self.processes[name].poll() is None, self.log(name)
            with contextlib.suppress(OSError):
                return self.status_of(port, "GET", "/health") == 200
            return False

        wait_until(is_up, f"{name} answers")
