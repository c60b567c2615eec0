"""Events as lines: their form, where they go, and that nothing goes where nobody listens."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common import events
from common.events import (
    EventFile,
    bound_fields,
    event_message,
    log_event,
    print_events_of_a_service,
)


def test_a_line_has_time_level_event_and_fields(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    before = datetime.now(UTC)
    with EventFile(path) as file, bound_fields(run="a", run_id="7"):
        file.open()
        with bound_fields(run="b"):
            log_event("round-ended", 'over\nand "done"', stage="float", round=2)
    (text,) = path.read_text().splitlines()
    line = json.loads(text)
    moment = datetime.fromisoformat(line.pop("time"))
    assert abs((moment - before).total_seconds()) < 60
    assert line == {
        "level": "info",
        "event": "round-ended",
        "run": "b",
        "run_id": "7",
        "stage": "float",
        "round": 2,
        "message": 'over\nand "done"',
    }


def test_lines_are_held_back_until_the_folder_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    with EventFile(path) as file:
        log_event("first")
        assert not path.parent.exists()
        path.parent.mkdir()
        file.open()
        log_event("second")
        written = [json.loads(line)["event"] for line in path.read_text().splitlines()]
        assert written == ["first", "second"]
    log_event("after the end")
    assert len(path.read_text().splitlines()) == 2


def test_a_run_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    with EventFile(tmp_path / "run" / "events.jsonl"):
        log_event("first")
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_appends(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for _ in range(2):
        with EventFile(path) as file:
            file.open()
            log_event("run-started")
    assert len(path.read_text().splitlines()) == 2


def test_a_service_prints_and_others_are_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(events.PRINT_VARIABLE, raising=False)
    handlers = list(events._LOGGER.handlers)
    try:
        print_events_of_a_service()
        log_event("silent")
        monkeypatch.setenv(events.PRINT_VARIABLE, "1")
        print_events_of_a_service()
        print_events_of_a_service()
        log_event("printed")
    finally:
        events._LOGGER.handlers[:] = handlers
    output = capsys.readouterr()
    assert output.out == ""
    assert [json.loads(line)["event"] for line in output.err.splitlines()] == ["printed"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"event": "note", "message": "hello"}', "hello"),
        ('{"event": "reply-refused", "device": 3, "message": "late"}', ""),
        ('{"event": "stage-started"}', ""),
        ("INFO : Flower's own", ""),
        ("[1, 2]", ""),
    ],
)
def test_what_people_are_told(line: str, message: str) -> None:
    assert event_message(line) == message
