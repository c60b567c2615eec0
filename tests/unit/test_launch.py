"""Starting a run in a fleet: what is sent, what is refused, what the exit code says."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from common.errors import UserError
from common.settings import Scalar
from server.cli import main
from server.deployment.control import ControlClient
from server.deployment.launch import run_settings, run_to_end


def test_overrides_replace_the_files_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    # As editors on Windows write it, with a byte order mark.
    file.write_text('\ufeff[data]\r\nalpha = 0.1\r\n[model]\r\nname = "resnet20"\r\n')
    overrides = ["data.alpha=2", "run.out=/runs/a b", "data.augment=false", "run.seed='7'"]
    with pytest.raises(UserError, match=r"run\.seed = '7': expected int"):
        run_settings(file, overrides)
    assert run_settings(file, overrides[:-1]) == {
        "data.alpha": 2,
        "model.name": "resnet20",
        "run.out": "/runs/a b",
        "data.augment": False,
    }
    assert run_settings(None, ["run.out=2026-11-30"]) == {"run.out": "2026-11-30"}


@pytest.mark.parametrize(
    ("content", "override", "said"),
    [
        ("[data", "run.seed=1", "is not TOML"),
        ("seed = 1", "run.seed=1", "seed = 1: expected a section"),
        ("[data]\nalfa = 1", "run.seed=1", "unknown setting 'data.alfa'"),
        ("", "run.seed", "expected key=value"),
        ("", "run.seed=-1", "run.seed = -1"),
        ("", "run.seed=1 run.seed=1", "run.seed is set twice on the command line"),
        # What the ServerApp would refuse, at every restart.
        (
            "[attack]\nname = 'sign-flip'",
            "run.seed=1",
            "attack.name = 'sign-flip': expected 'none'",
        ),
        ("", "fleet.name=pi-lab fleet.deadline=1", "fleet.name = 'pi-lab': expected none"),
        ("", "strategy.name=krum strategy.num-malicious=9", "needs at least 21 devices"),
        (
            "[federation]\nmixed-bits = '2,4'",
            "strategy.name=krum",
            "with federation.mixed-bits = '2,4'",
        ),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, content: str, override: str, said: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        run_settings(file, override.split())
    with pytest.raises(UserError, match="can't be read"):
        run_settings(tmp_path / "none.toml", [])


class FakeSuperLink:
    """A run whose log ends before the run does, as when the SuperLink restarts."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = list(statuses)
        self.num_logs = 0
        self.started: list[Mapping[str, Scalar]] = []

    def start_run(self, app: Path, settings: Mapping[str, Scalar]) -> str:
        self.started.append(settings)
        return str(len(self.started))

    def run_status(self, run_id: str) -> str:
        status = self.statuses.pop(0)
        if status == "away":
            raise UserError("the SuperLink is away")
        return status

    def follow_log(self, run_id: str) -> None:
        self.num_logs += 1


@pytest.mark.parametrize(
    ("last", "code"),
    [("finished:completed", 0), ("finished:failed", 1), ("finished:stopped", 1)],
)
def test_the_exit_code_is_the_runs_end(
    last: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("server.deployment.launch.POLL_SECONDS", 0.0)
    superlink = FakeSuperLink("pending", "away", "running", "away", last)
    assert run_to_end(cast(ControlClient, superlink), Path(), {}) == code
    assert superlink.num_logs == 2
    assert f"run 1: {last}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("statuses", "restarts", "code"),
    [
        # Started again until it completes, or has been started again often enough.
        (["failed", "failed", "completed"], 3, 0),
        (["failed", "failed"], 1, 1),
        # An operator who stopped it meant it.
        (["stopped"], 3, 1),
        (["failed", "refused"], 3, 1),
    ],
)
def test_a_failed_run_is_started_again(
    statuses: list[str], restarts: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.deployment.launch.RESTART_SECONDS", 0.0)
    superlink = FakeSuperLink(*(f"finished:{status}" for status in statuses))
    settings = {"run.resume": "/runs/a"}
    client = cast(ControlClient, superlink)
    assert run_to_end(client, Path(), settings, restarts=restarts) == code
    assert superlink.started == [settings] * len(statuses)


def test_restarts_need_a_folder_to_go_on_in() -> None:
    superlink = FakeSuperLink()
    for settings, restarts in (({}, 1), ({"run.out": "/runs/a"}, 1), ({"run.resume": "a"}, -1)):
        with pytest.raises(UserError, match="--restarts"):
            run_to_end(cast(ControlClient, superlink), Path(), settings, restarts=restarts)
    assert not superlink.started


def test_a_superlink_that_stays_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.deployment.launch.POLL_SECONDS", 0.0)
    monkeypatch.setattr("server.deployment.launch.OUTAGE_SECONDS", 0.0)
    with pytest.raises(UserError, match="is away"):
        run_to_end(cast(ControlClient, FakeSuperLink("away")), Path(), {})


def test_an_interrupted_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C leaves a run that goes on: no traceback, and the exit code that shells give it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.cli.run_settings", interrupt)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("status", "details", "said"),
    [
        ("running", "", "running"),
        ("finished:failed", "ServerApp failed with exception: gone", "finished:failed"),
        (
            "finished:failed",
            "ServerApp failed with exception: the run is refused: no teacher",
            "finished:refused",
        ),
    ],
)
def test_a_refused_run_is_told_from_one_that_failed(
    status: str, details: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.crt").touch()
    answer = {"runs": [{"status": status, "status-details": details}]}
    monkeypatch.setattr(ControlClient, "_flwr", lambda *_: answer)
    with ControlClient("localhost:8000", tmp_path / "ca.crt") as client:
        assert client.run_status("1") == said
