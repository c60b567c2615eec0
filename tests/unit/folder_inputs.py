"""Inputs of a model for small images from a folder."""

from __future__ import annotations

from common.data.input_spec import InputSpec

FOLDER_INPUTS = InputSpec(
    dataset_name="folder",
    class_names=("ant", "bee"),
    channels=3,
    height=8,
    width=8,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
    crop_padding=1,
    flip=True,
)
