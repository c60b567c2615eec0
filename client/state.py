"""What a device keeps between messages.

The teacher and its outputs are kept on disk by content hash: emulated devices on one machine share
them, and they outlive a restart. Where the disk is full or read-only a device trains all the same:
the teacher is sent again, and its outputs are computed again. Coreset, error feedback and the last
global model belong to one device in one run and live in Flower's Context.state, as does what the
server said about the run's images.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from client.coreset import Coreset
from common.atomic_file import replacing
from common.cache import cache_dir
from common.checkpoints import content_hash
from common.data.input_spec import InputSpec
from common.messages import REQUEST, QueryRequest

State = dict[str, NDArray[np.float32]]

logger = logging.getLogger(__name__)

TEACHER_FILE = "teacher.safetensors"

KEPT_TEACHERS = 8
"""Teachers kept on disk; the least recently used ones beyond that are removed."""

KEPT_OUTPUTS_SECONDS = 7 * 24 * 3600
"""For which a teacher's outputs outlive their last use: those of images that have changed since are
of no use to anybody."""

INPUTS = "inputs"
CORESET = "coreset"
TEACHER_VIEWS = "teacher-views"
RESIDUAL = "residual"
MODEL = "model"
PACE = "pace"


class TeacherStore:
    """Teachers and their outputs on this machine, by content hash."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_dir()) / "teachers"

    def version(self, teacher_hash: str) -> tuple[str, int, int, int] | None:
        """Path, inode, size and time of change of the kept teacher; None when it is not here.

        Counts as a use of the teacher.
        """
        path = self._folder(teacher_hash) / TEACHER_FILE
        try:
            status = path.stat()
        except OSError:
            return None
        _note_use(path.parent)
        return str(path), status.st_ino, status.st_size, status.st_mtime_ns

    def load(self, teacher_hash: str) -> State | None:
        """The kept teacher, or None when it is not here or damaged."""
        path = self._folder(teacher_hash) / TEACHER_FILE
        try:
            state = load_file(path)
        except (OSError, SafetensorError):
            return None
        if content_hash(state) != teacher_hash:
            return None
        _note_use(path.parent)
        return state

    def keep(self, state: State) -> str:
        """Keep a teacher, if it can be written (`version` says so); returns its hash."""
        teacher_hash = content_hash(state)
        path = self._folder(teacher_hash) / TEACHER_FILE
        try:
            with replacing(path) as temporary:
                save_file(state, temporary)
            self._prune()
        except (OSError, SafetensorError) as error:
            with suppress(OSError):  # a damaged one in its place would be taken for it
                path.unlink(missing_ok=True)
            logger.warning(
                "cannot write %s (%s): the teacher is sent again in every round; set "
                "FEDQUARC_CACHE to a writable folder",
                path,
                error,
            )
        return teacher_hash

    def outputs(
        self,
        teacher_hash: str,
        images_digest: str,
        compute: Callable[[], Tensor],
        *conditions: object,
    ) -> Tensor:
        """The teacher's outputs [n, classes] on a set of images, computed once.

        Args:
            teacher_hash: of the teacher.
            images_digest: of the images, see `common.data.datasets.ImageSet.digest`.
            compute: gives the outputs.
            conditions: what they depend on beside weights and pixels: architecture, normalisation,
                precision.
        """
        depends_on = repr((images_digest, *conditions)).encode()
        digest = hashlib.blake2b(depends_on, digest_size=16)
        path = self._folder(teacher_hash) / f"outputs-{digest.hexdigest()}.npy"
        try:
            kept = torch.from_numpy(np.load(path))
            _note_use(path)
            return kept
        except (OSError, ValueError, EOFError):
            outputs = compute()
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, outputs.numpy())
            self._prune_outputs(path.parent)
        except OSError as error:
            logger.warning(
                "cannot write %s (%s): the teacher's outputs are computed again for the next "
                "selection; set FEDQUARC_CACHE to a writable folder",
                path,
                error,
            )
        return outputs

    def _folder(self, teacher_hash: str) -> Path:
        if not teacher_hash.isalnum():
            raise ValueError(f"teacher hash {teacher_hash!r}: expected hexadecimal digits")
        return self.root / teacher_hash

    def _prune(self) -> None:
        for folder in sorted(self.root.iterdir(), key=_last_used)[:-KEPT_TEACHERS]:
            shutil.rmtree(folder, ignore_errors=True)

    def _prune_outputs(self, folder: Path) -> None:
        oldest = time.time() - KEPT_OUTPUTS_SECONDS
        for path in folder.glob("outputs-*.npy"):
            if _last_used(path) < oldest:
                path.unlink(missing_ok=True)


def _note_use(path: Path) -> None:
    with suppress(OSError):  # the disk may be read-only: then nothing is pruned either
        os.utime(path)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has just removed it
        return 0.0


def load_inputs(records: RecordDict) -> InputSpec | None:
    """What the server said about the run's images, if it did."""
    if INPUTS not in records:
        return None
    record = RecordDict({REQUEST: records.config_records[INPUTS]})
    return QueryRequest.from_record(record).inputs


def save_inputs(records: RecordDict, inputs: InputSpec) -> None:
    """Remember what the server said about the run's images."""
    records[INPUTS] = QueryRequest(inputs=inputs).to_record().config_records[REQUEST]


def load_coreset(records: RecordDict, images_digest: str) -> Coreset | None:
    """The coreset of the last selection in this run, if any.

    One of other images than those of ``images_digest`` is forgotten: a real device's folder has
    changed, and its indices mean other images now.
    """
    arrays = records.array_records.get(CORESET)
    if arrays is None:
        return None
    info = records.config_records[CORESET + "-info"]
    if info.get("images") != images_digest:
        return None
    epoch = info["epoch"]
    assert isinstance(epoch, int)
    indices = torch.from_numpy(arrays["indices"].numpy())
    extras = {
        name: torch.tensor(arrays[name].numpy()) if name in arrays else None
        for name in ("weights", "scores")
    }
    return Coreset(indices=indices, epoch=epoch, **extras)


def save_coreset(records: RecordDict, coreset: Coreset, images_digest: str) -> None:
    """Remember a coreset of the images of ``images_digest`` for the rounds to come.

    The teacher's logits on views of an earlier one are forgotten.
    """
    tensors = {"indices": coreset.indices, "weights": coreset.weights, "scores": coreset.scores}
    records[CORESET] = ArrayRecord(
        {
            name: Array.from_numpy_ndarray(values.numpy())
            for name, values in tensors.items()
            if values is not None
        }
    )
    records[CORESET + "-info"] = ConfigRecord({"epoch": coreset.epoch, "images": images_digest})
    # At once: the round may fail, and must not leave them beside the new coreset.
    records.pop(TEACHER_VIEWS, None)


def load_teacher_views(records: RecordDict, images_digest: str) -> dict[int, Tensor]:
    """The teacher's logits [k, classes] on views of the coreset of `load_coreset`, by view."""
    arrays = records.array_records.get(TEACHER_VIEWS)
    if arrays is None or load_coreset(records, images_digest) is None:
        return {}
    # A copy: what is read from a record may not be written to.
    return {int(view): torch.from_numpy(array.numpy().copy()) for view, array in arrays.items()}


def save_teacher_views(records: RecordDict, logits: Mapping[int, Tensor]) -> None:
    """Remember the teacher's logits on views of the kept coreset, for the rounds to come."""
    records[TEACHER_VIEWS] = ArrayRecord(
        {str(view): Array.from_numpy_ndarray(values.numpy()) for view, values in logits.items()}
    )


def load_pace(records: RecordDict) -> Mapping[str, object]:
    """How fast this device was in its last round; empty at first."""
    return records.config_records.get(PACE, ConfigRecord())


def save_pace(records: RecordDict, figures: Mapping[str, float]) -> None:
    """Remember how fast this device was, for the rounds to come."""
    records[PACE] = ConfigRecord(dict(figures))


def load_residual(records: RecordDict) -> State:
    """What rounding lost in this device's last update; empty at first."""
    return _to_state(records.array_records.get(RESIDUAL, ArrayRecord()))


def save_residual(records: RecordDict, residual: Mapping[str, NDArray[np.float32]]) -> None:
    """Remember what rounding lost, for the next update (error feedback)."""
    records[RESIDUAL] = _to_record(residual)


def load_model(records: RecordDict) -> tuple[str, State]:
    """The global model that this device holds for changes to come, and its name; empty at first."""
    arrays = records.array_records.get(MODEL)
    if arrays is None:
        return "", {}
    name = records.config_records[MODEL + "-info"]["name"]
    assert isinstance(name, str)
    return name, _to_state(arrays)


def save_model(records: RecordDict, name: str, state: State) -> None:
    """Hold a global model, for changes to come."""
    records[MODEL] = _to_record(state)
    records[MODEL + "-info"] = ConfigRecord({"name": name})


def _to_record(state: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    return ArrayRecord({name: Array.from_numpy_ndarray(values) for name, values in state.items()})


def _to_state(arrays: ArrayRecord) -> State:
    return {name: array.numpy() for name, array in arrays.items()}
