"""What a model's input is: the classes, the size and the normalisation of its images.

The server, which holds the test images, decides; devices with images of their own follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.data.datasets import Dataset

MAX_SIDE = 4096
"""Pixels; more is a mistake."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Everything that two sides must agree on about images before one model fits both.

    Raises:
        ValueError: a value is impossible; it is named.
    """

    dataset_name: str
    class_names: tuple[str, ...]
    """In the order of the model's outputs."""
    channels: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    crop_padding: int
    """Pixels by which a random crop may be off the centre."""
    flip: bool
    """Whether a mirrored image is still of its class."""

    def __post_init__(self) -> None:
        if not self.class_names or len(set(self.class_names)) < len(self.class_names):
            raise ValueError(f"class_names = {self.class_names[:8]}: expected different names")
        if self.channels not in (1, 3):
            raise ValueError(f"channels = {self.channels}: expected 1 or 3")
        for name in ("height", "width"):
            if not 1 <= getattr(self, name) <= MAX_SIDE:
                raise ValueError(f"{name} = {getattr(self, name)}: expected 1 to {MAX_SIDE}")
        if not 0 <= self.crop_padding <= MAX_SIDE:
            raise ValueError(f"crop_padding = {self.crop_padding}: expected 0 to {MAX_SIDE}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} = {values}: expected {self.channels} finite number(s)")
        if min(self.std) <= 0:
            raise ValueError(f"std = {self.std}: expected numbers above 0")

    @property
    def square_side(self) -> int | None:
        """Side in pixels that any image can be resized to; None: another shape would distort it."""
        return self.height if self.height == self.width else None

    @classmethod
    def of(cls, dataset: Dataset) -> InputSpec:
        """The inputs that ``dataset`` gives."""
        _, channels, height, width = dataset.train.images.shape
        return cls(
            dataset_name=dataset.name,
            class_names=dataset.train.class_names,
            channels=channels,
            height=height,
            width=width,
            mean=dataset.mean,
            std=dataset.std,
            crop_padding=dataset.crop_padding,
            flip=dataset.flip,
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> InputSpec:
        """The inputs of these fields, lists in place of tuples, as they were sent or stored.

        Raises:
            ValueError: a field is missing, unknown or impossible.
        """
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        try:
            return cls(**{**fields, **lists})
        except TypeError as error:
            raise ValueError(f"malformed inputs: {error}") from error
