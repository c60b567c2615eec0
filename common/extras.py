"""Optional dependencies: imported where they are needed, named clearly when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from common.errors import UserError


def import_extra(module: str, *, needed_for: str, extra: str = "simulation") -> ModuleType:
    """Import ``module``, which the optional dependency group ``extra`` installs.

    Raises:
        UserError: it is not installed; names it, what it is for and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A broken installation of the module itself is another matter: let that one through.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise UserError(
            f"{needed_for} needs the package {module.split('.')[0]!r}: "
            f'pip install "fedquarc[{extra}]"'
        ) from error
