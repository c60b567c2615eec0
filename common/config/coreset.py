"""The coreset of a device."""

from __future__ import annotations

from dataclasses import dataclass

from common.config.section import Section
from common.settings import setting

ONLINE = "res-online"
"""The selection whose scores are those that training came upon by itself."""

SELECTIONS = (
    "quarc",
    "res",
    "acs",
    "evs",
    "ds",
    "el2n",
    "entropy",
    "stratified",
    "quantiles",
    "res-sampled",
    ONLINE,
    "res-mixed",
    "res-clustered",
    "random",
    "full",
)

COST_NOTHING = ("random", ONLINE)
"""Selections that score no image (full aside, which selects nothing)."""

SCORING_COST = 0.5
"""Of running student and teacher on an image, relative to training on it once, rounded up: measured
on ResNet-20, one thread, were 0.40 alone on the machine and 0.56 beside much other work."""

NEVER = 10**9
"""Epochs that no training has; added to one of its own they still fit into 32 bits."""


@dataclass(frozen=True, kw_only=True)
class CoresetConfig(Section, name="coreset"):
    """Which of its images a device trains on."""

    selection: str = setting("random", choices=SELECTIONS)
    """Score that ranks the images, or what is done with RES, or random, or full."""
    fraction: float = setting(0.1, above=0.0, maximum=1.0)
    """Share of the device's images that is kept, at least two of them (full ignores it)."""
    balanced: bool = setting(True)
    """The same share of every class, at least one image each; false: the best overall."""
    adaptive: bool = setting(False)
    """A device chooses its own share, so that it answers before the deadline."""
    adaptive_floor: float = setting(0.01, above=0.0, maximum=1.0)
    """Adaptive: smallest share, even if the device will be late with it."""
    adaptive_cap: float = setting(1.0, above=0.0, maximum=1.0)
    """Adaptive: largest share, however fast the device is."""
    interval: int = setting(0, minimum=0)
    """Epochs between two selections; 0: 1 where they cost nothing (random, res-online), else 5
    (full, which is always the same images, ignores it)."""
    random_epochs: int = setting(0, minimum=0)
    """Epochs at the start of the training on a random coreset: a model that has just been
    quantized scores at random as well."""
    pool: float = setting(0.0, minimum=0.0)
    """Images that a selection scores, drawn at random: so many times the coreset; 0: all."""
    pool_share: float = setting(0.0, minimum=0.0, maximum=0.9)
    """In place of pool: as many images as cost this share of a device's time (0.1: a tenth of it
    goes into scoring, by the counts of images scored and trained on); 0: as pool says."""
    smoothing: float = setting(0.0, minimum=0.0, maximum=0.99)
    """Weight of an image's earlier scores: their exponential moving average; 0: only the last."""
    importance_weights: bool = setting(False)
    """res-sampled, res-online: an image's loss counts by the inverse of its chance to be drawn."""
    drop_hardest: float = setting(0.1, minimum=0.0, maximum=0.9)
    """stratified, quantiles, res-clustered: share with the highest scores that is left out."""
    hard_share: float = setting(0.0, minimum=0.0, maximum=1.0)
    """res-mixed: share taken by the highest score, the rest at random; 0: sqrt(fraction)."""


def selection_interval(coreset: CoresetConfig) -> int:
    """Epochs between two selections, R; all images have never to be chosen again."""
    if coreset.selection == "full":
        return NEVER
    return coreset.interval or (1 if coreset.selection in COST_NOTHING else 5)


def pool_factor(coreset: CoresetConfig) -> float:
    """Images that a selection scores, in multiples of the coreset; 0: all.

    To spend the share s on scoring P images and 1 - s on R epochs of k, P c / (k R) is
    s / (1 - s), where c is the cost of scoring relative to training.
    """
    if coreset.pool_share == 0:
        return coreset.pool
    odds = coreset.pool_share / (1 - coreset.pool_share)
    return odds * selection_interval(coreset) / SCORING_COST
