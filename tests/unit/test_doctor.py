"""``python -m client``: checks of a device, starting its SuperNode, sizes, the largest batch."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.common.config import parse_config_args

from client.cli import main
from client.doctor import Finding, Subject, examine
from client.launch import (
    Launch,
    check_launch,
    parse_address,
    partition_id_of,
    run_supernode,
    supernode_command,
)
from client.measure import largest_fitting
from client.memory import (
    MB,
    available_bytes,
    give_back_freed,
    parse_size,
    peak_bytes,
    resident_bytes,
    supernode_bytes,
)
from client.node import NodeSettings
from client.workload import Workload, forward_flops, run_workload
from common.errors import UserError
from common.inference import predict_logits
from server.cli import main as server_main
from server.deployment.keys import KeyFolder, create_fleet_keys
from tests.conftest import ROOT
from tests.integration.deployment import free_ports
from tests.unit.image_files import write_tree


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFolder:
    folder = KeyFolder(root=tmp_path_factory.mktemp("fleet") / "secrets")
    create_fleet_keys(folder, ["127.0.0.1"], ["pi-1", "pi-2"])
    return folder


class Healthy(BaseHTTPRequestHandler):
    """What a SuperLink answers to /health."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def superlink(keys: KeyFolder) -> Iterator[str]:
    """HOST:PORT of a server with the fleet's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.root / "server.crt", keys.root / "server.key")
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def other_service(keys: KeyFolder) -> Iterator[str]:
    """HOST:PORT of a server with the fleet's certificate that speaks HTTP/2 alone, as gRPC does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.root / "server.crt", keys.root / "server.key")
    settings_frame = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

    class Framed(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with context.wrap_socket(self.request, server_side=True) as connection:
                connection.recv(1000)
                connection.sendall(settings_frame)

    with socketserver.TCPServer(("127.0.0.1", 0), Framed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def findings(**subject: object) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(Subject(**subject))}  # type: ignore[arg-type]


def test_a_healthy_device(keys: KeyFolder, superlink: str, tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant", "bee"], images=2)
    found = findings(
        superlink=superlink,
        data=tmp_path,
        key=keys.device_key("pi-1"),
        ca=keys.root / "ca.crt",
    )
    for name in ("Python", "PyTorch", "Clock", "Images", "Unreadable images", "Key"):
        assert found[name].passed, found[name]
    assert found["CA certificate"].passed, found["CA certificate"]
    assert found["SuperLink"].passed, found["SuperLink"]
    assert found["Images"].detail == "4 in 2: ant 2, bee 2"


def test_a_class_without_images_is_no_fault(tmp_path: Path) -> None:
    """As in a round: the device lacks that class. "train" is a class here."""
    write_tree(tmp_path, ["ant", "train"], images=2)
    (tmp_path / "bee").mkdir()
    images = findings(data=tmp_path)["Images"]
    assert images.passed
    assert images.detail == "4 in 3: ant 2, bee 0, train 2"


def test_what_is_wrong_is_named_with_what_to_do(keys: KeyFolder, tmp_path: Path) -> None:
    write_tree(tmp_path / "data", ["ant"], images=2)
    (tmp_path / "data/ant/broken.png").write_bytes(b"no image")
    key = tmp_path / "readable.key"
    key.write_bytes(keys.device_key("pi-1").read_bytes())
    key.chmod(0o644)
    (tmp_path / "ca.crt").write_text("no certificate")
    found = findings(data=tmp_path / "data", key=key, ca=tmp_path / "ca.crt")
    failed = {name for name, finding in found.items() if not finding.passed}
    assert failed >= {"Unreadable images", "Key", "CA certificate"}
    assert found["Unreadable images"].detail == "1: ant/broken.png"
    assert found["Key"].remedy == f"chmod 600 {key}"
    assert all(finding.remedy for finding in found.values() if not finding.passed)


def test_what_may_not_be_looked_at_is_a_finding(locked: Path) -> None:
    found = findings(data=locked / "images", key=locked / "pi.key")
    for name in ("Images", "Key"):
        assert not found[name].passed
        assert "Permission denied" in found[name].detail


def test_what_may_not_be_looked_at_is_one_sentence(
    locked: Path, keys: KeyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--superlink", "a:1", "--partition-id", "0"]
    arguments += ["--key", str(locked / "pi.key"), "--ca", str(keys.root / "ca.crt")]
    assert main(arguments) == 2
    assert server_main(["run", "--ca", str(locked / "ca.crt")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("Permission denied") == errors.count("\n") == 2


@pytest.mark.parametrize(
    ("seconds", "passed", "said"),
    [
        (0, True, " ahead"),
        (3, True, " ahead"),
        (20, False, " s ahead"),
        (-200, True, " s behind"),
        (-400, False, " s behind"),
    ],
)
def test_a_clock_that_differs_from_the_servers(
    seconds: float,
    passed: bool,
    said: str,
    keys: KeyFolder,
    superlink: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower takes what was signed up to 5 s from now, or 300 s ago."""
    now = time.time
    monkeypatch.setattr("client.doctor.time.time", lambda: now() + seconds)
    monkeypatch.setattr(Healthy, "date_time_string", lambda *_: formatdate(now(), usegmt=True))
    found = findings(superlink=superlink, ca=keys.root / "ca.crt")["Clock beside the server's"]
    assert found.passed == passed
    assert said in found.detail


def test_a_server_of_another_ca_is_not_trusted(superlink: str, tmp_path: Path) -> None:
    other = KeyFolder(root=tmp_path / "other")
    create_fleet_keys(other, ["127.0.0.1"], [])
    found = findings(superlink=superlink, ca=other.root / "ca.crt")
    assert not found["SuperLink"].passed
    assert "verify failed" in found["SuperLink"].detail or found["SuperLink"].remedy


def test_a_server_that_is_not_there(keys: KeyFolder) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        found = findings(superlink=f"127.0.0.1:{port}", ca=keys.root / "ca.crt")
    assert not found["SuperLink"].passed


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "it gives no HTTP/1 answer"),
        ("fleet..example.org:9443", "fleet..example.org is no host name"),
        (f"{'a' * 64}.org:9443", "more than 63 letters"),
    ],
    ids=["another service", "an empty label", "a long label"],
)
def test_an_address_that_is_no_superlinks_is_one_sentence(
    address: str,
    said: str,
    keys: KeyFolder,
    other_service: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    superlink, ca = address or other_service, keys.root / "ca.crt"
    finding = findings(superlink=superlink, ca=ca)["SuperLink"]
    assert not finding.passed
    assert said in finding.detail
    assert main(["measure", "--superlink", superlink, "--ca", str(ca)]) == 2
    errors = capsys.readouterr().err
    assert f"{superlink} does not answer: " in errors
    assert said in errors


def test_no_server_is_asked_without_a_certificate_to_know_it_by(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("no certificate")
    for subject in ({"ca": tmp_path / "ca.crt"}, {"ca": tmp_path / "missing"}, {}):
        finding = findings(superlink="127.0.0.1:1", **subject)["SuperLink"]
        assert not finding.passed
        assert "was not tried" in finding.detail


def test_the_doctors_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data", str(tmp_path / "missing")]) == 1
    assert "failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "passed", "detail"),
    [
        ("echo throttled=0x50000", True, "none"),  # of the past: bits 16 and 18
        ("echo throttled=0x50005", False, "under-voltage, throttled"),
        ("echo VCHI initialization failed >&2; exit 255", True, "group video"),
    ],
)
def test_a_throttled_board_and_one_that_may_not_be_asked(
    answer: str, passed: bool, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits of `vcgencmd get_throttled`: 0 is under-voltage now, 2 is throttled now."""
    tool = tmp_path / "vcgencmd"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = findings()["Throttling"]
    assert finding.passed is passed
    assert detail in finding.detail


def launch(keys: KeyFolder, data: Path | None, **changes: object) -> Launch:
    values = {
        "superlink": "fleet.example.org:9443",
        "data": data,
        "key": keys.device_key("pi-1"),
        "ca": keys.root / "ca.crt",
        **changes,
    }
    return Launch(**values)  # type: ignore[arg-type]


def test_flower_understands_the_command(keys: KeyFolder, tmp_path: Path) -> None:
    """The node config survives Flower's own parser, a blank in the path included."""
    data = tmp_path / "my images"
    data.mkdir()
    settings = launch(
        keys,
        data,
        partition_id=7,
        threads=4,
        max_memory_bytes=512_000_000,
        max_temperature=75.0,
        weight_bits="2,4",
    )
    check_launch(settings)
    command = supernode_command(settings)
    assert "--insecure" not in command
    assert command[command.index("--superlink") + 1] == "fleet.example.org:9443"
    assert command[command.index("--root-certificates") + 1] == str(keys.root / "ca.crt")
    node_config = parse_config_args([command[command.index("--node-config") + 1]])
    assert NodeSettings.from_node_config(node_config, 1) == NodeSettings(
        partition_id=7,
        data_dir=str(data.resolve()),
        threads=4,
        max_memory=512_000_000,
        max_temperature=75.0,
        weight_bits=(2, 4),
    )


def test_an_emulated_device_has_no_folder_but_a_number(keys: KeyFolder, tmp_path: Path) -> None:
    settings = launch(keys, None, partition_id=2, port=9100)
    check_launch(settings)
    command = supernode_command(settings)
    assert command[command.index("--port") + 1] == "9100"
    assert command[command.index("--node-config") + 1] == "partition-id=2"
    with pytest.raises(UserError, match="expected --data DIR, or --partition-id N"):
        check_launch(launch(keys, None))
    with pytest.raises(UserError, match="--port 65536: expected 1 to 65535"):
        check_launch(launch(keys, tmp_path, port=65536))


def test_a_device_is_known_by_its_key(keys: KeyFolder, tmp_path: Path) -> None:
    """By its private one alone: the last 31 bits of BLAKE2b of the public one, type and key."""
    first, second = keys.device_key("pi-1"), keys.device_key("pi-2")
    alone = Path(shutil.copy(first, tmp_path))
    public = b" ".join(keys.device_public_key("pi-1").read_bytes().split()[:2])
    digest = hashlib.blake2b(public, digest_size=8).digest()
    assert partition_id_of(alone) == int.from_bytes(digest[-4:], "big") % 2**31
    assert partition_id_of(first) == partition_id_of(alone) != partition_id_of(second)
    with pytest.raises(UserError, match=r"ca\.key: expected a private key in OpenSSH's format"):
        partition_id_of(keys.ca_key)


@pytest.mark.parametrize("address", ["fleet", "fleet:", "fleet:x", "fleet:70000", "a b:1", ""])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT"):
        parse_address(address)


def test_addresses() -> None:
    assert parse_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert parse_address("[::1]:443") == ("::1", 443)


def test_a_key_that_others_can_read_is_refused(keys: KeyFolder, tmp_path: Path) -> None:
    key = tmp_path / "pi.key"
    key.write_bytes(b"PRIVATE KEY")
    key.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        check_launch(launch(keys, tmp_path, key=key))


def test_bits_that_are_none_are_refused(keys: KeyFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--bits = '5,1': expected bit-widths as '2,4'"):
        check_launch(launch(keys, tmp_path, weight_bits="5,1"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_temperature": 500.0}, "max-temperature = 500.0: expected 0 to 150"),
        ({"min_battery": 101.0}, "min-battery = 101.0: expected 0 to 100"),
        ({"threads": 257}, "threads = 257: expected 1 to 256"),
        ({"partition_id": -1}, "partition-id = -1: expected 0 to"),
    ],
)
def test_what_the_device_would_refuse_is_refused_before_it_starts(
    values: dict[str, float], message: str, keys: KeyFolder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        check_launch(launch(keys, tmp_path, **values))


def test_a_missing_folder_is_one_sentence(
    keys: KeyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--superlink", "a:1", "--data", str(tmp_path / "no")]
    arguments += ["--key", str(keys.device_key("pi-1")), "--ca", str(keys.root / "ca.crt")]
    assert main(arguments) == 2
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * 10**6),
        ("1.5G", 1_500_000_000),
        ("2Mi", 2 * 2**20),
        ("7", 7),
        ("64MB", 64 * 10**6),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-5M", "5X", "0"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-memory", "x"], "argument --max-memory: size 'x'"),
        (["--model", "nope"], "error: model.name = 'nope'"),
        # Empty, as the systemd unit's variable may be, is no limit.
        (["--max-memory", "", "--superlink", "localhost:1"], "--superlink needs --ca"),
        (["--superlink", "localhost:1", "--ca", "/nowhere"], "--ca /nowhere: there is no such"),
    ],
)
def test_wrong_measurements_are_refused_before_any_training(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_training(*_: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("client.measure.measure_workload", no_training)
    try:
        code = main(["measure", *arguments])
    except SystemExit as error:  # argparse's
        code = int(error.code or 0)
    assert code == 2
    assert said in capsys.readouterr().err


def test_memory_of_this_process() -> None:
    assert 0 < resident_bytes() <= peak_bytes()
    assert available_bytes() > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_what_was_freed_is_given_back() -> None:
    """1,000 blocks of 80 kB, below what glibc returns by itself; the last one keeps the heap's end.

    Of their 80 MB at least half are gone: other tests' gaps may have held some of them.
    """
    blocks = [torch.ones(20_000) for _ in range(1000)]
    last = blocks.pop()
    del blocks
    before = resident_bytes()
    give_back_freed()
    assert before - resident_bytes() > 40 * MB
    assert last[0] == 1


def test_memory_of_the_supernode_that_started_this_process(tmp_path: Path) -> None:
    """Two processes named as Flower's hold 64 MB and 32 MB, and the interpreter's own, below 60."""
    child = "from client.memory import supernode_bytes; print(supernode_bytes())"
    start = "import subprocess, sys; held = bytearray({} * 10**6); subprocess.run({}, check=True)"
    for name, held, command in (
        ("flower-superexec", 32, ["-c", child]),
        ("flower-supernode", 64, [str(tmp_path / "flower-superexec")]),
    ):
        (tmp_path / name).write_text(start.format(held, [sys.executable, *command]))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "flower-supernode")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    assert 96e6 < int(done.stdout) < 156e6
    assert supernode_bytes() == 0


def test_the_largest_batch() -> None:
    """100 MB and 2 a batch's image: 32 images take 164, 64 take 228 MB; the limit is 200."""
    assert largest_fitting(lambda batch: 100 + 2 * batch, 200) == 32
    with pytest.raises(UserError, match="batch of 2"):
        largest_fitting(lambda batch: 100 + 2 * batch, 103)


def test_a_measured_device_scores_all_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 images: the student's outputs on all of them, and the teacher's."""
    monkeypatch.setenv("FEDQUARC_CACHE", str(tmp_path))
    num_scored = []

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        logits = predict_logits(*arguments, **options)
        num_scored.append(len(logits))
        return logits

    for module in ("client.rounds", "client.selection"):
        monkeypatch.setattr(f"{module}.predict_logits", counted)
    run_workload(Workload(model="resnet8", num_images=40, image_size=8))
    assert num_scored == [40, 40]


def test_operations_of_resnet20() -> None:
    """40.55 M multiply-adds (He et al.'s 41 M without, 10 classes) and 2 x 0.26 M in shortcuts.

    Stem 32^2 x 16 x 27 = 442,368; stage 1: 6 x 32^2 x 16 x 144 = 14,155,776; stage 2:
    16^2 x 32 x (144 + 5 x 288) = 12,976,128, shortcut 16^2 x 32 x 16 = 131,072; stage 3:
    8^2 x 64 x (288 + 5 x 576) = 12,976,128, shortcut 131,072; linear 640. Sum 40,813,184.
    """
    assert forward_flops("resnet20", 10, 32) == 2 * 40_813_184


def test_a_port_in_use_is_refused(keys: KeyFolder, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port} can't be had .*in use"):
            run_supernode(launch(keys, None, partition_id=2, port=port))


@pytest.fixture
def started(keys: KeyFolder, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that a SuperNode is started with by a service, whose path is the system's."""
    environments: list[dict[str, str]] = []
    monkeypatch.setattr("os.execve", lambda _path, _command, values: environments.append(values))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):
        monkeypatch.delenv(name)
    run_supernode(launch(keys, None, partition_id=2, port=free_ports(1)[0]))
    return environments[0]


def test_a_supernode_finds_the_programs_of_flower_that_it_starts(started: dict[str, str]) -> None:
    for program in ("flower-superexec", "flwr-clientapp"):
        found = shutil.which(program, path=started["PATH"])
        assert found is not None
        assert Path(found).parent == Path(sysconfig.get_path("scripts"))
    assert started["PATH"].endswith(":/usr/bin:/bin")


def test_a_supernode_tells_nobody_but_the_server_of_itself(started: dict[str, str]) -> None:
    assert started["FLWR_TELEMETRY_ENABLED"] == "0"
    assert started["FLWR_DISABLE_UPDATE_CHECK"] == "1"


def test_an_interrupted_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C: no traceback, and the exit code that shells give it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    parser = argparse.ArgumentParser()
    parser.set_defaults(command=interrupt)
    monkeypatch.setattr("client.cli._parser", lambda: parser)
    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"
