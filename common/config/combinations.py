"""What one section alone cannot know: settings that contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.config.coreset import COST_NOTHING, ONLINE, pool_factor, selection_interval
from common.config.federation import ASYNCHRONOUS, AVERAGING_STRATEGIES
from common.config.model import FLOAT_BITS
from common.errors import UserError

if TYPE_CHECKING:
    from common.config.whole import Config


def check_combinations(config: Config) -> None:
    """Check all sections together.

    Raises:
        UserError: naming the keys that contradict each other.
    """
    _check_run(config)
    _check_coreset(config)
    _check_correction(config)
    _check_statistics(config)
    _check_pace(config)
    _check_updates(config)
    if config.strategy.name == ASYNCHRONOUS:
        _check_asynchronous(config)
    if config.privacy.mechanism != "none":
        _check_privacy(config)


def _check_run(config: Config) -> None:
    if config.run.resume and config.run.out not in ("", config.run.resume):
        raise UserError(
            f"run.out = '{config.run.out}': expected nothing beside run.resume, whose folder "
            f"the results go to"
        )
    if config.federation.min_devices > config.data.num_devices:
        raise UserError(
            f"federation.min-devices = {config.federation.min_devices}: expected at most "
            f"data.num-devices = {config.data.num_devices}"
        )
    if not config.model.teacher and config.warmup.num_rounds == 0:
        raise UserError(
            "warmup.num-rounds = 0: expected at least 1 when model.teacher is empty "
            "(the float model has to come from somewhere)"
        )


def _check_coreset(config: Config) -> None:
    """Which images are scored, and how a coreset is trained on."""
    coreset, training = config.coreset, config.training
    if 0 < coreset.pool < 1:
        raise UserError(
            f"coreset.pool = {coreset.pool}: expected 0 (all images) or at least 1 "
            f"(a multiple of the coreset)"
        )
    if coreset.pool and coreset.pool_share:
        raise UserError(
            f"coreset.pool-share = {coreset.pool_share}: expected 0 with coreset.pool = "
            f"{coreset.pool} (one of the two says how many images are scored)"
        )
    if 0 < pool_factor(coreset) < 1 and coreset.selection not in COST_NOTHING:
        raise UserError(
            f"coreset.pool-share = {coreset.pool_share}: expected more with "
            f"coreset.interval = {selection_interval(coreset)} (it pays for scoring "
            f"{pool_factor(coreset):.2g} times the coreset, less than is chosen), or a "
            f"longer interval"
        )
    if training.teacher_views and (config.is_corrected or training.loss != "kd"):
        raise UserError(
            f"training.teacher-views = {training.teacher_views}: expected 0 with "
            f"training.loss = {training.loss!r} and training.correction = "
            f"{training.correction!r} (only the logits that distillation alone needs are "
            f"kept, no features)"
        )
    if training.teacher_views and selection_interval(coreset) == 1:
        raise UserError(
            f"training.teacher-views = {training.teacher_views}: expected coreset.interval above 1 "
            f"(what is kept is kept as long as a coreset)"
        )
    if coreset.selection == ONLINE and training.loss != "kd" and not config.is_corrected:
        raise UserError(
            f"coreset.selection = 'res-online': expected training.loss = 'kd' or a correction, not "
            f"training.loss = {training.loss!r} alone (its scores come from training beside a "
            f"teacher)"
        )
    if coreset.importance_weights and coreset.selection not in ("res-sampled", ONLINE):
        raise UserError(
            f"coreset.importance-weights = true: expected coreset.selection = 'res-sampled' or "
            f"'res-online', not {coreset.selection!r} (no other draws images by known chances)"
        )


def _check_correction(config: Config) -> None:
    """Whether the model has layers whose outputs can be corrected."""
    training, model = config.training, config.model.name
    if not config.is_corrected:
        return
    # Imported late: it needs torch, which settings without a correction do not.
    from common.models import has_feature_layers

    if not has_feature_layers(model):
        raise UserError(
            f"training.correction = {training.correction!r}: expected 'none' with model.name = "
            f"{model!r} (it has no residual blocks, whose outputs a correction compares)"
        )


def _check_statistics(config: Config) -> None:
    """Whether the model has statistics that can be taken anew."""
    num_images, model = config.training.batch_norm_images, config.model.name
    if num_images == 0:
        return
    from common.models import has_batch_norm  # late, as above

    if not has_batch_norm(model):
        raise UserError(
            f"training.batch-norm-images = {num_images}: expected 0 with model.name = {model!r} "
            f"(it has no batch normalisation)"
        )


def _check_pace(config: Config) -> None:
    """How a device keeps to a deadline."""
    coreset, fleet = config.coreset, config.fleet
    if coreset.adaptive and coreset.selection == "full":
        raise UserError(
            "coreset.adaptive = true: expected false with coreset.selection = 'full' (it trains on "
            "all images; training.partial-work = true does fewer epochs)"
        )
    if coreset.adaptive_floor > coreset.adaptive_cap:
        raise UserError(
            f"coreset.adaptive-floor = {coreset.adaptive_floor}: expected at most "
            f"coreset.adaptive-cap = {coreset.adaptive_cap}"
        )
    if fleet.name and not fleet.deadline and config.is_paced:
        paced = "coreset.adaptive" if coreset.adaptive else "training.partial-work"
        raise UserError(f"{paced} = true: expected fleet.deadline above 0 with fleet.name")


def _check_updates(config: Config) -> None:
    """What travels, and at which bit-widths."""
    bits = config.quantization.weight_bits
    sends_codes = config.federation.update_format == "codes"
    if config.attack.name != "none" and sends_codes:
        raise UserError(
            f"attack.name = {config.attack.name!r}: expected 'none' with "
            f"federation.update-format = 'codes' (an attack scales a change)"
        )
    if bits not in config.device_bits:
        raise UserError(
            f"federation.mixed-bits = {config.federation.mixed_bits!r}: expected "
            f"quantization.weight-bits = {bits} among them (the "
            f"bit-width that the run is judged by)"
        )
    if bits == FLOAT_BITS and sends_codes:
        raise UserError(
            "federation.update-format = 'codes': expected 'delta' or 'float32' with "
            "quantization.weight-bits = 32 (a float model has no codes)"
        )


def _check_asynchronous(config: Config) -> None:
    """What buffered, asynchronous aggregation does not go with."""
    name = f"strategy.name = '{ASYNCHRONOUS}'"
    if config.fleet.over_selection != 1:
        raise UserError(
            f"fleet.over-selection = {config.fleet.over_selection:g}: expected 1 with {name} "
            f"(strategy.concurrency says how many devices train)"
        )
    if config.federation.mixed_bits:
        raise UserError(
            f"federation.mixed-bits = {config.federation.mixed_bits!r}: expected none with {name}"
        )
    if config.sends_changes:
        raise UserError(
            f"federation.downlink-format = 'delta': expected 'float32', 'float16' or 'int8' with "
            f"{name} (its devices train from models of different rounds)"
        )
    if config.strategy.concurrency > config.data.num_devices:
        raise UserError(
            f"strategy.concurrency = {config.strategy.concurrency}: expected at most "
            f"data.num-devices = {config.data.num_devices}"
        )


def _check_privacy(config: Config) -> None:
    """What a release of clipped changes can be combined with."""
    mechanism = f"privacy.mechanism = {config.privacy.mechanism!r}"
    if config.strategy.name not in AVERAGING_STRATEGIES:
        raise UserError(
            f"strategy.name = {config.strategy.name!r}: expected one of "
            f"{', '.join(AVERAGING_STRATEGIES)} with {mechanism} (others need single updates)"
        )
    if config.federation.update_format == "codes":
        raise UserError(
            f"federation.update-format = 'codes': expected 'delta' or 'float32' with "
            f"{mechanism} (clipped changes are no whole steps)"
        )
    if config.training.batch_norm_images:
        raise UserError(
            f"training.batch-norm-images = {config.training.batch_norm_images}: expected 0 with "
            f"{mechanism} (statistics of images would leave the devices besides)"
        )
    if config.federation.mixed_bits:
        raise UserError(
            f"federation.mixed-bits = {config.federation.mixed_bits!r}: expected none with "
            f"{mechanism} (a bit-width's few devices would decide its steps)"
        )
    if config.fleet.over_selection > 1.0:
        raise UserError(
            f"fleet.over-selection = {config.fleet.over_selection:g}: expected 1 with "
            f"{mechanism} (how fast a device is would decide whose changes count)"
        )
