"""Tests of simulations.paper.folder: what is finished stays, nothing is mixed."""

import errno
import json
import os
from pathlib import Path

import pytest

from common.errors import UserError
from simulations.paper.folder import ResultFolder, cell_key
from simulations.paper.grid import Cell
from tests.unit.grid_files import GRID, make_grid, make_result


def first_cell(folder: Path, text: str = GRID) -> Cell:
    return make_grid(folder, text).cells([0])[0]


def test_a_kept_cell_is_found_again_and_others_are_not(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    cells = grid.cells([0, 1])
    out = tmp_path / "made" / "on the way"
    ResultFolder(out, grid).save(cells[2], make_result(61.5))
    folder = ResultFolder(out, grid)
    assert folder.load(cells[2]) == make_result(61.5)
    assert [cell for cell in cells if folder.load(cell) is not None] == [cells[2]]
    assert sorted(path.name for path in out.rglob("*.json")) == [
        f"{cell_key(cells[2])}.json",
        "grid.json",
    ]


def test_a_diverged_cell_is_a_finished_cell(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    cell = grid.cells([0])[0]
    ResultFolder(tmp_path / "out", grid).save(cell, make_result(None))
    assert ResultFolder(tmp_path / "out", grid).load(cell) == make_result(None)


def test_nothing_is_written_before_a_cell_is_finished(tmp_path: Path) -> None:
    ResultFolder(tmp_path / "out", make_grid(tmp_path))
    assert not (tmp_path / "out").exists()


def test_keys_tell_settings_and_seeds_apart(tmp_path: Path) -> None:
    cells = make_grid(tmp_path).cells([0, 1])
    assert len({cell_key(cell) for cell in cells}) == len(cells)


def test_keys_do_not_depend_on_where_the_data_are(tmp_path: Path) -> None:
    here = make_grid(tmp_path, overrides=("data.root=here",)).cells([0])[0]
    assert cell_key(here) == cell_key(first_cell(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch-size: 32", "batch-size: 16", "training.batch-size is 32 there and 16 here"),
        ("model: {", "run: {threads: 2}\n  model: {", "run.threads is 'not set' there and 2 here"),
        ("local-epochs: 2", "local-epochs: 3", "local-epochs in share 5 % is 2 there and 3 here"),
        ("share", "part", "its axes are method, share there and method, part here"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    grid = make_grid(tmp_path)
    ResultFolder(tmp_path / "out", grid).save(grid.cells([0])[0], make_result())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(UserError, match=f"made with other settings: .*{message}.*--out"):
        ResultFolder(tmp_path / "out", make_grid(tmp_path, GRID.replace(old, new)))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_an_axis_may_gain_choices(tmp_path: Path) -> None:
    """Cells of the first grid stay; going back to it is no other grid either."""
    grid = make_grid(tmp_path)
    cell = grid.cells([0])[0]
    ResultFolder(tmp_path / "out", grid).save(cell, make_result())
    larger = make_grid(tmp_path, GRID.replace("[random, res]", "[random, res, ds]"))
    folder = ResultFolder(tmp_path / "out", larger)
    assert folder.load(cell) == make_result()
    folder.save(larger.cells([0])[-1], make_result(50.0))
    assert ResultFolder(tmp_path / "out", grid).load(cell) == make_result()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty and holds no grid\.json"):
        ResultFolder(tmp_path / "out", make_grid(tmp_path))
    with pytest.raises(UserError, match="expected a folder, found a file"):
        ResultFolder(tmp_path / "out" / "notes.txt", make_grid(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1, "grid": "small"}'])
def test_a_damaged_memory_of_the_grid_is_refused(tmp_path: Path, content: str) -> None:
    """What its cells were made with is not known."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "grid.json").write_text(content)
    with pytest.raises(UserError, match=r"grid\.json is damaged: give another folder with --out"):
        ResultFolder(tmp_path / "out", make_grid(tmp_path))


def test_a_default_that_changed_since_is_refused(tmp_path: Path) -> None:
    """The grid does not name momentum: the cell remembers what it was."""
    grid = make_grid(tmp_path)
    cell = grid.cells([0])[0]
    folder = ResultFolder(tmp_path / "out", grid)
    folder.save(cell, make_result())
    path = tmp_path / "out" / "cells" / f"{cell_key(cell)}.json"
    content = json.loads(path.read_text())
    content["settings"]["training.momentum"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"training\.momentum = 0\.5 in .*, now 0\.9"):
        folder.load(cell)


@pytest.mark.parametrize("content", ["", '{"format": 1', "{}", '{"format": 0}', "[]"])
def test_a_damaged_cell_is_not_finished(tmp_path: Path, content: str) -> None:
    grid = make_grid(tmp_path)
    cell = grid.cells([0])[0]
    folder = ResultFolder(tmp_path / "out", grid)
    folder.save(cell, make_result())
    (tmp_path / "out" / "cells" / f"{cell_key(cell)}.json").write_text(content)
    assert folder.load(cell) is None


def test_a_full_disk_loses_nothing_that_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make_grid(tmp_path)
    first, second = grid.cells([0])[:2]
    folder = ResultFolder(tmp_path / "out", grid)
    folder.save(first, make_result())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; what was finished before is"):
        folder.save(second, make_result())
    monkeypatch.undo()
    folder = ResultFolder(tmp_path / "out", grid)
    assert folder.load(first) == make_result()
    assert folder.load(second) is None
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 1


def test_a_kill_in_the_middle_of_writing_leaves_the_cell_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed process leaves is the file under its other name."""
    grid = make_grid(tmp_path)
    cell = grid.cells([0])[0]
    folder = ResultFolder(tmp_path / "out", grid)
    folder.save(cell, make_result())
    path = tmp_path / "out" / "cells" / f"{cell_key(cell)}.json"
    path.rename(path.with_name(f".{path.name}.1234.tmp"))
    assert folder.load(cell) is None
    folder.save(cell, make_result(62.0))
    assert folder.load(cell) == make_result(62.0)


def test_a_cell_that_another_has_is_not_free(tmp_path: Path) -> None:
    """Two handles, as of two processes; the other cells stay free."""
    grid = make_grid(tmp_path)
    cell, other = grid.cells([0])[:2]
    first, second = (ResultFolder(tmp_path / "out", grid) for _ in range(2))
    with first.claim(cell, wait=False) as is_free:
        assert is_free
        with second.claim(cell, wait=False) as is_free_too:
            assert not is_free_too
        with second.claim(other, wait=False) as is_free_too:
            assert is_free_too
    with second.claim(cell, wait=True) as is_free:
        assert is_free
    assert list((tmp_path / "out" / "cells").iterdir()) == []


def test_a_process_that_died_in_its_first_cell_leaves_a_folder_that_goes_on(tmp_path: Path) -> None:
    """What is left are the grid and a lock that nobody holds."""
    grid = make_grid(tmp_path)
    cell = grid.cells([0])[0]
    with ResultFolder(tmp_path / "out", grid).claim(cell, wait=False):
        pass
    (tmp_path / "out" / "cells" / f".{cell_key(cell)}.lock").touch()
    with ResultFolder(tmp_path / "out", grid).claim(cell, wait=False) as is_free:
        assert is_free
