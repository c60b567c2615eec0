"""Tests of simulations.emulation.memory: by hand, with a model whose memory is counted."""

from __future__ import annotations

import numpy as np
import pytest

from client.batch_fit import FIRST_STEP_BYTES, kept_bytes_per_image
from client.memory import MB
from common.config import Config
from common.errors import UserError
from common.models import create_model
from common.qat import prepare
from simulations.emulation.hardware import Emulation
from simulations.emulation.memory import IMPORTS_BYTES, STARTED_BYTES, MemoryPlan, plan_memory
from tests.unit.test_emulation_hardware import fleet, profile

SHAPE = (3, 32, 32)
CONFIG = Config.from_flat({"data.num-devices": 3, "model.name": "resnet8"})


def plan_for(*memory_mb: float, num_images: int = 1000) -> tuple[MemoryPlan, Emulation]:
    """One device of every size of memory."""
    classes = [(profile(f"{size:.1f}", memory_mb=size), 1) for size in memory_mb]
    emulation = Emulation(fleet(*classes), num_devices=len(classes), seed=0)
    emulation.class_of.sort()
    images = np.full(len(classes), num_images)
    return plan_memory(CONFIG, emulation, images, num_classes=10, image_shape=SHAPE), emulation


def by_hand(num_passing: int, num_images: int = 1000) -> float:
    """MB: imports, start, eight copies of the parameters, the images, two more copies, the first
    step, and what a pass over so many images keeps."""
    module = create_model("resnet8", num_classes=10, in_channels=3)
    parameters = 4 * sum(parameter.numel() for parameter in module.parameters())
    prepared = prepare(module, CONFIG.quantization)
    trained = 4 * sum(parameter.numel() for parameter in prepared.parameters())
    kept = num_passing * kept_bytes_per_image(prepared, SHAPE)
    before = IMPORTS_BYTES + STARTED_BYTES + 8 * parameters + num_images * 3 * 32 * 32
    return (before + 2 * trained + FIRST_STEP_BYTES + kept) / MB


def test_memory_decides_how_many_images_pass_at_a_time() -> None:
    """Enough for a batch of 32; for 7 and a half; for 2; for one and a half: can't train."""
    enough = [by_hand(33), by_hand(7) / 2 + by_hand(8) / 2, by_hand(2) + 0.01]
    too_little = by_hand(1) / 2 + by_hand(2) / 2
    plan, emulation = plan_for(*enough, too_little)
    assert plan.part_sizes.tolist() == [32, 7, 2, 0]
    assert plan.unable == {3}
    need = by_hand(2)
    assert plan.notes(emulation) == [
        f"1 of 1 {enough[1]:.1f} train on at most 7 images at a time (batches of 32): they have "
        f"{enough[1]:g} MB",
        f"1 of 1 {enough[2]:.1f} train on at most 2 images at a time (batches of 32): they have "
        f"{enough[2]:g} MB",
        f"1 of 1 {too_little:.1f} can't take part: training needs {need:.0f} MB or more, they have "
        f"{too_little:g} MB",
    ]


def test_images_take_memory_too() -> None:
    """10,000 images of 3,072 bytes more take 30.72 MB more."""
    few, _ = plan_for(4000.0)
    many, _ = plan_for(4000.0, num_images=11_000)
    assert many.used_bytes[0] - few.used_bytes[0] == 30_720_000


def test_a_fleet_that_can_train_nowhere_is_refused() -> None:
    with pytest.raises(UserError, match=r"no device can train resnet8: this needs 34\d MB or more"):
        plan_for(300.0, 250.0)
