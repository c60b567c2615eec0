"""What every section of settings is."""

from __future__ import annotations

from typing import ClassVar

from common.settings import check_section


class Section:
    """A section checks its own values when it is made."""

    section_name: ClassVar[str]
    """What its keys begin with: ``quantization`` of ``quantization.weight-bits``."""

    def __init_subclass__(cls, *, name: str) -> None:
        super().__init_subclass__()
        cls.section_name = name

    def __post_init__(self) -> None:
        check_section(self, self.section_name)
