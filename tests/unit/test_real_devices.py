"""Whole federations of devices with images of their own; nothing of these leaves a device."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MessageType, RecordDict

from client.health import Health
from client.local_device import local_device
from client.state import load_coreset, load_inputs
from common.config import Config
from common.data.input_spec import InputSpec
from common.errors import UserError
from common.events import EventFile
from server.app import run_federation
from tests.records import recorded
from tests.unit.fake_grid import FakeGrid
from tests.unit.image_files import png
from tests.unit.local_fleet import LocalFleet
from tests.unit.test_server_app import SilentReporter

CLASSES = ("ant", "bee", "cat")
SIDE = 16


def write_images(folder: Path, counts: dict[str, int], seed: int) -> None:
    """FOLDER/CLASS/private-*.png: noise, brighter for later classes, so that it can be learned."""
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        level = 40 + 60 * (CLASSES.index(name) if name in CLASSES else 0)
        for index in range(count):
            pixels = generator.integers(0, 64, (SIDE, SIDE, 3)) + level
            file = folder / name / f"private-{seed}-{index}.png"
            file.write_bytes(png(pixels.astype(np.uint8)))


@pytest.fixture
def server_images(tmp_path: Path) -> Path:
    """The server's test images, and as many for its normalisation."""
    write_images(tmp_path / "server" / "train", dict.fromkeys(CLASSES, 4), seed=100)
    write_images(tmp_path / "server" / "test", dict.fromkeys(CLASSES, 4), seed=101)
    return tmp_path / "server"


def settings(server_images: Path) -> dict[str, Any]:
    return {
        "data.dataset": "folder",
        "data.root": str(server_images),
        "data.num-devices": 3,
        "warmup.num-rounds": 1,
        "federation.num-rounds": 2,
        "federation.round-timeout": 60.0,
        "coreset.fraction": 0.3,
        "evaluation.device-interval": 1,
        "evaluation.threads": 1,
    }


def federate(
    tmp_path: Path, flat: dict[str, Any], counts: dict[int, dict[str, int]]
) -> tuple[dict[str, Any], LocalFleet, SilentReporter]:
    folders = {k: tmp_path / f"device-{k}" for k in counts}
    for k, folder in folders.items():
        folder.mkdir()
        write_images(folder, counts[k], seed=k)
    # A device knows the run's settings, not the server's folder.
    fleet = LocalFleet(folders, {**flat, "data.root": "/nowhere"})
    reporter = SilentReporter()
    grid = FakeGrid(fleet, list(folders))
    summary = run_federation(grid, Config.from_flat(flat), reporter, tmp_path / "run")
    return summary, fleet, reporter


def test_nothing_private_is_in_any_message(tmp_path: Path, server_images: Path) -> None:
    """Every byte of a federation against pixels, files, names, labels and coresets of its devices.

    Class folders differ between the devices, and one has fewer images than a batch.
    """
    counts = {0: {"ant": 18, "bee": 14}, 1: {"bee": 10, "cat": 24}, 2: {"cat": 3}}
    summary, fleet, _ = federate(tmp_path, settings(server_images), counts)
    assert summary["num_devices"] == 3
    assert {line["status"] for line in recorded(tmp_path / "run", "device")} == {"ok"}
    assert not (tmp_path / "run" / "split.png").exists()  # nobody knows who holds what

    sent = b"\n".join(fleet.traffic)
    assert len(fleet.traffic) > 2 * 3 * 4
    log = (tmp_path / "run" / "events.jsonl").read_bytes()
    assert_nothing_private(sent, fleet)
    assert_nothing_private(log, fleet)
    # The check can find things: what does travel is seen.
    assert b"num-samples" in sent
    assert CLASSES[0].encode() in sent
    # Server and devices logged: both are one process here.
    logged = {(event["event"], event.get("device")) for event in map(json.loads, log.splitlines())}
    for device in (0, 1, 2):
        for event in ("device-joined", "round-started", "reply-sent", "reply-accepted"):
            assert (event, device) in logged
    for event in ("run-started", "round-started", "round-ended", "checkpoint-written", "run-ended"):
        assert (event, None) in logged
    for name in CLASSES[1:]:  # the first is a part of "quantized"
        assert name.encode() not in log


def test_a_device_that_has_many_more_images_is_asked_again(
    tmp_path: Path, server_images: Path
) -> None:
    """Registered with 11 of 12 images, it trains on 32 of 36 when it is asked a second time: more
    than 22. Its reply is refused, and so is no other: it says that it has 32 before the third."""
    folder, flat = tmp_path / "device", settings(server_images)
    flat |= {"data.num-devices": 1, "federation.min-devices": 1, "warmup.num-rounds": 3}
    write_images(folder, {"ant": 6, "cat": 6}, seed=0)
    fleet = LocalFleet({0: folder}, flat)

    def answer(partition_id: int, message: Message) -> RecordDict | Error:
        reply = fleet(partition_id, message)
        if message.metadata.message_type == MessageType.TRAIN and not (folder / "bee").exists():
            write_images(folder, {"bee": 24}, seed=1)
            local_device.cache_clear()  # as the process that the next message starts
        return reply

    run_federation(
        FakeGrid(answer, [0]), Config.from_flat(flat), SilentReporter(), tmp_path / "run"
    )
    trained = [line for line in recorded(tmp_path / "run", "device") if line["stage"] == "float"]
    assert [line["status"] for line in trained] == ["ok", "bad-metrics", "ok"]
    assert [line["num_samples"] for line in trained] == [11, 11, 32]
    others = [line for line in recorded(tmp_path / "run", "device") if line["stage"] != "float"]
    assert {line["status"] for line in others} == {"ok"}


def assert_nothing_private(sent: bytes, fleet: LocalFleet) -> None:
    """No pixels, labels, coreset, folder or file of the fleet's devices is in ``sent``."""
    for k, context in fleet.contexts.items():
        inputs = load_inputs(context.state)
        assert inputs is not None
        assert inputs.class_names == CLASSES
        device = local_device(
            context.node_config["data-dir"],  # type: ignore[arg-type]
            inputs,
            partition_id=k,
            holdout_fraction=0.1,
            seed=0,
        )
        for images in (device.train, device.holdout):
            for image in images.images:
                layouts = (image, image.permute(1, 2, 0))
                for pixels in layouts:
                    row = pixels.contiguous().numpy().tobytes()[:SIDE]
                    assert row not in sent
                    as_float = (pixels.contiguous().numpy().astype(np.float32) / 255).tobytes()
                    assert as_float[: 4 * 4] not in sent
        labels = device.train.labels
        coreset = load_coreset(context.state, device.train.digest)
        assert coreset is not None
        assert len(coreset.indices)
        for secret in (labels, coreset.indices):
            if len(secret) < 8:
                continue  # so few small numbers are in every message
            for kind in (np.int64, np.int32, np.uint8):
                assert secret.numpy().astype(kind).tobytes() not in sent
            assert str(secret.tolist()).encode() not in sent
        assert str(context.node_config["data-dir"]).encode() not in sent
    for private in (b"private-", b".png", b"PNG", b"IDAT", b"indices", b"coreset\0", b"residual"):
        assert private not in sent


def test_what_would_leak_is_found(tmp_path: Path, server_images: Path) -> None:
    """The capture sees the text of an error that a device sends."""
    folder = tmp_path / "device"
    write_images(folder, {"ant": 4}, seed=0)
    fleet = LocalFleet({0: folder}, settings(server_images), {"threads": "private-0-0.png"})
    FakeGrid(fleet, [0]).send_and_receive([_query()])
    assert b"private-0-0.png" in fleet.traffic[-1]


def test_devices_with_folders_that_cannot_be_used_are_left_out_and_say_no_more_than_that(
    tmp_path: Path, server_images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of four, one has a class that nobody else has, and one has no images."""
    counts: dict[int, dict[str, int]] = {
        0: {"ant": 6, "bee": 6},
        1: {"cat": 6},
        2: {"ant": 3, "dog-of-mine": 3},
        3: {},
    }
    flat = settings(server_images) | {"data.num-devices": 4}
    with caplog.at_level(logging.ERROR, logger="client.app"):
        summary, fleet, reporter = federate(tmp_path, flat, counts)
    assert summary["num_devices"] == 2
    notes = " ".join(reporter.notes())
    assert "device 2 can't take part: its folder has classes that this run has not" in notes
    assert "device 3 can't take part: its folder holds no images" in notes
    assert b"dog-of-mine" not in b"".join(fleet.traffic)
    assert "dog-of-mine" in caplog.text


def test_a_file_that_breaks_during_a_run_costs_contributions_and_no_names(
    tmp_path: Path, server_images: Path
) -> None:
    folder = tmp_path / "device"
    write_images(folder, {"ant": 4, "bee": 4}, seed=0)
    fleet = LocalFleet({0: folder}, settings(server_images))
    grid = FakeGrid(fleet, [0])
    (folder / "ant" / "private-0-0.png").write_bytes(b"damaged")
    (reply,) = grid.send_and_receive([_query()])
    assert reply.content.config_records["reply"]["status"] == "no-data"
    assert reply.content.config_records["reply"]["reason"] == "its folder can't be read"
    assert b"private-0-0" not in b"".join(fleet.traffic)


def test_an_error_that_nobody_foresaw_is_told_to_the_device_alone(
    tmp_path: Path,
    server_images: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its text may hold names of files; the server hears that there was one."""

    def fail(*arguments: Any, **settings: Any) -> None:
        raise OSError("private-0-0.png")

    monkeypatch.setattr("client.app.local_device", fail)
    fleet = LocalFleet({0: tmp_path}, settings(server_images))
    with EventFile(tmp_path / "events.jsonl") as file:
        file.open()
        (reply,) = FakeGrid(fleet, [0]).send_and_receive([_query()])
    assert "the device failed; its own log says why" in str(reply.error.reason)
    assert b"private-0-0" not in b"".join(fleet.traffic)
    assert "private-0-0.png" in caplog.text
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert (event["event"], event["level"], event["error"]) == ("device-failed", "error", "OSError")
    assert (event["run_id"], event["device"]) == ("1", 0)


def test_devices_train_at_the_bits_that_their_operators_name(
    tmp_path: Path, server_images: Path
) -> None:
    """Device 3, which is for 8 bits only, stays out; device 2 names none and takes 2 (2 mod 2)."""
    folders = {k: tmp_path / f"device-{k}" for k in range(4)}
    for k, folder in folders.items():
        write_images(folder, {"ant": 6, "cat": 6}, seed=k)
    flat = settings(server_images) | {"data.num-devices": 4, "federation.mixed-bits": "2,4"}
    fleet = LocalFleet(folders, flat)
    for k, bits in ((0, 4), (1, "2,3"), (3, 8)):
        fleet.contexts[k].node_config["weight-bits"] = bits
    reporter = SilentReporter()
    grid = FakeGrid(fleet, list(folders))
    summary = run_federation(grid, Config.from_flat(flat), reporter, tmp_path / "run")
    trained = [line for line in recorded(tmp_path / "run", "device") if line["status"] == "ok"]
    assert {(line["partition_id"], line["weight_bits"]) for line in trained} == {
        (0, 4),
        (1, 2),
        (2, 2),
    }
    assert "device 3 can't take part: it trains at 8 bits, not 2 or 4" in reporter.notes()
    assert summary["final_bit_accuracy"].keys() == {"2", "4"}


def test_a_device_that_was_started_anew_is_told_again(tmp_path: Path, server_images: Path) -> None:
    """Device 0 restarts after the first query: it misses the warm-up round and is back then."""
    restarted: list[int] = []

    class Restarting(LocalFleet):
        def __call__(self, partition_id: int, message: Any) -> Any:
            if not restarted and message.metadata.message_type.startswith("train"):
                restarted.append(partition_id)
                self.restart(partition_id)
            return super().__call__(partition_id, message)

    folders = {k: tmp_path / f"device-{k}" for k in range(3)}
    for k, folder in folders.items():
        write_images(folder, {"ant": 6, "cat": 6}, seed=k)
    flat = settings(server_images)
    grid = FakeGrid(Restarting(folders, flat), [0, 1, 2])
    run_federation(grid, Config.from_flat(flat), SilentReporter(), tmp_path / "run")
    statuses = [
        (line["stage"], line["partition_id"], line["status"])
        for line in recorded(tmp_path / "run", "device")
        if line["status"] != "ok"
    ]
    assert statuses == [("float", restarted[0], "no-input-spec")]
    assert len(grid.sent_of("query")) == 4


def _query() -> Any:
    from flwr.app import Message

    from common.messages import QueryRequest
    from tests.unit.fake_grid import node_id_of

    inputs = InputSpec(
        dataset_name="folder",
        class_names=CLASSES,
        channels=3,
        height=SIDE,
        width=SIDE,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        crop_padding=2,
        flip=True,
    )
    return Message(
        QueryRequest(inputs=inputs).to_record(), dst_node_id=node_id_of(0), message_type="query"
    )


def test_a_hot_device_pauses_and_says_so(
    tmp_path: Path, server_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 degrees at the first step, 60 from then on; the limit is 75."""
    readings = [80.0, 60.0]
    monkeypatch.setattr(
        "client.app.read_health",
        lambda: Health(temperature_celsius=readings.pop(0) if len(readings) > 1 else readings[0]),
    )
    monkeypatch.setattr("client.throttle.PAUSE_SECONDS", 0.01)
    folder = tmp_path / "device"
    write_images(folder, {"ant": 6, "cat": 6}, seed=0)
    flat = settings(server_images) | {"data.num-devices": 1, "federation.min-devices": 1}
    fleet = LocalFleet({0: folder}, flat, {"max-temperature": 75})
    run_federation(FakeGrid(fleet, [0]), Config.from_flat(flat), SilentReporter(), tmp_path / "run")
    lines = recorded(tmp_path / "run", "device")
    first, *later = [line for line in lines if line["task"] == "train"]
    assert first["temperature_celsius"] == 80
    assert first["paused_seconds"] > 0
    # Looked at in quantized rounds as well.
    assert [line["temperature_celsius"] for line in later] == [60, 60]


@pytest.mark.parametrize(
    ("health", "limits", "reason"),
    [
        (
            Health(temperature_celsius=80.0),
            {"max-temperature": 75},
            "80 degrees, the limit is 75",
        ),
        (Health(battery_percent=20.0), {"min-battery": 30}, "battery at 20 %, the limit is 30 %"),
    ],
)
def test_a_device_that_goes_on_pausing_says_so_before_the_server_gives_it_up(
    health: Health,
    limits: dict[str, int],
    reason: str,
    tmp_path: Path,
    server_images: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nine tenths of a round of 1 s after it began."""
    monkeypatch.setattr("client.app.read_health", lambda: health)
    monkeypatch.setattr("client.throttle.PAUSE_SECONDS", 0.01)
    folder = tmp_path / "device"
    write_images(folder, {"ant": 6, "cat": 6}, seed=0)
    flat = settings(server_images) | {"data.num-devices": 1, "federation.min-devices": 1}
    flat |= {"warmup.num-rounds": 1, "federation.round-timeout": 1.0}
    fleet = LocalFleet({0: folder}, flat, limits)
    with pytest.raises(UserError, match=reason):
        run_federation(
            FakeGrid(fleet, [0]), Config.from_flat(flat), SilentReporter(), tmp_path / "run"
        )
    (line,) = recorded(tmp_path / "run", "device")
    assert line["status"] == "paused"
