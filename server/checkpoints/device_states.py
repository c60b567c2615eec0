"""Where the states of emulated devices lie: written by their engine, kept by checkpoints.

It imports neither torch nor Flower: worker processes need no more of the server than this.
"""

from pathlib import Path

CHECKPOINT_FOLDER = "checkpoints"
DEVICE_FOLDER = "devices"
DEVICE_SUFFIX = ".state"
"""A device's state, in Flower's own serialization, which runs no code when it is read, is a file
of its node id and this suffix, replaced as a whole."""


def device_folder(run_folder: Path) -> Path:
    """Where an engine keeps the states of emulated devices for this run."""
    return run_folder / CHECKPOINT_FOLDER / DEVICE_FOLDER
