"""Memory of activations, which belong to a forward and backward pass, not to layers."""

from __future__ import annotations

from mpidl.backend import Ops, Workspace
from mpidl.errors import BackendError

MaskKey = tuple[int, int, int]  # seed, step and micro-batch, see Runtime


class Activations:
    """Activations of one pass: one workspace per layer.

    Attributes:
        uses: Number of forward passes that have started in this memory.
    """

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.uses = 0
        self._workspaces: dict[str, Workspace] = {}

    def workspace(self, name: str) -> Workspace:
        """Workspace of a layer."""
        held = self._workspaces.get(name)
        if held is None:
            held = self._workspaces[name] = self.ops.workspace()
        return held


class Pass:
    """One forward pass and the memory that its backward pass needs.

    A training pass holds its memory until its backward pass has finished, or until the backward
    closure is garbage-collected. Any other pass releases it at once: its output stays valid until
    the next forward pass of the model.
    """

    def __init__(self, pool: ActivationPool, activations: Activations, key: MaskKey) -> None:
        self.activations = activations
        self.key = key
        activations.uses += 1
        self._use = activations.uses
        self._pool = pool
        self._held = True
        self._done = False

    def begin_backward(self) -> None:
        """Mark the activations as consumed.

        Raises:
            BackendError: They are: the backward pass has run, or another pass overwrote them.
        """
        if self._done or self.activations.uses != self._use:
            what = (
                "was called twice"
                if self._done
                else "follows another forward pass, which reused its memory"
            )
            raise BackendError(
                f"the backward pass {what}: its activations are no longer available",
                where="model",
                remedy="call forward again, with train=True where several passes are in flight",
            )
        self._done = True

    def release(self) -> None:
        """Return the memory to the pool."""
        if self._held:
            self._held = False
            self._pool.free.append(self.activations)

    def __del__(self) -> None:
        self.release()


class ActivationPool:
    """Memory for the passes of a model: as many sets as passes were ever in flight at once."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.free = [Activations(ops)]

    def begin(self, key: MaskKey) -> Pass:
        """Start a pass, in the memory that was released last."""
        return Pass(self, self.free.pop() if self.free else Activations(self.ops), key)
