"""Tests of ``python -m simulations paper``: what is run, what is kept, what is shown."""

import csv
import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from common.config import Config
from common.data.data_fingerprint import data_fingerprint
from common.data.datasets import load_dataset
from common.errors import UserError
from simulations import cli
from simulations.display.progress import TrainingProgress
from simulations.paper import run
from simulations.paper.cell import Workbench
from simulations.paper.folder import CellResult, ResultFolder
from simulations.paper.run import command_line, run_cells
from tests.unit.grid_files import GRID, make_grid, make_result, write_grid

CPU = torch.device("cpu")
Progress = Callable[[float], None]


class FakeTeacher:
    content_hash = "0" * 64


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The command's handlers end with the test."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int]]:
    """What is run: (selection, fraction, seed); nothing is trained, Top-1 is 60 plus the seed."""
    ran: list[tuple[str, float, int]] = []

    def run_cell(config: Config, workbench: Workbench, on_progress: Progress) -> CellResult:
        on_progress(0.0)
        ran.append((config.coreset.selection, config.coreset.fraction, config.run.seed))
        return make_result(60.0 + config.run.seed)

    monkeypatch.setattr(run, "run_cell", run_cell)
    monkeypatch.setattr(run, "find_teacher", lambda data, model: Path())
    monkeypatch.setattr(Workbench, "_teacher", lambda *arguments: FakeTeacher())
    return ran


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_finished_cells_are_not_run_again(
    tmp_path: Path, trained: list[tuple[str, float, int]]
) -> None:
    grid = make_grid(tmp_path)
    folder = ResultFolder(tmp_path / "out", grid)
    run_cells(grid.cells([0])[:3], folder, CPU, console())
    assert trained == [("random", 0.05, 0), ("random", 0.1, 0), ("res", 0.05, 0)]
    trained.clear()
    out = console()
    run_cells(grid.cells([0, 1]), ResultFolder(tmp_path / "out", grid), CPU, out)
    assert trained[0] == ("res", 0.1, 0)
    assert len(trained) == 5
    assert isinstance(out.file, io.StringIO)
    assert "3 finished already, 5 to run" in out.file.getvalue()
    assert "[5/5] res, 10 %, seed 1: 61.00 %, training 10 s, selection 1.0 s" in out.file.getvalue()


def test_an_interrupted_grid_keeps_what_is_finished(
    tmp_path: Path, trained: list[tuple[str, float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make_grid(tmp_path)
    fake = run.run_cell

    def interrupted(config: Config, workbench: Workbench, on_progress: Progress) -> CellResult:
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fake(config, workbench, on_progress)

    monkeypatch.setattr(run, "run_cell", interrupted)
    folder = ResultFolder(tmp_path / "out", grid)
    with pytest.raises(KeyboardInterrupt):
        run_cells(grid.cells([0]), folder, CPU, console())
    assert [folder.load(cell) is not None for cell in grid.cells([0])] == [True, True, False, False]


def test_cells_of_another_process_come_last(
    tmp_path: Path, trained: list[tuple[str, float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process has the first cell and finishes it during the second."""
    grid = make_grid(tmp_path)
    cells = grid.cells([0])
    folder, other = (ResultFolder(tmp_path / "out", grid) for _ in range(2))
    claim = other.claim(cells[0], wait=False)
    claim.__enter__()
    fake = run.run_cell

    def run_second(config: Config, workbench: Workbench, on_progress: Progress) -> CellResult:
        if not trained:
            other.save(cells[0], make_result(50.0))
            claim.__exit__(None, None, None)
        return fake(config, workbench, on_progress)

    monkeypatch.setattr(run, "run_cell", run_second)
    run_cells(cells, folder, CPU, console())
    assert trained == [("random", 0.1, 0), ("res", 0.05, 0), ("res", 0.1, 0)]
    assert folder.load(cells[0]) == make_result(50.0)


def test_a_cell_that_another_process_keeps_is_said_to_be_waited_for(
    tmp_path: Path, trained: list[tuple[str, float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process has the first two cells: it finishes one, and dies in the second."""
    grid = make_grid(tmp_path)
    cells = grid.cells([0])
    folder, other = (ResultFolder(tmp_path / "out", grid) for _ in range(2))
    claims = [other.claim(cell, wait=False) for cell in cells[:2]]
    for claim in claims:
        claim.__enter__()
    fake = run.run_cell

    def run_third(config: Config, workbench: Workbench, on_progress: Progress) -> CellResult:
        other.save(cells[0], make_result(50.0))
        for claim in claims:
            claim.__exit__(None, None, None)
        return fake(config, workbench, on_progress)

    monkeypatch.setattr(run, "run_cell", run_third)
    out = console()
    run_cells(cells[:3], folder, CPU, out)
    assert trained == [("res", 0.05, 0), ("random", 0.1, 0)]
    assert isinstance(out.file, io.StringIO)
    said = [line for line in out.file.getvalue().splitlines() if "waiting" in line]
    assert said == ["[2/3] random, 10 %, seed 0: waiting for the process that runs it"]


def test_equal_cells_are_run_once(tmp_path: Path, trained: list[tuple[str, float, int]]) -> None:
    text = """\
settings: {model: {name: resnet8, teacher: shipped}}
axes:
  correction: {setting: training.correction, values: [none, mse]}
  beta: {setting: training.beta, values: [1.0, 5.0]}
"""
    grid = make_grid(tmp_path, text)
    folder = ResultFolder(tmp_path / "out", grid)
    out = console()
    run_cells(grid.cells([0]), folder, CPU, out)
    assert isinstance(out.file, io.StringIO)
    assert [line.split(":")[0] for line in out.file.getvalue().splitlines()] == [
        "[1/3] none, 1.0 / 5.0, seed 0",
        "[2/3] mse, 1.0, seed 0",
        "[3/3] mse, 5.0, seed 0",
    ]
    assert len(trained) == 3
    assert all(folder.load(cell) is not None for cell in grid.cells([0]))


def test_results_of_another_teacher_are_refused(
    tmp_path: Path, trained: list[tuple[str, float, int]]
) -> None:
    grid = make_grid(tmp_path)
    folder = ResultFolder(tmp_path / "out", grid)
    folder.save(grid.cells([0])[0], make_result(teacher_hash="f" * 64))
    for cells in (grid.cells([0]), grid.cells([0])[2:], grid.cells([1])):
        with pytest.raises(UserError, match=r"another teacher under the same name .*: f{12} there"):
            run_cells(cells, folder, CPU, console())
    assert trained == []


def test_results_of_other_images_are_refused(
    tmp_path: Path, trained: list[tuple[str, float, int]]
) -> None:
    """Of digits that are others; cells from before images had a fingerprint are as good as any."""
    grid = make_grid(tmp_path)
    first, second = grid.cells([0])[:2]
    folder = ResultFolder(tmp_path / "out", grid)
    folder.save(first, make_result(data_fingerprint="f" * 32))
    with pytest.raises(
        UserError, match=r"other images under the same name \(digits\): f{12} there"
    ):
        run_cells(grid.cells([1]), folder, CPU, console())
    assert trained == []
    folder.save(first, make_result())
    folder.save(second, make_result(data_fingerprint=data_fingerprint(load_dataset("digits"))))
    run_cells(grid.cells([1]), folder, CPU, console())
    assert len(trained) == 4


def test_another_data_set_may_have_another_teacher(
    tmp_path: Path, trained: list[tuple[str, float, int]]
) -> None:
    """Each has a shipped one, whose setting is the same word."""
    text = """\
settings: {model: {name: resnet20, teacher: shipped}}
axes:
  data: {setting: data.dataset, values: [digits, cifar10]}
"""
    grid = make_grid(tmp_path, text)
    folder = ResultFolder(tmp_path / "out", grid)
    folder.save(grid.cells([0])[0], make_result(teacher_hash="f" * 64))
    run_cells(grid.cells([0]), folder, CPU, console())
    assert len(trained) == 1


def test_command_writes_tables(
    tmp_path: Path,
    trained: list[tuple[str, float, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = str(write_grid(tmp_path))
    arguments = ["paper", "--table", grid, "--seeds", "0,1", "--only", "share=5 %"]
    assert cli.main(arguments) == 0
    assert {fraction for _, fraction, _ in trained} == {0.05}
    folder = tmp_path / "runs" / "paper" / "small"
    names = {path.name for path in folder.iterdir()}
    assert names == {"grid.json", "cells", "small.csv", "small.md", "small.png"}
    text = (folder / "small.md").read_text()
    assert "| method | 5 % |\n" in text
    assert "| random | 60.50 ± 0.71 |\n" in text
    assert "--seeds 0,1 --only 'share=5 %'" in text
    printed = capsys.readouterr().out
    assert "60.50 ± 0.71" in printed
    for shown in (text, printed):
        assert "Not run yet: 4 of 8 cells." in shown
    assert cli.main(["paper", "--table", grid, "--seeds", "0", "--only", "method=res"]) == 0
    assert "--only" not in (folder / "small.md").read_text()  # random at 5 % is there as well
    capsys.readouterr()
    assert cli.main(["paper", "--table", grid, "--seeds", "0,1"]) == 0
    for shown in ((folder / "small.md").read_text(), capsys.readouterr().out):
        assert "Not run yet" not in shown


def test_tables_hold_the_seeds_of_earlier_calls(
    tmp_path: Path, trained: list[tuple[str, float, int]]
) -> None:
    """Seeds 0 and 2: 60 and 62, mean 61. A finished cell of another choice, with seed 7, is of no
    row of the table."""
    out = tmp_path / "out"
    wide = make_grid(tmp_path, GRID.replace("[random, res]", "[random, res, full]"))
    (full, *_) = [cell for cell in wide.cells([7]) if cell.labels["method"] == "full"]
    ResultFolder(out, wide).save(full, make_result())
    arguments = ["paper", "--table", str(write_grid(tmp_path)), "--out", str(out), "--seeds"]
    assert cli.main([*arguments, "2", "--only", "share=5 %"]) == 0
    assert cli.main([*arguments, "0"]) == 0
    assert [seed for _, _, seed in trained] == [2, 2, 0, 0, 0, 0]
    text = (out / "small.md").read_text()
    assert "| random | 61.00 ± 1.41 | 60.00 |\n" in text
    assert "- Seeds: 0, 2 (2 of 4 results are of fewer" in text
    assert "--seeds 0,2\n" in text
    assert "Not run yet: 2 of 8 cells." in text
    with (out / "small.csv").open() as file:
        assert [line["num_seeds"] for line in csv.DictReader(file)] == ["2", "1", "2", "1"]


def test_told_to_end_it_writes_the_table_of_what_is_finished(
    tmp_path: Path, trained: list[tuple[str, float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the second of four cells: the first is in the table, and the code is 128 + 15."""
    finish = run.run_cell

    def run_cell(config: Config, workbench: Workbench, on_progress: Progress) -> CellResult:
        if trained:
            signal.raise_signal(signal.SIGTERM)
        return finish(config, workbench, on_progress)

    monkeypatch.setattr(run, "run_cell", run_cell)
    out = tmp_path / "out"
    grid = str(write_grid(tmp_path))
    with pytest.raises(SystemExit) as stop:
        cli.main(["paper", "--table", grid, "--seeds", "0", "--out", str(out)])
    assert stop.value.code == 143
    assert "Not run yet: 3 of 4 cells." in (out / "small.md").read_text()
    assert len(list((out / "cells").iterdir())) == 1  # no lock is left


def test_a_missing_matplotlib_is_noticed_before_anything_is_run(
    tmp_path: Path,
    trained: list[tuple[str, float, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "out"
    assert cli.main(["paper", "--table", str(write_grid(tmp_path)), "--out", str(out)]) == 2
    assert "the picture of the table needs the package 'matplotlib'" in capsys.readouterr().err
    assert (trained, out.exists()) == ([], False)


def test_recorded_command_can_be_pasted() -> None:
    assert command_line("bits", [0, 1], ["a.b=1"], ["share=5 %"]) == (
        "python -m simulations paper --table bits --seeds 0,1 --set a.b=1 --only 'share=5 %'"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "nope"], "unknown grid 'nope'"),
        (["--table", "bits", "--set", "coreset.selection=x"], "grid bits: coreset.selection is"),
        (["--table", "bits", "--set", "coreset.size=3"], "unknown setting 'coreset.size'"),
        (["--table", "bits", "--only", "bits=9w9a"], "expected one of 'bits=4w32a'"),
        (["--table", "bits", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["--table", "paper-cifar100"], "model.teacher is empty"),
        (["--table", "bits", "--set", "model.teacher=no.safetensors"], "or an existing file"),
        (
            ["--table", "bits", "--set", "data.root=nowhere", "--only", "selection=random"],
            "data folder nowhere does not exist",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["paper", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seeds", ["", "a", "0,,1", "0,0", "-1"])
def test_seeds_are_whole_numbers(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["paper", "--table", "bits", f"--seeds={seeds}"])
    assert "expected different whole numbers" in capsys.readouterr().err


def test_without_a_terminal_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the work takes 30 s: 90 s are left. At most one line in 60 s within a cell."""
    now = [0.0]
    monkeypatch.setattr("simulations.display.progress.time.monotonic", lambda: now[0])
    out = console()
    with TrainingProgress(out, 4.0) as progress:
        progress.begin("first", 1.0, 10)
        now[0] = 30.0
        progress.advance(0.95)
        progress.end("first: done")
        progress.begin("second", 3.0, 3)
        now[0] = 60.0
        progress.advance(0.34)
        now[0] = 120.0
        progress.advance(0.67)
        progress.advance(0.68)
        progress.end("second: done")
    assert isinstance(out.file, io.StringIO)
    # Two thirds of 3 and the 1 before are 3.01 of 4 in 120 s: 0.99 are left, 39 s.
    assert out.file.getvalue().splitlines() == [
        "first: done, about 2 min left",
        "second, epoch 3/3, about 39 s left",
        "second: done",
    ]


def test_loading_before_the_first_cell_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 100 s; then a quarter of the work takes 30 s: 90 s are left, shown in minutes."""
    now = [0.0]
    monkeypatch.setattr("simulations.display.progress.time.monotonic", lambda: now[0])
    out = console()
    with TrainingProgress(out, 4.0) as progress:
        now[0] = 100.0
        progress.begin("first", 1.0, 10)
        now[0] = 130.0
        progress.end("first: done")
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue().splitlines()[-1] == "first: done, about 2 min left"


def test_a_selection_before_the_first_epoch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 9 tenths of the work and takes 90 s: 10 s are left when the first epoch begins."""
    now = [0.0]
    monkeypatch.setattr("simulations.display.progress.time.monotonic", lambda: now[0])
    out = console()
    with TrainingProgress(out, 1.0) as progress:
        progress.begin("cell", 1.0, 2)
        now[0] = 90.0
        progress.advance(0.0, 0.9)
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue().splitlines() == ["cell, epoch 1/2, about 10 s left"]
