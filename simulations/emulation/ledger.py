"""What becomes of emulated devices: their energy, and the virtual figures of recorded lines."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from common.messages import NUM_EXAMPLES, Stage
from simulations.emulation.clock import VirtualClock
from simulations.emulation.hardware import Attempt, Emulation

CLASS_ACCURACY = "class_accuracy"


class FleetLedger:
    """The books of a run on an emulated fleet.

    Args:
        emulation: the devices, charged for what they do.
        clock: of the run.
    """

    def __init__(self, emulation: Emulation, clock: VirtualClock) -> None:
        self.emulation = emulation
        self.clock = clock
        self.away: list[int] = []
        """Partition ids of the devices that are not there."""
        self._figures: dict[int, dict[str, Any]] = {}
        """Partition id -> figures of a device that was asked, until its line is written."""
        self._told: list[tuple[int, str, dict[str, Any]]] = []
        """Partition id, task and figures of the device lines since the last round line."""
        self._round_start = 0.0
        self._participation: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._evaluated: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._evaluated_round = (Stage.FLOAT.value, 0)

    def record(self, attempt: Attempt, round_seconds: float) -> None:
        """A device's part in a round of ``round_seconds`` is over."""
        energy = self.emulation.spend(attempt, round_seconds)
        profile = self.emulation.profile(attempt.partition_id)
        before = self._figures.get(attempt.partition_id, {})
        done = attempt.cost.until(attempt.fails_after)
        self._figures[attempt.partition_id] = {
            "device_class": profile.class_name,
            "fate": attempt.fate.value,
            "virtual_seconds": before.get("virtual_seconds", 0.0) + attempt.virtual_seconds,
            "virtual_delay_seconds": done.virtual_delay_seconds,
            "virtual_download_seconds": done.virtual_download_seconds,
            "virtual_compute_seconds": done.virtual_compute_seconds,
            "virtual_upload_seconds": done.virtual_upload_seconds,
            "joules": before.get("joules", 0.0) + energy,
        }

    def of_device(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Virtual figures of a device's line."""
        partition_id = line["partition_id"]
        class_name = self.emulation.profile(partition_id).class_name
        if line["task"] != "evaluate":
            figures = self._figures.pop(partition_id)
            self._told.append((partition_id, line["task"], figures))
            if line["task"] == "train":
                self._participation[class_name][figures["fate"]] += 1
            return figures
        if self._evaluated_round != (line["stage"], line["round"]):
            self._evaluated_round = (line["stage"], line["round"])
            self._evaluated.clear()
        for name in ("correct", NUM_EXAMPLES.replace("-", "_")):
            self._evaluated[class_name][name] += line.get(name, 0)
        return {"device_class": class_name}

    def of_round(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Of a round and the waiting for devices before it; forgets the devices' figures."""
        told, self._told = self._told, []
        took_part = {partition_id for partition_id, _, _ in told}
        now = self.clock.now()
        passed, self._round_start = now - self._round_start, now
        result = {
            "virtual_seconds": passed,
            "virtual_clock_seconds": now,
            "joules": math.fsum(figures["joules"] for _, _, figures in told),
            "fates": dict(
                sorted(Counter(f["fate"] for _, task, f in told if task == "train").items())
            ),
            # Not those that have left since.
            "away": [device for device in self.away if device not in took_part],
        }
        if self._evaluated_round == (line["stage"], line["round"]):
            result[CLASS_ACCURACY] = self._class_accuracy()
        return result

    def of_summary(self) -> dict[str, Any]:
        """Of the whole run."""
        return {
            "fleet": self.emulation.fleet.name,
            "fleet_fingerprint": self.emulation.fleet.fingerprint,
            "virtual_seconds": self.clock.now(),
            "joules": math.fsum(self.emulation.spent_joules),
            CLASS_ACCURACY: self._class_accuracy(),
            "class_participation": {
                profile.class_name: dict(sorted(self._participation[profile.class_name].items()))
                for profile in self.emulation.fleet.profiles
            },
        }

    def _class_accuracy(self) -> dict[str, float]:
        """Top-1 in percent of each class's devices on their own images, last measured."""
        return {
            name: 100.0 * counts["correct"] / counts["num_examples"]
            for name, counts in sorted(self._evaluated.items())
            if counts["num_examples"]
        }

    def state(self) -> dict[str, Any]:
        """What the rounds to come depend on, between two rounds."""
        return {
            "virtual_clock_seconds": self.clock.now(),
            "virtual_round_start_seconds": self._round_start,
            "spent_joules": self.emulation.spent_joules.tolist(),
            "participation": self._participation,
            "evaluated": self._evaluated,
            "evaluated_round": self._evaluated_round,
            "away": self.away,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`, at the beginning."""
        self.clock.sleep(state["virtual_clock_seconds"])
        self._round_start = state["virtual_round_start_seconds"]
        self.emulation.spent_joules[:] = state["spent_joules"]
        for name, counts in state["participation"].items():
            self._participation[name].update(counts)
        for name, counts in state["evaluated"].items():
            self._evaluated[name].update(counts)
        self.away = state["away"]
        stage, number = state["evaluated_round"]
        self._evaluated_round = (stage, number)
