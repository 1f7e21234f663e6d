"""Normalization of fields by the statistics of a data set."""

from __future__ import annotations

from mpidl.data.manifest import Field

Numbers = tuple[float, ...]


def normalization(field: Field, layout: str, *, channels: bool = True) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of a field; 0 and 1 where its data set has none.

    A standard deviation of 0 becomes 1: there is nothing to scale.

    Args:
        field: Of the data set.
        layout: What a field (a, b) is: the columns of an "image" are no channels.
        channels: One number for each channel, where the data set has them.
    """
    found = field.statistics
    if found is None:
        return (0.0,), (1.0,)
    mean: Numbers = (found.mean,)
    std: Numbers = (found.std,)
    gray = len(field.shape) == 2 and layout == "image"
    if channels and found.channel_means and not gray:
        mean, std = found.channel_means, found.channel_stds
    return mean, tuple(one or 1.0 for one in std)
