"""Scenarios, fleets and grids that come with the project: by name, a user's own by path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.paths import without_tilde

FOLDER = Path(__file__).parents[1]
DEVICE_CLASSES = FOLDER / "fleets" / "classes.yaml"
"""Classes that every fleet can use; not a fleet itself."""


@dataclass(frozen=True, kw_only=True)
class ShippedFiles:
    """The files of one kind that come with the project."""

    kind: str
    """What messages call one."""
    folder: Path

    def descriptions(self) -> dict[str, str]:
        """Name -> what it is for: the first line of comment in the file."""
        described = {}
        for path in sorted(self.folder.glob("*.yaml"), key=lambda path: path.stem):
            if path != DEVICE_CLASSES:
                lines = path.read_text(encoding="utf-8").splitlines()
                comments = (line[1:].strip() for line in lines if line.startswith("#"))
                described[path.stem] = next(comments, "")
        return described

    def find(self, name_or_path: str) -> Path:
        """The file of a shipped name, or the one at a path.

        Raises:
            UserError: if there is none, naming those that are shipped.
        """
        shipped = self.descriptions()
        if name_or_path in shipped:
            return self.folder / f"{name_or_path}.yaml"
        path = without_tilde(name_or_path)
        if path.is_file():
            return path
        raise UserError(
            f"unknown {self.kind} {name_or_path!r}: expected one of {', '.join(shipped)}, or the "
            f"path of a YAML file"
        )


SCENARIOS = ShippedFiles(kind="scenario", folder=FOLDER / "scenarios")
FLEETS = ShippedFiles(kind="fleet", folder=DEVICE_CLASSES.parent)
GRIDS = ShippedFiles(kind="grid", folder=FOLDER / "grids")
