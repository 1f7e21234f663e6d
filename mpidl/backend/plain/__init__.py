"""The kernels of `mpidl.backend.table` in plain NumPy: where no compiler was at hand, and as the oracle of the others."""

from mpidl.backend.contract.base import Kernels
from mpidl.backend.plain import conv, norm, optim, pointwise, sequence

PLAIN: Kernels = {
    name: function
    for module in (conv, norm, optim, pointwise, sequence)
    for name, function in vars(module).items()
    if callable(function)
    and getattr(function, "__module__", "") == module.__name__
    and not name.startswith("_")
}
