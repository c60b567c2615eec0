"""The global model on the server: its codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.config import Config
from common.models import create_model, load_state
from common.payloads.updates import decode_state, encode_codes
from server.model.mixed_model import quantized_model
from server.rounds.stages import copied_state
from tests.unit.test_mixed_model import one_pixel_dataset


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_codes_give_the_outputs_of_the_latents_that_they_are_of(
    bits: int, granularity: str
) -> None:
    """Bit for bit, so that a model that is only looked at may travel as its codes; the latents
    themselves are others."""
    config = Config.from_flat(
        {"quantization.weight-bits": bits, "quantization.granularity": granularity}
    )
    generator = torch.Generator().manual_seed(0)
    network = create_model("resnet8", num_classes=10, in_channels=1, generator=generator)
    model = quantized_model(network, one_pixel_dataset(), config)
    state, images = copied_state(model), torch.rand(4, 1, 8, 8, generator=generator)
    codes = model.quantize(state)
    with torch.inference_mode():
        outputs = model.module.eval()(images)
        received = decode_state(encode_codes(state, codes, {}))
        load_state(model.module, received)
        assert torch.equal(model.module(images), outputs)
    assert codes
    assert not any(np.array_equal(received[name], state[name]) for name in codes)
