"""Augmentation: random changes of training samples, the same for any number of ranks.

What is drawn for a sample depends on the seed of the run, the epoch and the number of the sample
alone: see docs/augmentation.md.
"""

from mpidl.augment.base import Augmentation, Samples
from mpidl.augment.mixing import Mixing, mix_targets
from mpidl.augment.pipeline import Pipeline
from mpidl.augment.registry import AUGMENTATIONS, AugmentConfig

__all__ = [
    "AUGMENTATIONS",
    "AugmentConfig",
    "Augmentation",
    "Mixing",
    "Pipeline",
    "Samples",
    "mix_targets",
]
