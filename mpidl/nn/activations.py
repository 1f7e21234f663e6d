"""The memory of passes: activations belong to a forward and a backward pass, not to layers."""

from __future__ import annotations

from mpidl.backend import Ops, Workspace
from mpidl.errors import BackendError

MaskKey = tuple[int, int, int]  # seed, step and micro-batch, see Runtime


class Activations:
    """The arrays of one pass: a workspace for each layer, by name.

    Attributes:
        uses: Forward passes that have begun in this memory.
    """

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.uses = 0
        self._spaces: dict[str, Workspace] = {}

    def space(self, name: str) -> Workspace:
        """The workspace of a layer."""
        held = self._spaces.get(name)
        if held is None:
            held = self._spaces[name] = self.ops.workspace()
        return held


class Pass:
    """One forward pass and its right to a backward pass.

    A training pass keeps its memory until its backward pass is over, or until nobody can call that
    any more. Any other pass gives it back at once: its output stays valid until the next forward
    pass of the model.
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
        """Use up the right to a backward pass.

        Raises:
            BackendError: The backward pass is over, or its activations have been overwritten.
        """
        if self._done or self.activations.uses != self._use:
            what = (
                "was called twice"
                if self._done
                else "comes after another forward pass has used its memory"
            )
            raise BackendError(
                f"the backward pass {what}: its activations are gone",
                where="model",
                remedy="call forward again, with train=True where several passes are in flight",
            )
        self._done = True

    def release(self) -> None:
        """Give the memory back."""
        if self._held:
            self._held = False
            self._pool.free.append(self.activations)

    def __del__(self) -> None:
        self.release()


class ActivationPool:
    """Memory for the passes of a model; as many sets as there were ever passes in flight."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.free = [Activations(ops)]

    def begin(self, key: MaskKey) -> Pass:
        """Memory for a pass: what was given back last."""
        return Pass(self, self.free.pop() if self.free else Activations(self.ops), key)
