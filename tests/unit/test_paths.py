"""Tests of common.paths."""

from pathlib import Path

import pytest

from common.checkpoints import resolve_teacher
from common.config import Config
from common.errors import UserError
from common.paths import without_tilde
from server.records.recorder import default_run_folder
from simulations.settings.shipped import SCENARIOS

NOBODYS = "~there-is-no-such-user/x"


def test_a_home_folder_takes_the_place_of_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert without_tilde("~/x") == Path("/home/me/x")
    assert without_tilde("y/~") == Path("y/~")


def test_a_home_folder_of_nobody_is_refused() -> None:
    with pytest.raises(UserError, match=f"{NOBODYS}: nobody has such a home folder"):
        without_tilde(NOBODYS)
    with pytest.raises(UserError, match="nobody has such"):
        SCENARIOS.find(NOBODYS)
    with pytest.raises(UserError, match="nobody has such"):
        default_run_folder(Config.from_flat({"run.out": NOBODYS}))
    with pytest.raises(UserError, match="nobody has such"):
        resolve_teacher(NOBODYS, "resnet8", "digits")
