"""The other engine: Flower's own Simulation Runtime on Ray, as ``flwr run`` starts it.

A SuperLink and a SuperExec of our own, in a FLWR_HOME of our own, take the run, and are gone when
it is over. What Flower exits with says nothing about the run, so its status is asked for. Ray is
started for the run, unless RAY_ADDRESS names a cluster that is there (docs/fleet.md).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from common.errors import UserError
from common.events import event_message
from common.settings import Scalar

START_SECONDS = 60.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.1
CONNECTION = "simulation"
RAY_ADDRESS = "RAY_ADDRESS"
"""Ray's own variable: where a cluster is that drivers connect to."""


class RunFailedError(RuntimeError):
    """The run ended, and not well; the message says what Flower knows."""


def run_on_ray(
    settings: Mapping[str, Scalar],
    app_folder: Path,
    *,
    num_devices: int,
    num_cpus: int,
    tell: Callable[[str], None],
    tell_all: bool = False,
) -> None:
    """Run the Flower app in a folder with Flower's Simulation Runtime; returns when it is over.

    Args:
        settings: What overrides the run config of the app's pyproject.toml; absolute paths only.
        app_folder: Where pyproject.toml is.
        num_devices: Emulated SuperNodes.
        num_cpus: Clients that run at the same time, one CPU each; on a cluster of RAY_ADDRESS as
            many as it has CPUs.
        tell: Called with every line that the ServerApp reports, as it comes.
        tell_all: Tell the lines of Flower and Ray as well.

    Raises:
        UserError: if Ray is not installed or the folder holds no app.
        RunFailedError: if the run was not completed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            'the ray engine needs Ray, which is not installed: pip install "fedquarc[simulation]"'
        )
    if not (app_folder / "pyproject.toml").is_file():
        raise UserError(
            f"the ray engine bundles the project's sources: there is no pyproject.toml in "
            f"{app_folder} (it works in a checkout only)"
        )
    with tempfile.TemporaryDirectory(prefix="fedquarc-") as home:
        flower = _Flower(Path(home))
        if cluster := flower.environment.get(RAY_ADDRESS):
            tell(f"on the Ray cluster at {cluster}")
        with flower.runtime():
            run_id = flower.submit(settings, app_folder, num_devices, num_cpus)
            for line in flower.log_lines(run_id):
                # The ServerApp's own events are among the lines of Flower and Ray.
                text = event_message(line)
                if text or tell_all:
                    tell(text or line)
            status, details = flower.wait_until_finished(run_id)
    if status != "finished:completed":
        raise RunFailedError(f"the run ended as {status.removeprefix('finished:')}: {details}")


class _Flower:
    """Flower's commands with a home folder, a port and an environment of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = _free_port()
        self.address = f"127.0.0.1:{self.port}"
        programs = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            # Flower starts its own programs by name.
            "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "NO_COLOR": "1",
        }
        if RAY_ADDRESS not in self.environment:
            self.environment["RAY_TMPDIR"] = str(home)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n'
            f'[superlink.{CONNECTION}]\naddress = "{self.address}"\ninsecure = true\n'
        )

    @contextlib.contextmanager
    def runtime(self) -> Iterator[None]:
        """A SuperLink, and a SuperExec whose process group holds the run and all of Ray."""
        with contextlib.ExitStack() as stack:
            link = self._start(
                "flower-superlink",
                "--insecure",
                "--simulation",
                "--disable-runtime-dependency-installation",
                *("--isolation", "process", "--host", "127.0.0.1", "--port", str(self.port)),
            )
            stack.callback(_stop_group, link)
            self._wait_for_health(link)
            executor = self._start(
                "flower-superexec",
                "--insecure",
                *("--runtime-api-address", self.address, "--parent-pid", str(os.getpid())),
            )
            stack.callback(_stop_group, executor)
            yield

    def submit(
        self, settings: Mapping[str, Scalar], app_folder: Path, num_devices: int, num_cpus: int
    ) -> str:
        """Bundle and submit the app; the id of the run."""
        run_config = self.home / "run-config.toml"
        # JSON's scalars are TOML's. A file, since flwr skips what it cannot parse in an argument.
        run_config.write_text(
            "".join(
                f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}\n"
                for key, value in settings.items()
            )
        )
        federation = {
            "num-supernodes": num_devices,
            "client-resources-num-cpus": 1,
        }
        if RAY_ADDRESS not in self.environment:  # a cluster knows its CPUs
            federation["init-args-num-cpus"] = num_cpus
        answer = self._ask(
            *("run", str(app_folder), CONNECTION, "--run-config", str(run_config)),
            *("--federation-config", " ".join(f"{k}={v}" for k, v in federation.items())),
        )
        return str(answer["run-id"])

    def log_lines(self, run_id: str) -> Iterator[str]:
        """What the run logs, until it is over."""
        command = [self._program("flwr"), "log", run_id, CONNECTION, "--stream"]
        with subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    yield line.rstrip()
            finally:
                _stop_group(process)

    def wait_until_finished(self, run_id: str) -> tuple[str, str]:
        """The final status of a run, ``finished:completed`` if all is well, and its details."""
        while True:
            (run,) = self._ask("ls", CONNECTION, "--run-id", run_id)["runs"]
            if run["status"].startswith("finished:"):
                return run["status"], run["status-details"]
            time.sleep(POLL_SECONDS)

    def _ask(self, *arguments: str) -> dict:  # type: ignore[type-arg]
        """The JSON answer of a ``flwr`` command, which exits with 0 even when it fails."""
        done = subprocess.run(
            [self._program("flwr"), *arguments, "--format", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
        try:
            answer = json.loads(done.stdout)
        except json.JSONDecodeError:
            answer = {}
        if not answer.get("success"):
            said = answer.get("error-message") or done.stderr or done.stdout
            raise RunFailedError(f"flwr {arguments[0]} failed: {' '.join(said.split())}")
        return answer

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{program}.log").open("wb") as log:
            return subprocess.Popen(
                [self._program(program), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_for_health(self, link: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and link.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://{self.address}/health", timeout=1.0).close()
                return
            time.sleep(POLL_SECONDS)
        log = (self.home / "flower-superlink.log").read_text(errors="replace")
        raise RunFailedError(f"Flower's SuperLink did not start: {' '.join(log.split())[-300:]}")

    def _program(self, name: str) -> str:
        return str(Path(sys.executable).parent / name)


def _stop_group(process: subprocess.Popen) -> None:  # type: ignore[type-arg]
    """End a process and everything in its group, Ray's daemons for one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            process.poll()  # reaps it: a zombie keeps its group
            os.killpg(process.pid, 0)
            time.sleep(POLL_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
