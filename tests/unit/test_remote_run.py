"""A run of a SuperLink elsewhere: what its log tells, and why it can't be seen."""

from __future__ import annotations

import http.server
import io
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    ListRunsResponse,
    StreamLogsRequest,
    StreamLogsResponse,
)
from flwr.proto.run_pb2 import Run, RunStatus
from rich.console import Console

from common.errors import UserError
from server.deployment import remote_run
from server.deployment.keys import KeyFolder, create_fleet_keys
from server.deployment.remote_run import RemoteRun

TIME = "2026-01-01T00:00:00.000Z"


def event(name: str, **fields: Any) -> str:
    return json.dumps({"time": TIME, "level": "info", "event": name, **fields}) + "\n"


def round_ended(number: int, run: str = "a") -> str:
    return event(
        "round-ended",
        **{"run": run, "stage": "quantized", "round": number, "skipped": False},
        **{"num_asked": 2, "num_accepted": 2, "refused": {}, "accuracy": 90.0 + number},
        **{"upload_bytes": 10, "download_bytes": 20, "round_seconds": 1.5},
    )


def reply(device: int, number: int) -> str:
    return event(
        "reply-accepted",
        **{"run": "a", "stage": "quantized", "round": number, "task": "train"},
        **{"device": device, "upload_bytes": 5, "download_bytes": 10, "coreset_size": 7},
    )


class FakeSuperLink:
    """Runs with what their logs hold; an exception in a log is raised in its place, once."""

    def __init__(self) -> None:
        self.runs: list[tuple[Run, list[str | Exception]]] = []

    def add(self, status: str, *log: str | Exception) -> None:
        name, _, detail = status.partition(":")
        run = Run(run_id=len(self.runs) + 1, status=RunStatus(status=name, sub_status=detail))
        self.runs.append((run, list(log)))

    def ListRuns(self, request: ListRunsRequest) -> ListRunsResponse:  # noqa: N802
        number = request.run_id if request.HasField("run_id") else len(self.runs)
        return ListRunsResponse(run_dict={number: self.runs[number - 1][0]} if number else {})

    def StreamLogs(  # noqa: N802
        self, request: StreamLogsRequest
    ) -> Iterator[StreamLogsResponse]:
        run, log = self.runs[request.run_id - 1]
        for number, text in enumerate(log, 1):
            if number <= request.after_timestamp:
                continue
            if isinstance(text, Exception):
                log[number - 1] = ""
                raise text
            yield StreamLogsResponse(log_output=text, latest_timestamp=number)
        if run.status.status != "finished":
            run.status.CopyFrom(RunStatus(status="finished", sub_status="completed"))


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> FakeSuperLink:
    fake = FakeSuperLink()
    monkeypatch.setattr(remote_run, "connect", lambda address, ca: fake)
    monkeypatch.setattr(remote_run, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(remote_run, "SUCCESSOR_SECONDS", 0.0)
    return fake


def shown(run: RemoteRun) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(run.render())
    return console.export_text()


def test_events_among_other_lines_become_the_view(superlink: FakeSuperLink) -> None:
    """A block of the log may end anywhere in a line; device 1 sent 5 B in each of two rounds."""
    text = "INFO : Flower\n" + reply(1, 1) + round_ended(1) + "{}\n" + reply(1, 2) + round_ended(2)
    superlink.add("running", text[:100], text[100:])
    run = RemoteRun("https://host:8000", Path("ca"))
    run.follow()
    assert [line["round"] for line in run.view.rounds] == [1, 2]
    assert run.view.devices[1].upload_bytes == 10
    page = shown(run)
    assert "run 1 (a): finished:completed" in page
    assert "92.00 %" in page


def test_an_outage_is_waited_for_and_nothing_is_told_twice(superlink: FakeSuperLink) -> None:
    superlink.add("running", reply(1, 1), httpx.ReadError("reset"), reply(1, 2))
    run = RemoteRun("https://host:8000", Path("ca"))
    run.follow()
    assert run.view.devices[1].upload_bytes == 10


def test_the_newest_run_is_followed_and_its_successor(
    superlink: FakeSuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run that goes on keeps its view; another one begins a new one."""
    monkeypatch.setattr(remote_run, "SUCCESSOR_SECONDS", 3600.0)
    superlink.add("finished:failed", round_ended(1))
    waits: list[float] = []

    def start_again(seconds: float) -> None:
        waits.append(seconds)
        superlink.add("running", round_ended(2))

    monkeypatch.setattr("server.deployment.remote_run.time.sleep", start_again)
    run = RemoteRun("https://host:8000", Path("ca"))
    run.follow()
    assert [line["round"] for line in run.view.rounds] == [1, 2]
    assert len(waits) == 1
    superlink.add("running", round_ended(1, run="b"))
    run.follow()
    assert [line["run"] for line in run.view.rounds] == ["b"]


def test_a_run_that_was_named_ends_as_it_ends(superlink: FakeSuperLink) -> None:
    superlink.add("finished:failed", round_ended(1))
    superlink.add("running", round_ended(1), round_ended(2))
    named = RemoteRun("https://host:8000/1", Path("ca"))
    named.follow()
    assert "run 1 (a): finished:failed" in shown(named)


def test_once_shows_what_there_is(superlink: FakeSuperLink) -> None:
    run = RemoteRun("https://[::1]:8000/", Path("ca"))
    run.read()
    assert "https://[::1]:8000: no run yet" in shown(run)
    superlink.add("pending")
    run.read()
    assert "run 1: has not said anything yet" in shown(run)
    superlink.add("running", event("round-started", run="a", stage="float", round=3), "later")
    run.read()
    assert "run 2 (a): round-started float 3, " in shown(run)


@pytest.mark.parametrize(
    "url", ["http://a:1", "https://a", "https://a:1/x", "grpcs://a:1", "https://a b:1"]
)
def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected https://HOST:PORT"):
        RemoteRun(url, tmp_path)


def test_a_bad_certificate_file_is_named(tmp_path: Path) -> None:
    for content in (None, b"", b"text", b"\xff"):
        path = tmp_path / "ca.crt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=r"--ca .*ca\.crt: "):
            RemoteRun("https://localhost:1", path)


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers with the status that its path does not have."""

    answer: tuple[int, bytes] = (403, b"")

    def do_POST(self) -> None:
        code, body = self.answer
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[KeyFolder, KeyFolder]:
    """Two authorities; the first has signed for localhost only."""
    first, other = (KeyFolder(root=tmp_path_factory.mktemp("keys") / "s") for _ in range(2))
    for folder in (first, other):
        create_fleet_keys(folder, ["localhost"], [])
    return first, other


@pytest.fixture
def server(keys: tuple[KeyFolder, KeyFolder]) -> Iterator[http.server.HTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys[0].server_certificate, keys[0].server_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


NO_RUN = json.dumps({"code": 16, "detail": "Run not found."}).encode()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((403, b"<html>"), "it is the devices' proxy"),
        ((404, NO_RUN), "knows no run 5"),
        ((404, b"<html>"), "answered with HTTP 404"),
        ((502, b"<html>"), "answered with HTTP 502"),
        ((200, b"<html>"), "does not answer as a SuperLink does"),
    ],
)
def test_what_is_no_superlink_is_named(
    answer: tuple[int, bytes],
    said: str,
    server: http.server.HTTPServer,
    keys: tuple[KeyFolder, KeyFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Refusing, "answer", answer)
    url = f"https://localhost:{server.server_port}/5"
    for look in (RemoteRun.read, RemoteRun.follow):
        with pytest.raises(UserError, match=said):
            look(RemoteRun(url, keys[0].ca_certificate))


def test_what_is_wrong_with_the_connection_is_named(
    server: http.server.HTTPServer, keys: tuple[KeyFolder, KeyFolder]
) -> None:
    first, other = keys
    port = server.server_port
    for host, folder, said in (
        ("localhost", other, "its certificate is not good by .*/ca.crt: .*signature|issuer"),
        ("127.0.0.1", first, "IP address mismatch"),
    ):
        with pytest.raises(UserError, match=said):
            RemoteRun(f"https://{host}:{port}", folder.ca_certificate).follow()
    plain = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=plain.handle_request)
    thread.start()
    with pytest.raises(UserError, match="does not speak TLS"):
        RemoteRun(f"https://localhost:{plain.server_port}", first.ca_certificate).follow()
    thread.join()
    plain.server_close()
    with pytest.raises(UserError, match=r"can't be reached: .*refused"):
        RemoteRun(f"https://localhost:{plain.server_port}", first.ca_certificate).follow()
