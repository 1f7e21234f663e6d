"""The registry of augmentations and the section that chooses among them."""

from __future__ import annotations

from typing import Any, ClassVar

from mpidl.augment.base import Augmentation
from mpidl.augment.mixing import Mixing
from mpidl.options import Place
from mpidl.registry import Registry, Selection

# In the order in which they are applied
AUGMENTATIONS: Registry[type[Augmentation]] = Registry(
    "augmentation",
    "augment",
    {
        "patch": "mpidl.augment.patch:Patch",
        "crop": "mpidl.augment.crop:Crop",
        "roll": "mpidl.augment.roll:Roll",
        "rotate": "mpidl.augment.rotate:Rotate",
        "flip": "mpidl.augment.flip:Flip",
        "jitter": "mpidl.augment.jitter:Jitter",
        "noise": "mpidl.augment.noise:Noise",
        "cutout": "mpidl.augment.cutout:Cutout",
        "mixup": "mpidl.augment.mixup:Mixup",
        "cutmix": "mpidl.augment.cutmix:Cutmix",
    },
)


class AugmentConfig(Selection, frozen=True):
    """Random changes of the training samples, each with its options: see docs/augmentation.md."""

    REGISTRY: ClassVar[Registry[Any]] = AUGMENTATIONS

    @property
    def pairs(self) -> bool:
        """Whether samples are mixed with partners."""
        return any(issubclass(AUGMENTATIONS[name], Mixing) for name in self.entries)

    def check(self, place: Place) -> None:
        """Refuse what cannot be together."""
        if "crop" in self.entries and "patch" in self.entries:
            raise place.error(
                f"{place.name('crop')} and {place.name('patch')} both choose a window",
                "crop",
                remedy="use patch where images are larger than what a step can take, else crop",
            )
        if "crop" in self.entries and "roll" in self.entries:
            raise place.error(
                f"{place.name('crop')} and {place.name('roll')} both shift the samples",
                "crop",
                remedy="use roll where fields are periodic, else crop",
            )
        if "mixup" in self.entries and "cutmix" in self.entries:
            raise place.error(
                f"{place.name('mixup')} and {place.name('cutmix')} both mix the samples",
                "mixup",
                remedy="use one of them",
            )
