"""Tests of common.extras."""

import math
from pathlib import Path

import pytest

from common.errors import UserError
from common.extras import import_extra


def test_returns_the_module() -> None:
    assert import_extra("math", needed_for="adding") is math


def test_missing_package_names_what_for_and_the_extra() -> None:
    with pytest.raises(
        UserError, match=r"flying needs the package 'no_such_wings'.*fedquarc\[simulation\]"
    ):
        import_extra("no_such_wings.feathers", needed_for="flying")


def test_fault_inside_an_installed_package_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_wings.py").write_text("import no_such_feathers\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_feathers"):
        import_extra("broken_wings", needed_for="flying")
