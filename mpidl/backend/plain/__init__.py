"""The kernels of `mpidl.backend.table` in plain NumPy.

They run where no compiler was at hand, and are the reference for the tests of the others.
"""

from collections.abc import Callable

from mpidl.backend.plain import (
    augment,
    compress,
    conv,
    int8,
    loss,
    norm,
    optim,
    pointwise,
    sequence,
)
from mpidl.backend.signature import PLAIN as NAME
from mpidl.backend.table import KERNELS

_MODULES = (augment, compress, conv, int8, loss, norm, optim, pointwise, sequence)
_FUNCTIONS = {name: function for module in _MODULES for name, function in vars(module).items()}
PLAIN: dict[str, Callable[..., None]] = {
    name: _FUNCTIONS[name] for name, kernel in KERNELS.items() if NAME in kernel.backends
}
