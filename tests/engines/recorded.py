"""What a CUDA graph does, on a CPU: the operations of a run are recorded, and repeated with the same arguments.

As in a graph, Python code does not run again: sizes and numbers that it chose stay as they were, and tensors made
before are read and written where they were. What stops a capture stops this too: waiting for a value, or a shape that
depends on values.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten: Any = torch.ops.aten

WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.is_nonzero.default, aten.equal.default,
    aten.masked_select.default, aten.bincount.default, aten._unique2.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
"""Operations for whose result the host waits."""


class Recording(TorchDispatchMode):
    """The operations of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        choosing = func in (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)
        if func in WAITS or (choosing and any(leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))):
            raise RuntimeError(f"{func} is not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        copies = func in (aten._to_copy.default, aten.copy_.default)  # other kernels take a single number from the host
        if given and len({leaf.device.type for leaf in [*given, *made] if copies or leaf.ndim}) > 1:
            raise RuntimeError(f"{func} copies between host and device")
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Repeat all operations."""
        made: dict[int, torch.Tensor] = {}
        for func, args, kwargs, out in self.calls:
            now = func(*_mapped(args, made), **_mapped(kwargs, made))
            for old, new in zip(tree_leaves(out), tree_leaves(now), strict=True):
                if isinstance(old, torch.Tensor):
                    made[id(old)] = new

    def trace(self) -> list[Any]:
        """Return the operations with all shapes, layouts, numbers, and the addresses of tensors made before."""
        made: dict[int, str] = {}

        def named(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return str(leaf)
            where = made.get(id(leaf), leaf.data_ptr())
            return where, tuple(leaf.shape), leaf.stride(), leaf.dtype

        found = []
        for number, (func, args, kwargs, out) in enumerate(self.calls):
            found.append((str(func), [named(leaf) for leaf in tree_leaves((args, kwargs))]))
            made |= {id(leaf): f"made by {number}" for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
            found.append([named(leaf) for leaf in tree_leaves(out)])
        return found


def _mapped(arguments: Any, made: dict[int, torch.Tensor]) -> Any:
    return tree_map(lambda leaf: made.get(id(leaf), leaf) if isinstance(leaf, torch.Tensor) else leaf, arguments)


class CpuRecorder:
    """Records on the CPU, in place of `CudaRecorder`."""

    def __init__(self, taken_bytes: int = 0) -> None:
        self.recordings: list[Recording] = []
        self.released = self.passed = 0
        self.taken_bytes = taken_bytes

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run work once and record it once."""
        work()
        recording = Recording()
        with recording:
            work()
        self.recordings.append(recording)
        return recording.replay

    def now_s(self) -> float:
        """Return a time that always passes equally fast."""
        self.passed += 1
        return float(self.passed)

    def held_bytes(self) -> int:
        """Return a number that grows with every recording."""
        return self.taken_bytes * len(self.recordings)

    def release(self) -> None:
        """Count the calls."""
        self.released += 1
