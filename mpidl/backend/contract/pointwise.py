"""Passes element by element, and sums over rows."""

from __future__ import annotations

from mpidl.backend.array import Array
from mpidl.backend.contract.base import Launcher
from mpidl.backend.headers import codes

ACTIVATIONS = codes("ACT")


class PointwiseOps(Launcher):
    """Bias, activations, dropout, softmax, input scaling."""

    def add(self, a: Array, b: Array, out: Array, *, relu: bool) -> None:
        """out = act(a + b), all of one shape; out may be a or b."""
        self.xp.add(a, b, out=out)
        if relu:
            self.relu_forward(out, out)

    def bias_act(self, y: Array, bias: Array, *, relu: bool) -> None:
        """y (rows, cols) = act(y + bias (cols)), in place."""
        self.launch("bias_act", y, bias, *y.shape, int(relu))

    def relu_forward(self, x: Array, out: Array) -> None:
        """out = max(x, 0); a NaN stays a NaN. out may be x."""
        self.launch("relu_forward", x, out, x.size)

    def relu_backward(self, dy: Array, y: Array, out: Array) -> None:
        """out = dy where y > 0, else 0. out may be dy."""
        self.launch("relu_backward", dy, y, out, y.size)

    def column_sums(self, x: Array, out: Array) -> None:
        """out (cols) = sum of x (rows, cols) over its rows."""
        self.launch("column_sums", x, out, *x.shape)

    def scale_u8(self, x: Array, out: Array, scale: float, shift: float) -> None:
        """out (floating, same shape) = x (uint8) * scale + shift."""
        self.launch("scale_u8", x, out, x.size, scale, shift)

    def scale_float(self, x: Array, out: Array, scale: float, shift: float) -> None:
        """out = x * scale + shift, for inputs that are floating already."""
        self.xp.multiply(x, out.dtype.type(scale), out=out, casting="same_kind")
        self.xp.add(out, out.dtype.type(shift), out=out)

    def act_forward(self, x: Array, out: Array, kind: str) -> None:
        """out = act(x).

        Args:
            x: Any shape.
            out: Same shape; may be x.
            kind: A key of ACTIVATIONS (GELU: Hendrycks and Gimpel, 2016; SiLU: Elfwing et al.,
                2018).
        """
        self.launch("act_forward", x, out, x.size, ACTIVATIONS[kind])

    def act_backward(self, dy: Array, x: Array, y: Array, out: Array, kind: str) -> None:
        """out = dy * act'(x), from input x and output y = act(x). out may be dy."""
        self.launch("act_backward", dy, x, y, out, x.size, ACTIVATIONS[kind])

    def dropout(self, x: Array, out: Array, keep: float, drawn: Array, stream: int) -> None:
        """out = x / keep with probability `keep`, else 0 (Srivastava et al., 2014).

        Gradients go the same way. The mask is a function of (element, seed, step, stream + part)
        alone, by Philox4x32-10 (Salmon et al., 2011).

        Args:
            x: Any shape.
            out: Same shape.
            keep: Probability to keep an element.
            drawn: (3,) int64: seed, step, part.
            stream: Tells the layers of a model apart.
        """
        self.launch("dropout", x, out, x.size, keep, drawn, stream)

    def softmax_forward(self, x: Array, out: Array, *, log: bool = False) -> None:
        """out = softmax of the rows of x (rows, cols), or its logarithm. out may be x."""
        self.launch("softmax_forward", x, out, *x.shape, int(log))

    def softmax_backward(self, dy: Array, y: Array, out: Array, *, log: bool = False) -> None:
        """out = gradient of the input of softmax_forward, from its output y. out may be dy."""
        self.launch("softmax_backward", dy, y, out, *y.shape, int(log))
