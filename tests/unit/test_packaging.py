"""pyproject.toml, the package and the Flower app agree with each other and with the code."""

import importlib.metadata
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import flatten_dict, get_fab_config

from common.checkpoints import DISTRIBUTION_NAME, resolve_teacher
from common.config import Config
from simulations.settings.reference import settings_toml

ROOT = Path(__file__).parents[2]
PYPROJECT = ROOT / "pyproject.toml"


def test_pyproject_holds_every_setting_as_the_config_has_it() -> None:
    """Regenerate the end of pyproject.toml with ``python -m simulations settings``."""
    assert PYPROJECT.read_text(encoding="utf-8").endswith(settings_toml())


def test_flowers_run_config_is_the_default_config() -> None:
    flat = flatten_dict(tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"])
    assert flat == Config().to_flat()
    assert {key: type(value) for key, value in flat.items()} == {
        key: type(value) for key, value in Config().to_flat().items()
    }


def test_the_bundle_holds_both_apps_and_no_more(tmp_path: Path) -> None:
    """Well below Flower's 10 MiB; the files that the apps need are in it, tests are not."""
    bundle = tmp_path / "app.fab"
    bundle.write_bytes(build_fab_from_disk(ROOT))
    assert bundle.stat().st_size < 1024 * 1024
    names = set(zipfile.ZipFile(bundle).namelist())
    modules = (
        path for top in ("client", "common", "server") for path in (ROOT / top).rglob("*.py")
    )
    assert {"pyproject.toml", *(str(path.relative_to(ROOT)) for path in modules)} <= names
    packages = {name.split("/")[0] for name in names if "/" in name}
    assert packages <= {"client", "common", "server", ".info"}
    components = get_fab_config(bundle)["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": "server.app:app", "clientapp": "client.app:app"}


def test_the_shipped_teacher_is_found_from_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower unpacks the app without its binary files; the installed project still has them."""
    try:
        importlib.metadata.distribution(DISTRIBUTION_NAME)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the project is not installed")
    monkeypatch.setattr("common.checkpoints.__file__", str(tmp_path / "common" / "checkpoints.py"))
    found = resolve_teacher("shipped", "resnet20", "cifar100")
    assert found is not None
    assert found.is_file()
    assert tmp_path not in found.parents
