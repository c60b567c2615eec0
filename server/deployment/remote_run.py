"""A run of a SuperLink elsewhere, from the events that its ServerApp prints.

Flower's SuperLink keeps what a ServerApp prints and streams it to operators: its Control API, over
TLS, at an address that devices are not given. The events among these lines (see `common.events`)
tell of every round and reply, with the figures that an operator wants to see.
"""

from __future__ import annotations

import re
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.control_pb2 import ListRunsRequest, StreamLogsRequest
from flwr.proto.run_pb2 import Run
from flwr.supercore.error import FlowerError
from rich.console import Group

from common.errors import UserError
from common.events import parse_event
from server.deployment.control_api import connect
from server.deployment.run_view import RunView
from server.records.reporting import recorded_line

POLL_SECONDS = 3.0
SUCCESSOR_SECONDS = 60.0
"""A run that failed may be started again (``server run --restarts``): as long it is waited for."""
FINISHED = "finished"

_URL = re.compile(r"https://((\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5})(?:/([0-9]+)?)?")


class RemoteRun:
    """One run, or the newest one, of a SuperLink.

    Args:
        url: https://HOST:PORT of the Control API, or https://HOST:PORT/RUN-ID.
        ca_certificate: what the SuperLink's certificate is checked with.

    Raises:
        UserError: if the URL is none of these, or the certificate can't be read.
    """

    def __init__(self, url: str, ca_certificate: Path) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise UserError(f"{url}: expected https://HOST:PORT or https://HOST:PORT/RUN-ID")
        self.address = match[1]
        self.view = RunView()
        self._wanted = int(match[3]) if match[3] else None
        self._ca_certificate = ca_certificate
        self._client = connect(self.address, ca_certificate)
        self._was_reached = False
        self._problem = ""
        self._run: Run | None = None
        self._after_timestamp = 0.0
        self._rest = ""
        self._name = ""
        self._last_event: dict[str, Any] = {}

    def read(self) -> None:
        """Take in what its log holds by now; of one that has just begun, its first lines.

        Raises:
            UserError: naming why the run can't be seen.
        """
        try:
            self._find()
            if self._run is not None and self._run.status.status in ("running", FINISHED):
                self._read_log(is_once=True)
        except (httpx.HTTPError, ValueError) as error:
            raise UserError(self._describe(error)) from error

    def follow(self) -> None:
        """Take in what comes until the run is over.

        Where no run was named, one that failed is waited for to be started again. A SuperLink that
        was there and is away is waited for as well.

        Raises:
            UserError: naming why the run can't be seen.
        """
        failed_at: float | None = None
        while True:
            try:
                self._find()
                self._read_log()
                self._find()
            except (httpx.HTTPError, ValueError) as error:
                self._problem = self._describe(error)
                if not self._was_reached or not _is_outage(error):
                    raise UserError(self._problem) from error
            status = "" if self._run is None else _status(self._run)
            if status.startswith(FINISHED) and not self._problem:
                if self._wanted is not None or status != "finished:failed":
                    return
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > SUCCESSOR_SECONDS:
                    return
            else:
                failed_at = None
            time.sleep(POLL_SECONDS)

    def render(self) -> Group:
        """Where the run is, what happened last and how long ago."""
        return self.view.render(f"https://{self.address}: {self._situation()}")

    def _situation(self) -> str:
        if self._run is None:
            return self._problem or "no run yet"
        event, status = self._last_event, _status(self._run)
        name = f"run {self._run.run_id}{f' ({self._name})' if self._name else ''}"
        if self._problem:
            return f"{name}: {self._problem}"
        if status.startswith(FINISHED):
            return f"{name}: {status}"
        if not event:
            return f"{name}: has not said anything yet"
        what = " ".join(str(event[key]) for key in ("event", "stage", "round") if key in event)
        silent = max(0.0, time.time() - datetime.fromisoformat(event["time"]).timestamp())
        return f"{name}: {what}, {silent:.0f} s ago"

    def _find(self) -> None:
        """Ask how the run stands; the newest one, where none was named."""
        if self._wanted is None:
            request = ListRunsRequest(limit=1)
        else:
            request = ListRunsRequest(run_id=self._wanted)
        runs = list(self._client.ListRuns(request).run_dict.values())
        self._was_reached, self._problem = True, ""
        if runs and (self._run is None or self._run.run_id != runs[0].run_id):
            self._after_timestamp, self._rest = 0.0, ""
        self._run = runs[0] if runs else None

    def _read_log(self, *, is_once: bool = False) -> None:
        """Read on in the log to the run's end; with ``is_once`` what there is of it."""
        if self._run is None:
            return
        request = StreamLogsRequest(run_id=self._run.run_id, after_timestamp=self._after_timestamp)
        with closing(self._client.StreamLogs(request)) as stream:
            for response in stream:
                self._after_timestamp = response.latest_timestamp
                self._take_in(response.log_output)
                if is_once:
                    break

    def _take_in(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            event = parse_event(line)
            if event is None:
                continue
            if event.get("run", self._name) != self._name:
                if self._name:
                    self.view = RunView()  # another one, not the same that goes on
                self._name = event["run"]
            self._last_event = event
            if (recorded := recorded_line(event)) is not None:
                self.view.add(recorded)

    def _describe(self, error: Exception) -> str:
        """Why the SuperLink can't be asked, in words that name what to look at."""
        reason, where = str(error), f"the SuperLink at {self.address}"
        if isinstance(error, httpx.HTTPStatusError):
            code = error.response.status_code
            told = FlowerError.from_json(error.response.text)
            if told is not None and code == httpx.codes.NOT_FOUND:
                return f"{where} knows no run {self._wanted}"
            if code == httpx.codes.FORBIDDEN:
                return (
                    f"{self.address} refused (HTTP 403): it is the devices' proxy, or another one; "
                    "operators reach the SuperLink itself"
                )
            return f"{where} answered with HTTP {code}{': ' + told.message if told else ''}"
        if isinstance(error, ValueError):
            return f"{self.address} does not answer as a SuperLink does: {reason}"
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            why = reason.partition("certificate verify failed:")[2].partition("(_ssl")[0].strip()
            return f"{where}: its certificate is not good by {self._ca_certificate}: {why}"
        if "SSL" in reason and "EOF" not in reason:
            return f"{self.address} does not speak TLS: {reason}"
        return f"{where} can't be reached: {reason or type(error).__name__}"


def _is_outage(error: Exception) -> bool:
    """Whether asking again later may help."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    if isinstance(error, httpx.TransportError):
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return "Truncated" in str(error)


def _status(run: Run) -> str:
    """As Flower's commands print it, for example ``running`` or ``finished:completed``."""
    return f"{run.status.status}:{run.status.sub_status}".rstrip(":")
