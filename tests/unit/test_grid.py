"""Tests of simulations.paper.grid and grid_file."""

from pathlib import Path

import pytest

from common.errors import UserError
from simulations.paper.grid import select_cells, title
from simulations.paper.grid_file import load_grid
from simulations.settings.shipped import GRIDS
from tests.unit.grid_files import GRID, make_grid

SHIPPED = [
    "bits",
    "correction",
    "mobilenetv2",
    "paper-cifar100",
    "paper-imagenet",
    "renewal",
    "selection",
    "selection-forms",
    "time",
    "views",
]


def test_cells_are_every_combination_seed_by_seed(tmp_path: Path) -> None:
    """Two methods, two shares, two seeds: eight cells, those of the first seed first."""
    cells = make_grid(tmp_path).cells([3, 4])
    assert [title([cell]) for cell in cells] == [
        f"{method}, {share}, seed {seed}"
        for seed in (3, 4)
        for method in ("random", "res")
        for share in ("5 %", "10 %")
    ]
    last = cells[-1]
    assert last.config.run.seed == 4
    assert last.config.coreset.selection == "res"
    assert last.config.coreset.fraction == 0.1
    assert last.config.training.local_epochs == 1
    assert last.config.training.batch_size == 32
    assert last.settings == {
        "data.dataset": "digits",
        "model.name": "resnet8",
        "model.teacher": "shipped",
        "training.batch-size": 32,
        "coreset.selection": "res",
        "coreset.fraction": 0.1,
        "training.local-epochs": 1,
    }


def test_head_of_comments_is_title_and_protocol(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    assert grid.name == "small"
    assert grid.title == "A small grid"
    assert grid.protocol == "Digits, for tests.\nAs small as can be."


def test_overrides_apply_to_every_cell(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, overrides=("quantization.weight-bits=4", "training.batch-size=8"))
    assert {cell.config.quantization.weight_bits for cell in grid.cells([0])} == {4}
    assert {cell.config.training.batch_size for cell in grid.cells([0])} == {8}


def test_the_title_says_what_the_command_line_changes(tmp_path: Path) -> None:
    """But not where the data are."""
    changes = ("quantization.weight-bits=4", "data.root=here", "model.name=resnet20")
    title = "A small grid; quantization.weight-bits=4, model.name=resnet20"
    assert make_grid(tmp_path, overrides=changes).title == title


def test_work_is_passes_over_the_training_set(tmp_path: Path) -> None:
    """5 % for 2 epochs is a tenth of a pass; RES scores all images once in 5 epochs, a quarter of
    a pass; a pool of twice the coreset is a tenth of the images: a fortieth of a pass."""
    work = [cell.work for cell in make_grid(tmp_path).cells([0])]
    assert work == pytest.approx([0.1, 0.1, 0.35, 0.35])
    pooled = make_grid(tmp_path, overrides=("coreset.pool=2",)).cells([0])
    assert pooled[2].work == pytest.approx(0.1 + 0.025)


def test_work_of_a_selection_is_done_before_its_epochs(tmp_path: Path) -> None:
    """5 % for 2 epochs, RES in each: a quarter of a pass, a twentieth, and the same again."""
    cell = make_grid(tmp_path, overrides=("coreset.interval=1",)).cells([0])[2]
    done = [cell.work_done(share) for share in (0.0, 0.25, 0.5, 1.0)]
    assert done == pytest.approx([0.25, 0.275, 0.55, 0.6])
    late = make_grid(tmp_path, overrides=("coreset.interval=1", "coreset.random-epochs=1"))
    done = [late.cells([0])[2].work_done(share) for share in (0.25, 0.5, 1.0)]
    assert done == pytest.approx([0.025, 0.3, 0.35])


def test_settings_of_no_effect_are_left_out(tmp_path: Path) -> None:
    text = """\
axes:
  correction: {setting: training.correction, values: [none, mse]}
  beta: {setting: training.beta, values: [1.0, 5.0]}
"""
    cells = make_grid(tmp_path, text).cells([0])
    assert [cell.settings.get("training.beta") for cell in cells] == [None, None, 1.0, 5.0]


def test_only_chooses_cells(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    cells = grid.cells([0])
    chosen = select_cells(grid, cells, ["method=res"])
    assert [cell.labels for cell in chosen] == [
        {"method": "res", "share": "5 %"},
        {"method": "res", "share": "10 %"},
    ]
    chosen = select_cells(grid, cells, ["method=res", "method=random", "coreset.fraction=0.1"])
    assert [cell.labels["method"] for cell in chosen] == ["random", "res"]
    assert select_cells(grid, cells, []) == cells


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("method", "expected axis=label or setting=value"),
        ("methods=res", "expected one of method, share, or a setting of the grid"),
        ("method=quarc", "expected one of 'method=random', 'method=res'$"),
        ("share=1 %", "expected one of 'share=5 %', 'share=10 %'$"),
    ],
)
def test_only_refuses_what_no_cell_has(tmp_path: Path, only: str, message: str) -> None:
    grid = make_grid(tmp_path)
    with pytest.raises(UserError, match=message):
        select_cells(grid, grid.cells([0]), [only])


def test_only_refuses_what_no_cell_has_together(tmp_path: Path) -> None:
    """Each is there: shares of 5 % are trained for two epochs, those of 10 % for one."""
    grid = make_grid(tmp_path)
    with pytest.raises(UserError, match=r"'share=5 %' 'training.local-epochs=1': no cell has all"):
        select_cells(grid, grid.cells([0]), ["share=5 %", "training.local-epochs=1"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[random, res]", "[random, magic]", r"cell magic, 5 %: coreset\.selection = 'magic'"),
        ("coreset.selection", "coreset.selections", "unknown setting 'coreset.selections'"),
        ("{batch-size: 32}", "{batch: 32}", "unknown setting 'training.batch'"),
        ("{batch-size: 32}", "{batch-size: 0}", r"training\.batch-size = 0: expected int, >= 1"),
        ("{batch-size: 32}", "{local-epochs: 2}", "training.local-epochs is in settings and in"),
        ("model: {", "federation: {num-rounds: 3}\n  model: {", "no effect on one device"),
        ("model: {", "run: {seed: 3}\n  model: {", "seeds are given by --seeds"),
        ("[random, res]", "[]", "axis method: expected a list of values"),
        ("[random, res]", "[res, res]", "axis method: a value is there twice"),
        ("  share:\n", "  training.beta:\n", "an axis may not be called like a setting"),
        ("columns: share", "columns: shares", "expected every axis once"),
        ("rows: method", "rows: [method, share]", "expected every axis once"),
        ("rows: method", "rows: 3", "rows and columns are 3, share; expected every axis once"),
        ("columns: share", "columns: [share]", "expected every axis once"),
        ("columns: share", "colums: share", "table: unknown part 'colums': expected rows, columns"),
        ("setting: coreset.selection", "setting:", "axis method: expected the name of a setting"),
        ("model: {", "model.name: resnet8\n  model: {", "settings: model.name is set twice"),
        (
            "{fraction: 0.1}",
            "{fraction: 0.1}, coreset.fraction: 1",
            "coreset.fraction is set twice",
        ),
        ("table:", "tables:", "unknown part 'tables'"),
        ("columns: share", "columns: share\n  reference: res", "reference 'res' is no row"),
        ("coreset: {fraction: 0.1}", "coreset: {selection: ds}", "varied by axes method and share"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GRID
    with pytest.raises(UserError, match=message) as caught:
        make_grid(tmp_path, GRID.replace(old, new)).cells([0])
    assert str(caught.value).startswith("grid small")


def test_a_reference_may_be_a_number(tmp_path: Path) -> None:
    """Values are labels as text, 0.10 as 0.1; so is what the table says of them."""
    text = """\
axes:
  share: {setting: coreset.fraction, values: [0.10, 1.0]}
table: {rows: share, reference: 0.1}
"""
    assert make_grid(tmp_path, text).reference == "0.1"


@pytest.mark.parametrize(
    "setting",
    [
        *("attack.name=scale", "privacy.mechanism=central", "evaluation.interval=2"),
        *("coreset.adaptive=true", "training.partial-work=true", "run.tensorboard=true"),
    ],
)
def test_settings_of_a_federation_are_refused(tmp_path: Path, setting: str) -> None:
    """On one device they would be ignored: the table would say what was not done."""
    path = tmp_path / "small.yaml"
    path.write_text(GRID)
    with pytest.raises(UserError, match=rf"{setting.split('=')[0]} has no effect on one device"):
        load_grid(str(path), [setting])


@pytest.mark.parametrize("text", ["- a list", "axes: {a: [", "axes: 3", "settings: {}"])
def test_what_is_no_grid_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="grid"):
        make_grid(tmp_path, text)


def test_an_override_of_a_varied_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"varied by axis method: choose cells with --only"):
        make_grid(tmp_path, overrides=("coreset.selection=ds",))


def test_an_unknown_grid_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="unknown grid 'selections': expected one of bits, correc"):
        load_grid("selections")


def test_grids_are_shipped() -> None:
    assert list(GRIDS.descriptions()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_grids_are_right(name: str) -> None:
    """Every cell has valid settings, the head says what it is, no two cells are the same."""
    grid = load_grid(name)
    cells = grid.cells([0])
    assert grid.title
    assert len(grid.protocol) > 200
    assert len({tuple(sorted(cell.settings.items())) for cell in cells}) == len(cells)


def test_the_selection_grid_holds_what_the_paper_compares() -> None:
    cells = load_grid("selection").cells([0])
    methods = {"random", "el2n", "evs", "ds", "acs", "res", "quarc"}
    assert {(cell.config.coreset.selection, cell.config.coreset.fraction) for cell in cells} >= {
        (method, fraction) for method in methods for fraction in (0.01, 0.05, 0.1, 0.2)
    }


def test_the_paper_protocol_is_the_papers() -> None:
    """MobileNetV2 with CIFAR strides, 200 epochs, batch 256, learning rate 0.01, R = 50."""
    for cell in load_grid("paper-cifar100").cells([0]):
        training = cell.config.training
        assert cell.config.model.name == "mobilenetv2-cifar"
        assert (training.local_epochs, training.batch_size) == (200, 256)
        assert (training.learning_rate, training.weight_decay) == (0.01, 5e-4)
        assert cell.config.coreset.interval == 50
