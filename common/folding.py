"""Batch normalisation folded into the convolutions before it: a frozen model's pass, faster.

In eval mode batch normalisation is y = gamma (x - mean) / sqrt(variance + epsilon) + beta, and x
is linear in the weights of the convolution before it. That convolution with its weights times
gamma / sqrt(variance + epsilon) and a bias gives y but for rounding, with one pass over memory less
(Jacob et al., CVPR 2018, section 3.2). Integer codes stay as they are: their step takes the factor,
and becomes one per output channel.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from common.module_copy import copy_module
from common.quantized_layers import ActivationQuantizer, IntConv2d


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A frozen copy of ``model`` in eval mode, batch normalisation folded into its convolutions.

    Other layers keep their names and outputs; in place of a batch normalisation is an identity.
    The copy's state is not that of the architecture any more: it is not for saving.

    Args:
        model: float, or integer (`common.qat.convert`); every batch normalisation comes right
            behind the convolution whose output it takes, as in all models of `common.models`.

    Raises:
        ValueError: a batch normalisation that does not.
    """
    folded = copy_module(model).eval().requires_grad_(False)
    before: nn.Module | None = None
    for name, module in list(folded.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            if not isinstance(before, nn.Conv2d) or before.out_channels != module.num_features:
                raise ValueError(f"{name}: there is no convolution right before it")
            assert module.running_mean is not None
            assert module.running_var is not None
            statistics = (
                module.running_mean,
                module.running_var,
                module.eps,
                module.weight,
                module.bias,
            )
            if isinstance(before, IntConv2d):
                steps = before.weight_step.expand(before.out_channels, 1, 1, 1)
                steps, before.bias = fuse_conv_bn_weights(steps, before.bias, *statistics)
                before.weight_step = steps.data
            else:
                before.weight, before.bias = fuse_conv_bn_weights(
                    before.weight, before.bias, *statistics
                )
            folded.set_submodule(name, nn.Identity())
        is_leaf = not list(module.children()) and not isinstance(module, ActivationQuantizer)
        if is_leaf or isinstance(module, nn.Conv2d):
            before = module
    return folded
