"""The teacher's outputs on a fixed set of augmented views, kept as long as a coreset is.

A frozen teacher gives the same image the same logits in every epoch; only the augmentation makes
each epoch's image another. With V views of every image, epoch e of a coreset shows view e mod V, so
that the teacher runs V times on a coreset instead of in every epoch. Kept are V k classes float32
values for a coreset of k; views themselves are drawn anew from their seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from client.coreset import Coreset
from common.data.augmentation import Crops, draw_crops
from common.data.datasets import Dataset
from common.errors import UserError

MAX_KEPT_BYTES = 2**28
"""Of logits on one device (256 MB): 33 views of 20,000 images of 100 classes."""


class TeacherView:
    """One view of every image of a coreset, and the teacher's logits on it.

    Args:
        coreset: its images.
        crops: of these images, in their order; None: the images as they are.
        logits: [k, classes], NaN where they are not known yet; None: none is.
        num_views: that are kept beside this one and with it.
    """

    def __init__(
        self, coreset: Coreset, crops: Crops | None, logits: Tensor | None, num_views: int = 1
    ) -> None:
        self.logits = logits
        self._indices, self._crops, self._num_views = coreset.indices, crops, num_views

    def crops(self, chosen: Tensor) -> Crops | None:
        """Of the images [b] of the coreset."""
        return None if self._crops is None else self._crops[self._places(chosen)]

    def teacher_logits(self, chosen: Tensor, compute: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """The teacher's logits [b, classes] on this view of images [b], and if they were kept.

        Raises:
            UserError: keeping what ``compute`` gives would take too much memory.
        """
        places = self._places(chosen)
        if self.logits is not None:
            kept = self.logits.index_select(0, places)
            if not kept.isnan().any():
                return kept, True
        computed = compute().float()  # of a pass in bfloat16: that
        if self.logits is None:
            self.logits = self._room(computed)
        self.logits.index_copy_(0, places, computed.cpu())
        return computed, False

    def _places(self, chosen: Tensor) -> Tensor:
        return torch.searchsorted(self._indices, chosen)

    def _room(self, computed: Tensor) -> Tensor:
        num_classes = computed.shape[1]
        num_bytes = self._num_views * len(self._indices) * num_classes * computed.element_size()
        if num_bytes > MAX_KEPT_BYTES:
            raise UserError(
                f"training.teacher-views = {self._num_views}: the teacher's logits on as many "
                f"views of {len(self._indices)} images and {num_classes} classes take "
                f"{num_bytes / 1e6:.0f} MB, expected at most {MAX_KEPT_BYTES / 1e6:.0f} MB"
            )
        return torch.full((len(self._indices), num_classes), torch.nan)


class TeacherViews:
    """All views of a coreset, and what is known of the teacher's logits on them.

    Args:
        num_views: V, at least 1.
        generator: epoch of a coreset's choice, view -> source of that view's augmentation.
        kept: view -> logits [k, classes], of earlier rounds with the same coreset.
    """

    def __init__(
        self,
        num_views: int,
        generator: Callable[[int, int], torch.Generator],
        kept: Mapping[int, Tensor] | None = None,
    ) -> None:
        self._num_views, self._generator = num_views, generator
        self._views: dict[int, TeacherView] = {}
        self._kept = dict(kept or {})

    def forget(self) -> None:
        """There is a new coreset."""
        self._views.clear()
        self._kept.clear()

    def at(self, coreset: Coreset, epoch: int, dataset: Dataset, *, augment: bool) -> TeacherView:
        """The view of an epoch, counted over all rounds; without augmentation there is only one."""
        index = (epoch - coreset.epoch) % self._num_views if augment else 0
        if index not in self._views:
            crops = None
            if augment:
                crops = draw_crops(
                    len(coreset.indices),
                    self._generator(coreset.epoch, index),
                    padding=dataset.crop_padding,
                    flip=dataset.flip,
                )
            num_views = self._num_views if augment else 1
            logits = self._kept.get(index)
            self._views[index] = TeacherView(coreset, crops, logits, num_views)
        return self._views[index]

    def to_keep(self) -> dict[int, Tensor]:
        """View -> logits [k, classes], for the rounds to come."""
        found = {index: view.logits for index, view in self._views.items()}
        return self._kept | {i: logits for i, logits in found.items() if logits is not None}
