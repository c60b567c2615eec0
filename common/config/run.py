"""The run as a whole, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass

from common.config.section import Section
from common.settings import setting


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section, name="run"):
    """What concerns the run as a whole."""

    seed: int = setting(0, minimum=0, maximum=2**31 - 1)
    """The one seed that everything random derives from."""
    threads: int = setting(1, minimum=1, maximum=256)
    """Torch threads of one client; results are bit-identical only for the same number."""
    out: str = setting("")
    """The run folder; empty: runs/<dataset>-<model>-<time>."""
    resume: str = setting("")
    """Folder of a run that was killed, to go on after its last finished round; empty: a new run."""
    tensorboard: bool = setting(False)
    """Write TensorBoard logs into the run folder as well."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section, name="evaluation"):
    """When and how models are measured."""

    interval: int = setting(1, minimum=1)
    """Rounds between two evaluations on the server's test images (the last is always)."""
    device_interval: int = setting(5, minimum=0)
    """Rounds between two evaluations on the devices' own held-out images; 0: never."""
    batch_size: int = setting(64, minimum=1, maximum=65536)
    """Images per evaluation step."""
    threads: int = setting(2, minimum=1, maximum=256)
    """Torch threads of the server's evaluation."""
