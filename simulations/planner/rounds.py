"""Rounds of a fleet without training: the emulation's draws and rules on arrays of devices.

Every device has the same number of training images, less where its class has room for a part of
them, and a coreset of exactly its fraction; costs, availability, failures, delays, deadline and
energy are those of `simulations.emulation.hardware` and `common.devices`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.coreset import SMALLEST_CORESET, STUDENT_FREE
from client.selection import first_scored_epoch, needs_teacher_outputs
from common.bit_widths import choose_bits
from common.config import ASYNCHRONOUS, Config, pool_factor, selection_interval
from common.devices import DeviceProfile, task_cost, task_joules
from common.errors import UserError
from common.messages import Stage
from common.seeding import numpy_generator
from server.exchange.courier import POLL_SECONDS
from server.requirements import required_replies
from simulations.emulation.fleet import check_fleet
from simulations.emulation.hardware import Attempt, Emulation, require_possible
from simulations.emulation.settling import FAILED, LATE, SURPLUS, TRAINED, replies_wanted, settle
from simulations.emulation.workload import Workload
from simulations.planner.kept_views import KeptViews
from simulations.planner.payload import MessageSizes
from simulations.planner.planned_round import PlannedRound
from simulations.planner.traffic import LoadCurve

Floats = NDArray[np.float64]

array_cost: Any = task_cost
"""The arithmetic of one task's cost holds for arrays of tasks."""
array_joules: Any = task_joules


class FleetPlan:
    """The devices of a plan, and what they have done so far.

    Args:
        emulation: the devices.
        config: of the run; federation.num-rounds is the number of rounds.
        workload: what tasks compute.
        sizes: of the messages.
        num_samples: training images of a device whose class has room for all of them.
        num_classes: of the data set.
    """

    def __init__(
        self,
        emulation: Emulation,
        config: Config,
        workload: Workload,
        sizes: MessageSizes,
        *,
        num_samples: int,
        num_classes: int,
    ) -> None:
        self.emulation = emulation
        self.config = config
        self.workload = workload
        self.sizes = sizes
        self.num_classes = num_classes
        self.profiles: tuple[DeviceProfile, ...] = emulation.fleet.profiles
        self.num_samples = [
            max(1, round(num_samples * profile.data_share)) for profile in self.profiles
        ]
        """Training images of a device, by class."""
        num_devices = emulation.num_devices
        self.fate_counts = np.zeros((len(self.profiles), 4), dtype=np.int64)
        """Devices by class and fate, over all rounds."""
        self.seconds_sum = np.zeros(len(self.profiles))
        """Virtual seconds of the replies that were used, by class."""
        if config.strategy.name == ASYNCHRONOUS:
            raise UserError(
                f"a plan is of rounds that devices begin together: expected another strategy.name "
                f"than '{ASYNCHRONOUS}'"
            )
        if config.is_paced:
            raise UserError(
                "a plan does not foresee what devices make of coreset.adaptive and "
                "training.partial-work: expected false"
            )
        check_fleet(emulation.fleet, config)
        bits = set(config.device_bits)
        able = np.array([not bits.isdisjoint(profile.weight_bits) for profile in self.profiles])
        self._able = able[emulation.class_of]
        self._model_round = np.full(num_devices, -1, dtype=np.int32)
        """Of which round each device holds the model, and with it the teacher; -1: neither."""
        self._coreset_epoch = np.full(num_devices, -1, dtype=np.int32)
        """When each device chose its coreset; -1: it never has."""
        self._kept_views = KeptViews(config, num_devices)
        self._required = required_replies(config)

    def run(self) -> Iterator[PlannedRound]:
        """All rounds, one after the other.

        Raises:
            UserError: too few devices are there for longer than federation.round-timeout, or no
                device can meet the deadline.
        """
        self._require_possible()
        now = 0.0
        for round_index in range(self.config.federation.num_rounds):
            available, waited = self._wait_for_devices(now)
            asked = self._sample(available, round_index)
            planned = self._round(round_index, asked, now, waited, len(available))
            now += waited + planned.virtual_seconds
            yield planned

    def _require_possible(self) -> None:
        """One device of each class stands for all of them."""
        _, first = np.unique(self.emulation.class_of, return_index=True)
        classes = self.emulation.class_of[first]
        attempts = [
            Attempt(
                partition_id=int(partition_id),
                cost=task_cost(
                    self.profiles[index],
                    flops=self.workload.least(
                        Stage.QUANTIZED, self.num_samples[index], self.num_classes
                    ),
                    download_bytes=self.sizes.first_request_bytes,
                    upload_bytes=0,
                ),
            )
            for partition_id, index in zip(first, classes, strict=True)
        ]
        names = [self.profiles[index].class_name for index in classes]
        require_possible(attempts, names, self.config.fleet.deadline)

    def _wait_for_devices(self, now: float) -> tuple[NDArray[np.int64], float]:
        """Partition ids of the devices that are there, and how long the server waited for them."""
        timeout, waited = self.config.federation.round_timeout, 0.0
        while True:
            there = np.flatnonzero(self.emulation.available(now + waited) & self._able)
            if len(there) >= self._required:
                return there, waited
            if waited >= timeout:
                raise UserError(
                    f"fleet {self.emulation.fleet.name}: {len(there)} device(s) are there after "
                    f"{timeout:g} virtual seconds of waiting (at {now + waited:.6g}): expected at "
                    f"least {self._required}"
                )
            waited += min(POLL_SECONDS, timeout)

    def _sample(self, available: NDArray[np.int64], round_index: int) -> NDArray[np.int64]:
        """As `server.exchange.registry.DeviceRegistry.sample` draws devices."""
        config = self.config
        fraction = min(1.0, config.federation.fraction * config.fleet.over_selection)
        size = min(len(available), max(self._required, round(fraction * len(available))))
        if size == len(available):
            return available
        generator = numpy_generator(config.run.seed, f"sampling-{Stage.QUANTIZED}", round_index)
        return np.sort(available[generator.permutation(len(available))[:size]])

    def _round(
        self,
        round_index: int,
        asked: NDArray[np.int64],
        now: float,
        waited: float,
        num_available: int,
    ) -> PlannedRound:
        emulation, fleet = self.emulation, self.config.fleet
        class_of = emulation.class_of[asked]
        members = [np.flatnonzero(class_of == index) for index in range(len(self.profiles))]
        parts = emulation.failures(Stage.QUANTIZED, round_index)[asked]
        delays = emulation.delays(Stage.QUANTIZED, round_index)[asked]
        fails = np.isfinite(parts)
        downloads = self.request_bytes(asked, round_index)
        seconds = np.empty(len(asked))
        costs = []
        for index, at in enumerate(members):
            cost, heard, upload = self._cost(
                index, round_index, asked[at], fails[at], parts[at], delays[at], downloads[at]
            )
            costs.append((cost, upload))
            seconds[at] = heard
        num_wanted = replies_wanted(len(asked), fleet.over_selection, self._required)
        fates, round_seconds = settle(
            seconds, fails, num_wanted=num_wanted, deadline=fleet.deadline
        )
        self._model_round[asked[fates == TRAINED]] = round_index

        joules = down = up = 0.0
        load = LoadCurve(round_seconds)
        for index, (at, (cost, upload)) in enumerate(zip(members, costs, strict=True)):
            stopped = np.minimum(seconds[at], round_seconds)
            idle = np.where(fates[at] == FAILED, 0.0, round_seconds - stopped)
            done = cost.until(stopped)
            energy = array_joules(self.profiles[index], done, idle_seconds=idle)
            emulation.spent_joules[asked[at]] += energy
            joules += float(energy.sum())
            down += load.add_downloads(cost, done, downloads[at])
            up += load.add_uploads(cost, done, upload)
            self.fate_counts[index] += np.bincount(fates[at], minlength=4)
            self.seconds_sum[index] += float(seconds[at][fates[at] == TRAINED].sum())
        counts = np.bincount(fates, minlength=4)
        return PlannedRound(
            round=round_index + 1,
            virtual_start_seconds=now,
            virtual_waited_seconds=waited,
            virtual_seconds=round_seconds,
            num_available=num_available,
            num_asked=len(asked),
            num_trained=int(counts[TRAINED]),
            num_late=int(counts[LATE]),
            num_surplus=int(counts[SURPLUS]),
            num_failed=int(counts[FAILED]),
            is_skipped=bool(counts[TRAINED] < self._required),
            download_bytes=down,
            upload_bytes=up,
            egress_peak_gbits=load.download_peak_gbits,
            ingress_peak_gbits=load.upload_peak_gbits,
            joules=joules,
        )

    def request_bytes(self, devices: NDArray[np.int64], round_index: int) -> Floats:
        """Of the requests of a round to these devices, by partition id.

        With the teacher to those that do not have it, else changes to those that hold a model that
        few rounds came after.
        """
        sizes = self.sizes
        by_changes = np.array([sizes.request_bytes, *sizes.change_request_bytes], np.float64)
        held = self._model_round[devices]
        num_changes = round_index - held
        num_changes[num_changes >= len(by_changes)] = 0
        return np.where(held < 0, float(sizes.first_request_bytes), by_changes[num_changes])

    def _cost(
        self,
        index: int,
        round_index: int,
        devices: NDArray[np.int64],
        fails: NDArray[np.bool_],
        parts: Floats,
        delays: Floats,
        downloads: Floats,
    ) -> tuple[Any, Floats, Floats]:
        """What the task costs devices of one class, when the server hears of each, and the bytes
        of each one's reply.

        As in an emulation, a device that breaks off, or that will be late whatever it does, is
        charged the least that its task can cost: it is not trained, and has no reply.
        """
        profile, deadline = self.profiles[index], self.config.fleet.deadline
        num_samples = self.num_samples[index]
        least_flops = self.workload.least(Stage.QUANTIZED, num_samples, self.num_classes)
        least = array_cost(
            profile,
            flops=least_flops,
            download_bytes=downloads,
            upload_bytes=0,
            delay_seconds=delays,
        ).virtual_seconds
        trains = ~fails & (least <= deadline if deadline else True)
        flops = np.full(len(devices), least_flops)
        flops[trains] = self._training_flops(index, round_index, devices[trains])
        bits = choose_bits(self.config.device_bits, profile.weight_bits, 0)
        # Devices of a class that supports none of the bits are never asked.
        reply_bytes = 0 if bits is None else self.sizes.reply_bytes[bits]
        uploads = np.where(trains, float(reply_bytes), 0.0)
        cost = array_cost(
            profile,
            flops=flops,
            download_bytes=downloads,
            upload_bytes=uploads,
            delay_seconds=delays,
        )
        heard = np.where(fails, parts * least, cost.virtual_seconds)
        return cost, heard, uploads

    def _training_flops(self, index: int, round_index: int, devices: NDArray[np.int64]) -> Floats:
        """Operations of selections that are due and of all epochs; notes when devices selected."""
        coreset, epochs = self.config.coreset, self.config.training.local_epochs
        first, last = round_index * epochs, (round_index + 1) * epochs
        first_scored = first_scored_epoch(coreset)
        selected = self._coreset_epoch[devices]
        num_kept = self._kept_views.num_kept_epochs(devices, selected, first, last)
        is_new = selected < 0
        has_scored = ~is_new & (selected >= first_scored)
        interval = selection_interval(coreset)
        due = selected + interval
        due = np.where(has_scored, due, np.minimum(due, first_scored))
        due = np.where(is_new, first, np.maximum(due, first))
        # Random coresets, which cost nothing, give way to the first one that is scored.
        due_scored = np.maximum(due, first_scored)
        num_selections = np.where(due_scored < last, 1 + (last - 1 - due_scored) // interval, 0)
        since = np.where(due_scored < last, due_scored, due)
        chosen_at = since + (last - 1 - since) // interval * interval
        self._coreset_epoch[devices] = np.where(since < last, chosen_at, selected)

        num_samples = self.num_samples[index]
        size = num_samples
        if coreset.selection != "full":
            least = min(SMALLEST_CORESET, num_samples)
            size = max(least, round(coreset.fraction * num_samples))
        factor = pool_factor(coreset)
        pool = min(num_samples, math.ceil(factor * size)) if factor else num_samples
        scored = 0 if coreset.selection in STUDENT_FREE else pool * num_selections
        teacher_scored: int | NDArray[np.int64] = 0
        if needs_teacher_outputs(coreset.selection):
            # On all images the teacher's outputs are computed once and kept.
            is_first = ~has_scored & (num_selections > 0)
            teacher_scored = pool * (num_selections if pool < num_samples else is_first)
        metrics = {
            "num-seen": np.full(len(devices), float(epochs * size)),
            "num-scored": scored,
            "num-teacher-scored": teacher_scored,
            "num-teacher-kept": num_kept * size,
        }
        flops: Floats = self.workload.of_reply(Stage.QUANTIZED, metrics, num_samples)  # type: ignore[arg-type, assignment]
        return flops
