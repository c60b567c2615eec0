"""Tests of common.atomic_file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from common.atomic_file import replacing


@pytest.mark.parametrize("durable", [False, True])
def test_the_new_file_takes_the_old_ones_place_at_the_end(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "file.txt"
    for content in ("first", "second"):
        with replacing(path, durable=durable) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
        assert os.listdir(path.parent) == ["file.txt"]


def test_after_an_error_everything_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with contextlib.suppress(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_durable_file_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    there: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: there.append(path.exists()))
    with replacing(path, durable=True) as temporary:
        temporary.write_text("new")
    assert there == [False]
    assert path.exists()
