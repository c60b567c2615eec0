"""The run folder: settings, one line of figures per round and device, models, a summary.

Figures that depend on the clock have names that end in ``_seconds``; everything else is the same,
byte for byte, in two runs with one seed. An emulation's virtual seconds are the same as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from common.atomic_file import replacing
from common.config import Config
from common.errors import UserError
from common.lock import hold
from common.paths import without_tilde

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
LOCK_FILE = ".lock"

CLAIM_SECONDS = 120.0
"""How long a run waits for another one to leave its folder: one whose connection is lost may still
be measuring a model."""

Annotate = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A line, or the summary (of kind "summary") -> figures that belong into it as well."""

Listener = Callable[[Mapping[str, Any]], None]
"""Is given every line once it is recorded."""


def no_annotation(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """Nothing to add."""
    return {}


def default_run_folder(config: Config) -> Path:
    """run.resume, run.out, or runs/<dataset>-<model>-<bits>-<time> under the current directory."""
    if folder := config.run.resume or config.run.out:
        return without_tilde(folder)
    bits = f"{config.quantization.weight_bits}w{config.quantization.activation_bits}a"
    started = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.data.dataset}-{config.model.name}-{bits}-{started}"


def check_run_folder(folder: Path) -> None:
    """Make sure that a run can write into ``folder`` without mixing with another's files.

    Raises:
        UserError: if it is a file, holds something already or can't be written.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    if not existing.is_dir():
        raise UserError(f"run.out = '{folder}': expected a folder, found a file")
    if existing == folder and holds_files(folder):
        raise UserError(f"run.out = '{folder}': expected a new or empty folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"run.out = '{folder}': can't be written: no permission in {existing}")


def holds_files(folder: Path) -> bool:
    """Whether there is anything in a folder but the lock of a run that is about to write there."""
    return any(path.name != LOCK_FILE for path in folder.iterdir())


@contextmanager
def claimed(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """While entered, no other run on this machine writes into ``folder``, which is made.

    Raises:
        UserError: if one goes on doing so, or the folder can't be written.
    """
    for wait_seconds in (0.0, CLAIM_SECONDS):
        if wait_seconds:
            note(f"'{folder}': another run is writing there: waiting for it to end")
        with hold(folder / LOCK_FILE, wait_seconds=wait_seconds) as is_free:
            if is_free:
                yield
                return
    raise UserError(
        f"run.out = '{folder}': another run is writing there: wait for its end, stop it, or give "
        f"another folder"
    )


class Recorder:
    """Writes a run's figures as they come; a context manager that closes its file.

    Args:
        folder: made when it is missing; empty, unless a run goes on.
        config: written as config.yaml, by section.
        annotate: asked what else belongs into every line and into the summary.
        kept_bytes: of metrics.jsonl, where a run goes on: what comes after them is cut off.
        listeners: are given every new line, in this order.

    Raises:
        UserError: if the folder can't be written or is not empty.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        annotate: Annotate = no_annotation,
        *,
        kept_bytes: int | None = None,
        listeners: Iterable[Listener] = (),
    ) -> None:
        if kept_bytes is None:
            check_run_folder(folder)
        self.folder = folder
        self._annotate = annotate
        self._listeners = tuple(listeners)
        self.rounds: list[dict[str, Any]] = []
        """The lines of all rounds so far."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not kept_bytes:
                (folder / CONFIG_FILE).write_text(config_yaml(config), encoding="utf-8")
            self._file = (folder / METRICS_FILE).open("a+b")
            kept = self._keep(kept_bytes or 0)
        except OSError as error:
            raise UserError(f"run.out = '{folder}': can't be written: {error.strerror}") from error
        self._num_bytes = len(kept)
        self._digest = _new_digest(kept)
        lines = [json.loads(line) for line in kept.splitlines()]
        self.rounds += [line for line in lines if line["kind"] == "round"]

    def _keep(self, num_bytes: int) -> bytes:
        """Cut metrics.jsonl off after this many bytes; what is left of it."""
        self._file.truncate(num_bytes)
        self._file.seek(0)
        return self._file.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Append one line to metrics.jsonl; it is on its way to the disk before this returns.

        Returns:
            The line as it was written, annotated.
        """
        line = {**line, **self._annotate(line)}
        if line["kind"] == "round":
            self.rounds.append(line)
        content = (to_json(line) + "\n").encode()
        self._file.write(content)
        self._file.flush()
        self._num_bytes += len(content)
        self._digest.update(content)
        for listener in self._listeners:
            listener(line)
        return line

    def sync(self) -> tuple[int, str]:
        """Have metrics.jsonl on the disk; its bytes so far, and their digest."""
        os.fsync(self._file.fileno())
        return self._num_bytes, self._digest.hexdigest()

    def write_summary(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json atomically; returns what was written, annotated."""
        summary = {**summary, **self._annotate({"kind": "summary", **summary})}
        with replacing(self.folder / SUMMARY_FILE) as temporary:
            temporary.write_text(to_json(summary, indent=2) + "\n", encoding="utf-8")
        return summary


def file_digest(path: Path, num_bytes: int) -> str:
    """The digest, as of `Recorder.sync`, of a file's first bytes; empty if it has not as many."""
    try:
        with path.open("rb") as file:
            content = file.read(num_bytes)
    except OSError:
        return ""
    return _new_digest(content).hexdigest() if len(content) == num_bytes else ""


def _new_digest(content: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=16)


def config_yaml(config: Config) -> str:
    """All settings as YAML, by section."""
    sections: dict[str, dict[str, object]] = {}
    for key, value in config.to_flat().items():
        section, name = key.split(".", 1)
        sections.setdefault(section, {})[name] = value
    return yaml.safe_dump(sections, sort_keys=False)


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
