"""Scenario files and overrides: what is read, and what is refused by name."""

from pathlib import Path

import pytest

from common.config import Config
from common.errors import UserError
from server.records.recorder import config_yaml
from simulations.settings.scenario import (
    load_scenario,
    parse_overrides,
    read_scenario,
)
from simulations.settings.shipped import SCENARIOS


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SCENARIOS.descriptions())
def test_shipped_scenarios_are_valid_and_described(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.config == Config.from_flat(scenario.settings)
    assert SCENARIOS.descriptions()[name].endswith(".")


def test_the_cifar100_scenario_is_that_of_the_paper() -> None:
    config = load_scenario("cifar100").config
    assert (config.data.dataset, config.data.num_devices) == ("cifar100", 10)
    assert (config.data.partition, config.data.alpha) == ("dirichlet", 0.5)
    assert (config.model.name, config.model.teacher) == ("resnet20", "shipped")
    assert (config.quantization.weight_bits, config.quantization.activation_bits) == (2, 32)
    assert (config.coreset.selection, config.coreset.fraction) == ("quarc", 0.1)
    assert (config.federation.num_rounds, config.training.local_epochs) == (15, 1)


def test_nested_and_flat_keys_are_the_same(tmp_path: Path) -> None:
    nested = _file(tmp_path, "data:\n  alpha: 0.1\n  num-devices: 4\n")
    settings = read_scenario(nested)
    flat = _file(tmp_path, "data.alpha: 0.1\ndata.num-devices: 4\n")
    assert settings == read_scenario(flat) == {"data.alpha": 0.1, "data.num-devices": 4}


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = _file(tmp_path, "# nothing yet\n")
    assert load_scenario(str(path)).config == Config()


def test_the_config_of_a_run_is_a_scenario(tmp_path: Path) -> None:
    """A run can be repeated from its run folder."""
    config = Config.from_flat({"training.weight-decay": 1e-5, "strategy.tau": 1e-7})
    path = _file(tmp_path, config_yaml(config))
    assert load_scenario(str(path)).config == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1", 1),
        ("-2.5E+1", -25.0),
        (".5", 0.5),
        ("true", True),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("010", "010"),
        ("'7'", "7"),
        ("", ""),
        ("runs/a b", "runs/a b"),
        ("a=b", "a=b"),
    ],
)
def test_values_are_yaml_1_2_scalars(text: str, value: object) -> None:
    (parsed,) = parse_overrides([f"run.out={text}"]).values()
    assert parsed == value
    assert type(parsed) is type(value)


def test_overrides_replace_the_files_settings(tmp_path: Path) -> None:
    path = _file(tmp_path, "data: {alpha: 0.1, num-devices: 4}\n")
    scenario = load_scenario(str(path), ["data.alpha=1e2"])
    assert scenario.config.data.alpha == 100.0
    assert scenario.config.data.num_devices == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n  alpah: 1\n", r"unknown setting 'data.alpah': expected one of data\.alpha"),
        ("speed: 3\n", "unknown setting 'speed'"),
        ("data: {alpha: {x: 1}}\n", "unknown setting 'data.alpha.x'"),
        ("data.alpha: high\n", "data.alpha = 'high': expected float, > 0.0"),
        ("data.alpha: -1\n", r"data.alpha = -1\.0: expected float, > 0.0"),
        ("data.alpha: [1, 2]\n", r"data.alpha = \[1, 2\]: expected float"),
        ("data.alpha:\n", "data.alpha = None: expected float"),
        ("run.seed: 1.5\n", "run.seed = 1.5: expected int"),
        ("run.seed: '1'\n", "run.seed = '1': expected int"),
        ("data.augment: 1\n", "data.augment = 1: expected true or false"),
        ("quantization.weight-bits: 9\n", "weight-bits = 9: expected one of 2, 3, 4"),
        ("strategy.name: best\n", "strategy.name = 'best': expected one of 'fedavg'"),
        ("data.alpha: .inf\n", "data.alpha = inf: expected float"),
        ("data.alpha: 1\ndata.alpha: 2\n", r"data.alpha is set twice \(line 2, column 1\)"),
        ("data.alpha: 1\ndata: {alpha: 2}\n", "data.alpha is set twice"),
        ("data: {alpha: 1\n", r"mine.yaml is not YAML: .*\(line 2, column 1\)"),
        ("data: !!python/object:os.system {}\n", "is not YAML: could not determine a constructor"),
        ("- data\n", r"expected settings by section, not \['data'\]"),
        (
            "data: &mine {alpha: *mine}\n",
            r"found unconstructable recursive node \(line 1, column 7",
        ),
        ("&mine\ndata: *mine\n", r"found unconstructable recursive node \(line 1, column 1"),
        ("data: {alpha: &mine [*mine]}\n", "found unconstructable recursive node"),
        ("3: 4\n", "the key 3 is not a name"),
        ("data: {num-devices: 3}\nfederation: {min-devices: 4}\n", "min-devices = 4: expected at"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_scenario(str(_file(tmp_path, text)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.alpha"], "'data.alpha': expected key=value"),
        (["=1"], "'=1': expected key=value"),
        (["data.alfa=1"], "unknown setting 'data.alfa'"),
        (["data.alpha=1", "data.alpha=2"], "data.alpha is set twice on the command line"),
        (["data.alpha=[1"], "'data.alpha=\\[1' is not YAML"),
        (["data.alpha="], "data.alpha = '': expected float"),
    ],
)
def test_bad_overrides_are_refused_by_name(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_scenario("digits", overrides)


def test_unknown_scenarios_name_the_known_ones(tmp_path: Path) -> None:
    for missing in ("cifar1000", str(tmp_path / "none.yaml"), str(tmp_path), "../digits", ""):
        with pytest.raises(
            UserError,
            match=r"unknown scenario .* expected one of cifar100, cifar100-corrected, digits",
        ):
            load_scenario(missing)


def test_a_binary_file_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00data")
    with pytest.raises(UserError, match="is not YAML"):
        load_scenario(str(path))
