"""Recording work on a GPU as a CUDA graph, which repeats it with one launch.

A graph repeats the same kernels on the same addresses. So work must not wait for the device, choose shapes by values,
or read memory that moves. Graphs of one recorder share a pool of memory, so they cannot run at the same time.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Protocol


class Recorder(Protocol):
    """Records work on a device."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run work a few times and record it once; return a function that repeats it. Raises if that is impossible."""
        ...

    def now_s(self) -> float:
        """Wait for the device and return the time; raises if the device has failed."""
        ...

    def held_bytes(self) -> int:
        """Return the device memory that this process holds."""
        ...

    def release(self) -> None:
        """Free the memory of recordings that are no longer used."""
        ...


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory."""

    def __init__(self) -> None:
        import torch

        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run work on a side stream, capture it there, and return the graph's `replay`.

        The first run may allocate workspaces and choose algorithms. In the second, waiting for the device is an error:
        in a capture it would be one too, but a capture that fails leaves torch's allocator damaged (before torch 2.13).
        """
        import torch

        current, graph, mode = torch.cuda.current_stream(), torch.cuda.CUDAGraph(), torch.cuda.get_sync_debug_mode()
        with torch.cuda.stream(current):  # a capture that fails may leave its own stream current
            self.stream.wait_stream(current)
            try:
                with torch.cuda.stream(self.stream):
                    work()
                    torch.cuda.set_sync_debug_mode("error")
                    work()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
            current.wait_stream(self.stream)
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                work()
        return graph.replay

    def now_s(self) -> float:
        """Wait for the device and return the time."""
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def held_bytes(self) -> int:
        """Return what torch's allocator holds."""
        import torch

        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    def release(self) -> None:
        """Give the pool's memory back; torch cannot use an emptied pool again."""
        import torch

        with contextlib.suppress(RuntimeError):  # raised if a failed capture has damaged the allocator
            torch.cuda.empty_cache()
        self.pool = torch.cuda.graph_pool_handle()
