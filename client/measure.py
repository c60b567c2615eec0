"""This device as a class for the fleet emulator, measured."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from client.doctor import get_health
from client.launch import parse_address, require_file
from client.memory import MB
from client.workload import Workload, WorkloadResult, measure_workload
from common.errors import UserError

SMALLEST_BATCH = 2
"""Batch normalisation needs more than one image."""

LARGEST_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """What was measured."""

    result: WorkloadResult
    largest_batch: int = 0
    """That stays below the limit of memory; 0: not looked for."""
    latency_seconds: float | None = None
    """Half of a TLS request's round trip to the SuperLink; None: not measured."""


def measure_device(workload: Workload, superlink: str = "", ca: Path | None = None) -> DeviceReport:
    """Train in processes of their own and look at what they took.

    With a limit of memory batches pass in parts that fit, and the largest batch that fits whole is
    looked for.

    Raises:
        UserError: the SuperLink does not answer, the training failed, or not even the smallest
            batch fits.
    """
    # First: what is wrong with an address should not wait for a training.
    latency = _latency(superlink, ca) if superlink else None
    result = measure_workload(workload)
    largest = largest_batch(workload) if workload.max_memory_bytes else 0
    return DeviceReport(result=result, largest_batch=largest, latency_seconds=latency)


def _latency(superlink: str, ca: Path | None) -> float:
    """Seconds of half a round trip."""
    if ca is None:
        raise UserError("--superlink needs --ca: connections are only made over TLS")
    require_file("--ca", ca)
    host, port = parse_address(superlink)
    try:
        # A connection and its handshake take three round trips, the request one more.
        return min(timeit.repeat(lambda: get_health(host, port, ca), number=1, repeat=3)) / 8
    except OSError as error:
        raise UserError(f"{superlink} does not answer: {error}") from error


def largest_batch(workload: Workload) -> int:
    """The largest power of two as batch whose process stays within the workload's limit.

    Raises:
        UserError: not even `SMALLEST_BATCH` does.
    """

    def peak(batch_size: int) -> int:
        # So few images that every batch is measured with one or two steps.
        small = replace(
            workload,
            batch_size=batch_size,
            num_images=max(2 * batch_size, workload.num_classes),
            fraction=1.0,
            max_memory_bytes=0,
        )
        return measure_workload(small).peak_bytes

    return largest_fitting(peak, workload.max_memory_bytes)


def largest_fitting(peak: Callable[[int], int], max_memory_bytes: int) -> int:
    """The largest power of two up to `LARGEST_BATCH` whose ``peak`` is within the limit.

    Args:
        peak: batch size -> bytes; does not fall.
        max_memory_bytes: the limit.

    Raises:
        UserError: the smallest batch does not fit.
    """
    low = SMALLEST_BATCH
    smallest = peak(low)
    if smallest > max_memory_bytes:
        raise UserError(
            f"--max-memory {max_memory_bytes / MB:.0f}M: training takes {smallest / MB:.0f} MB "
            f"with a batch of {low}"
        )
    while low < LARGEST_BATCH and peak(2 * low) <= max_memory_bytes:
        low *= 2
    return low


def to_yaml(name: str, workload: Workload, report: DeviceReport) -> str:
    """A class for simulations/fleets, with what was measured; comments say what was not."""
    result = report.result
    figures: dict[str, Any] = {
        "training-gflops": round(result.training_gflops, 2),
        "memory-mb": round(result.peak_bytes / MB),
    }
    if report.latency_seconds is not None:
        figures["latency-seconds"] = round(report.latency_seconds, 4)
    body = yaml.safe_dump({"classes": {name: figures}}, sort_keys=False)
    limit = (
        f" in parts that fit into {workload.max_memory_bytes / MB:.0f} MB"
        if workload.max_memory_bytes
        else ""
    )
    notes = [
        f"{workload.model}, {workload.num_images} images of {workload.image_size} pixels, "
        f"batches of {workload.batch_size}{limit}, {workload.threads} thread(s), torch "
        f"{result.torch_version}",
        f"{result.images_per_second:.1f} images/s trained (teacher and student)",
        f"peak {result.peak_bytes / MB:.0f} MB: import torch {result.torch_bytes / MB:.0f}, "
        f"all imports {result.imported_bytes / MB:.0f}, growth beyond "
        f"{(result.peak_bytes - result.imported_bytes) / MB:.0f}",
    ]
    if report.largest_batch:
        notes.append(f"largest batch that fits: {report.largest_batch}")
    notes.append("not measured here: uplink-mbits, downlink-mbits and watts; see classes.yaml")
    return "".join(f"# {note}\n" for note in notes) + body
