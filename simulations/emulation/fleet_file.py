"""Fleet files: YAML -> fleets.

A fleet has classes, each with a ``count`` or a ``share`` of the devices and its figures::

    classes:
      raspberry-pi-5:                # a class of classes.yaml, as it is
        share: 0.5
      pi-behind-a-slow-line:         # the same with another uplink
        like: raspberry-pi-5
        share: 0.5
        uplink-mbits: 1
        availability: {probability: 0.9, slot-seconds: 600}

A class that is not like another gives every figure of `common.devices.DeviceProfile`. Instead of
``training-gflops`` it may give ``seconds-per-sample``, measured, of training ``model`` in float on
a 32 x 32 colour image. Availability is a probability per slot, ``on-seconds`` and ``off-seconds``,
or a ``trace``: a CSV file of ``start_seconds,end_seconds,available`` without gaps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import ModelConfig, QuantizationConfig
from common.devices import FLOPS_PER_GFLOP, DeviceProfile
from common.errors import UserError
from common.settings import Scalar, kebab, refuse_unknown
from simulations.emulation.availability_file import is_number, parse_availability
from simulations.emulation.fleet import NUM_DEVICES, DeviceFleet, FleetClass
from simulations.settings.shipped import DEVICE_CLASSES, FLEETS
from simulations.settings.yaml_text import read_yaml

PROFILE_FIELDS = {
    kebab(field.name): field
    for field in dataclasses.fields(DeviceProfile)
    if field.name != "class_name"
}
SPEED_KEYS = ("seconds-per-sample", "model")
MEMBER_KEYS = ("like", "count", "share")
CLASS_KEYS = (*PROFILE_FIELDS, *SPEED_KEYS)

REFERENCE_CLASSES = 100
REFERENCE_SHAPE = (3, 32, 32)
"""Outputs and image of the model that ``seconds-per-sample`` was measured with."""


def load_fleet(name_or_path: str) -> DeviceFleet:
    """A fleet.

    Args:
        name_or_path: the name of a shipped fleet, or the path of a YAML file.

    Raises:
        UserError: if there is no such fleet, or for anything wrong in it, naming the thing.
    """
    path = FLEETS.find(name_or_path)
    content = read_yaml(path, "fleet")
    where = f"fleet {path.stem}"
    _expect_mapping(where, content)
    refuse_unknown(content, ("classes",), f"{where}: ")
    members = content.get("classes")
    _expect_mapping(f"{where}: classes", members)
    shipped = read_yaml(DEVICE_CLASSES, "device classes")
    classes = tuple(
        _parse_class(f"{where}: class {name}", name, values, shipped, path.parent)
        for name, values in members.items()
    )
    _check_sizes(where, classes)
    return DeviceFleet(name=path.stem, classes=classes)


def fleet_overrides(name_or_path: str, settings: Mapping[str, Scalar]) -> list[str]:
    """``fleet.name=...`` as an override, for a command line that sets ``settings`` as well.

    Raises:
        UserError: for anything wrong in the fleet, or if another name or number of devices is set.
    """
    fleet = load_fleet(name_or_path)
    if "fleet.name" in settings:
        raise UserError("fleet.name is set twice: by --set and by --fleet")
    num_devices = settings.get(NUM_DEVICES)
    if fleet.num_devices and isinstance(num_devices, int):
        fleet.class_counts(num_devices)
    quoted = name_or_path.replace("'", "''")
    return [f"fleet.name='{quoted}'"]


def fit_settings(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Settings with as many devices as the fleet that they name has, where it fixes their number.

    Others, as federation.min-devices, are checked against that number.

    Raises:
        UserError: if there is no such fleet, or for anything wrong in it.
    """
    name = settings.get("fleet.name")
    fleet = load_fleet(name) if name and isinstance(name, str) else None
    if fleet is None or not fleet.num_devices:
        return dict(settings)
    return {**settings, NUM_DEVICES: fleet.num_devices}


def _parse_class(
    where: str, name: str, values: Any, shipped: Mapping[str, Any], folder: Path
) -> FleetClass:
    _expect_mapping(where, values)
    refuse_unknown(values, (*MEMBER_KEYS, *CLASS_KEYS), f"{where}: ")
    like = values.get("like", name)
    if "like" in values and not (isinstance(like, str) and like in shipped):
        raise UserError(f"{where}: like = {like!r}: expected one of {', '.join(shipped)}")
    own = {key: value for key, value in values.items() if key not in MEMBER_KEYS}
    if "seconds-per-sample" in own and "training-gflops" in own:
        raise UserError(f"{where}: give training-gflops or seconds-per-sample, not both")
    figures = {**shipped.get(like, {}), **own}
    if "seconds-per-sample" in own:
        figures["training-gflops"] = _measured_gflops(where, own)
    elif "model" in own:
        raise UserError(f"{where}: model goes with seconds-per-sample")
    profile = _parse_profile(where, name, figures, folder)
    if ("count" in values) == ("share" in values):
        raise UserError(f"{where}: expected either count or share")
    count, share = values.get("count", 0), values.get("share", 0.0)
    if "count" in values and not (is_number(count) and isinstance(count, int) and count >= 1):
        raise UserError(f"{where}: count = {count!r}: expected a whole number, >= 1")
    if "share" in values and not (is_number(share) and 0 < share <= 1):
        raise UserError(f"{where}: share = {share!r}: expected a number above 0, at most 1")
    return FleetClass(profile=profile, count=int(count), share=float(share))


def _parse_profile(
    where: str, name: str, figures: Mapping[str, Any], folder: Path
) -> DeviceProfile:
    arguments: dict[str, Any] = {}
    for key, field in PROFILE_FIELDS.items():
        if key not in figures:
            if (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            ):
                raise UserError(f"{where}: {key} is missing")
            continue
        value = figures[key]
        if key == "availability":
            arguments[field.name] = parse_availability(where, value, folder)
        elif key == "weight-bits":
            if not isinstance(value, list) or not all(isinstance(bits, int) for bits in value):
                raise UserError(f"{where}: weight-bits = {value!r}: expected a list of bit-widths")
            arguments[field.name] = tuple(value)
        elif not is_number(value):
            raise UserError(f"{where}: {key} = {value!r}: expected a number")
        else:
            arguments[field.name] = float(value)
    try:
        return DeviceProfile(class_name=name, **arguments)
    except ValueError as error:
        figure, _, rest = str(error).partition(" ")
        raise UserError(f"{where}: {kebab(figure)} {rest}") from error


def _measured_gflops(where: str, values: Mapping[str, Any]) -> float:
    """The rate at which a float training step on one image takes ``seconds-per-sample``."""
    seconds, model = values["seconds-per-sample"], values.get("model")
    if not (is_number(seconds) and math.isfinite(seconds) and seconds > 0):
        raise UserError(f"{where}: seconds-per-sample = {seconds!r}: expected a number, > 0")
    if not isinstance(model, str):
        raise UserError(f"{where}: seconds-per-sample needs the name of its model")
    from simulations.emulation.flops import count_flops  # torch is needed here alone

    flops = count_flops(
        ModelConfig(name=model),
        QuantizationConfig(),
        num_classes=REFERENCE_CLASSES,
        image_shape=REFERENCE_SHAPE,
    )
    return flops.float_training / seconds / FLOPS_PER_GFLOP


def _check_sizes(where: str, classes: tuple[FleetClass, ...]) -> None:
    with_count = [member for member in classes if member.count]
    if not classes:
        raise UserError(f"{where}: classes is empty")
    if with_count and len(with_count) != len(classes):
        raise UserError(f"{where}: expected a count in every class or a share in every class")
    total = math.fsum(member.share for member in classes)
    if not with_count and abs(total - 1.0) > 1e-6:
        raise UserError(f"{where}: the shares add up to {total:g}, not to 1")


def _expect_mapping(where: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected names and values, not {value!r}")
