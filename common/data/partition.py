"""Which device holds which samples: splits of a labelled set through flwr-datasets' partitioners.

A split is decided by the labels and the seed alone. Samples are put in a random order first, so
that no scheme depends on the order in which they are stored.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from common.config import DataConfig
from common.data.stratify import stratified_mask
from common.errors import UserError
from common.extras import import_extra

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

PATHOLOGICAL_TRIES = 3

_HINTS = {
    "iid": "lower data.num-devices or data.min-samples",
    "dirichlet": "raise data.alpha, or lower data.num-devices or data.min-samples",
    "pathological": "change data.classes-per-device, or lower data.num-devices or data.min-samples",
    "shard": "lower data.num-devices, data.shards-per-device or data.min-samples",
    "quantity": "lower data.num-devices or data.min-samples",
}

_logger = logging.getLogger(__name__)


def configured_split(labels: Tensor, data: DataConfig, seed: int) -> list[Tensor]:
    """Split samples over the devices of a run; the same arguments give the same split.

    Schemes:
        iid: equal sizes, at random.
        dirichlet: of each class, shares over the devices drawn from Dirichlet(alpha) (Yurochkin et
            al. 2019). If no draw leaves every device ``min_samples``, devices above the average
            size take no more samples (self-balancing): it is not the first choice because it leaves
            the last classes to few devices.
        pathological: ``classes_per_device`` classes on each device (Li et al. 2022); a class that
            no device was given is left out.
        shard: samples sorted by class and cut into equal shards, ``shards_per_device`` for each
            device (McMahan et al. 2017); what does not fill a shard is left out.
        quantity: sizes drawn from Dirichlet(alpha), labels at random.

    Args:
        labels: of the training images, int64 [n].
        data: settings of the split.
        seed: of the run.

    Returns:
        For each device the indices of its samples, int64, sorted, disjoint; together all n but
        for what a scheme leaves out (a warning is logged then).

    Raises:
        UserError: the samples are too few for the settings, or the scheme cannot give every device
            ``min_samples``; or flwr-datasets is not installed.
    """
    num_samples, num_devices = len(labels), data.num_devices
    _check(data, num_samples, int(labels.unique().numel()))
    generator = np.random.default_rng(seed)
    order = generator.permutation(num_samples)
    shuffled = labels.numpy()[order]
    reason = ""
    for partitioner in _partitioners(data, generator, num_samples):
        try:
            positions = _split(partitioner, shuffled, num_devices)
        except ValueError as error:  # how flwr-datasets says that it found no such split
            reason = f" ({str(error).split('. ')[0]})"
            continue
        smallest = min(len(part) for part in positions)
        if smallest >= data.min_samples:
            num_used = sum(len(part) for part in positions)
            if num_used < num_samples:
                _logger.warning(
                    "partition %s uses %d of %d samples", data.partition, num_used, num_samples
                )
            return [torch.from_numpy(np.sort(order[part])) for part in positions]
        reason = f" (the smallest device has {smallest})"
    raise UserError(
        f"data.partition = {data.partition!r} cannot give each of {num_devices} devices "
        f"{data.min_samples} of the {num_samples} samples{reason}: {_HINTS[data.partition]}"
    )


def split_holdout(
    indices: Tensor, labels: Tensor, fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Keep a part of one device's samples for evaluation, class by class in proportion.

    Every class that is present keeps at least one training sample.

    Args:
        indices: the device's samples, int64 [k].
        labels: of the whole set, int64 [n]; ``indices`` point into it.
        fraction: share held out, 0 <= fraction < 1.
        seed: of the choice.

    Returns:
        (train_indices, holdout_indices), int64, disjoint, together ``indices``, in their order.

    Raises:
        ValueError: ``fraction`` is not in [0, 1).
    """
    mask = stratified_mask(labels[indices].numpy(), fraction, np.random.default_rng(seed))
    held_out = torch.from_numpy(mask)
    return indices[~held_out], indices[held_out]


def _check(data: DataConfig, num_samples: int, num_classes: int) -> None:
    if data.partition == "pathological" and data.classes_per_device > num_classes:
        raise UserError(
            f"data.classes-per-device = {data.classes_per_device} is not allowed: at most the "
            f"{num_classes} classes that there are"
        )
    min_samples = data.min_samples
    if data.partition == "pathological":
        min_samples = max(min_samples, data.classes_per_device)
    num_needed = data.num_devices * min_samples
    if num_needed > num_samples:
        raise UserError(
            f"data.num-devices = {data.num_devices} with {min_samples} samples each "
            f"(data.min-samples, or one of each class) needs {num_needed} samples, there are "
            f"{num_samples}"
        )


def _partitioners(
    data: DataConfig, generator: np.random.Generator, num_samples: int
) -> Iterator[Partitioner]:
    """The partitioners to try, one after the other, until every device has enough samples."""
    library = import_extra("flwr_datasets.partitioner", needed_for="splitting data over devices")

    def draw_seed() -> int:
        return int(generator.integers(2**31))

    if data.partition == "iid":
        yield library.IidPartitioner(data.num_devices)
    elif data.partition == "dirichlet":
        for self_balancing in (False, True):  # each draws up to eleven times
            yield library.DirichletPartitioner(
                data.num_devices,
                "label",
                data.alpha,
                min_partition_size=data.min_samples,
                self_balancing=self_balancing,
                shuffle=False,
                seed=draw_seed(),
            )
    elif data.partition == "pathological":
        for _ in range(PATHOLOGICAL_TRIES):
            yield library.PathologicalPartitioner(
                data.num_devices,
                "label",
                data.classes_per_device,
                class_assignment_mode="first-deterministic",
                shuffle=False,
                seed=draw_seed(),
            )
    elif data.partition == "shard":
        yield library.ShardPartitioner(
            data.num_devices, "label", data.shards_per_device, shuffle=False, seed=draw_seed()
        )
    else:
        yield library.SizePartitioner(_skewed_sizes(data, num_samples, generator).tolist())


def _skewed_sizes(data: DataConfig, num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Sizes of at least ``min_samples`` with the rest shared out by Dirichlet(alpha)."""
    num_shared = num_samples - data.num_devices * data.min_samples
    shares = generator.dirichlet(np.full(data.num_devices, data.alpha))
    bounds = np.rint(np.cumsum(shares) * num_shared)
    return data.min_samples + np.diff(bounds, prepend=0).astype(np.int64)


def _split(partitioner: Partitioner, labels: np.ndarray, num_devices: int) -> list[np.ndarray]:
    """Each device's positions in ``labels``.

    Raises:
        ValueError: the partitioner cannot split them as asked.
    """
    rows = import_extra("datasets", needed_for="splitting data over devices").Dataset.from_dict(
        {"label": labels, "position": np.arange(len(labels))}
    )
    with warnings.catch_warnings():
        # Its advice is given to programmers of partitioners; ours names the settings.
        warnings.simplefilter("ignore")
        partitioner.dataset = rows
        # The arrow format hands over whole columns (1,000 devices: 0.8 s, "numpy" format 3.7 s).
        parts = [
            partitioner.load_partition(device).with_format("arrow")[:]["position"].to_numpy()
            for device in range(num_devices)
        ]
    if np.bincount(np.concatenate(parts), minlength=1).max() > 1:
        raise ValueError("samples were given to more than one device")
    return parts
