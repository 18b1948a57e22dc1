"""A queue in front of a model that runs one batch at a time: asynchronous requests in, batches of alike ones out.

Requests of all shards in flight wait together. One thread takes the oldest with its neighbours in length, up to
`batch_rows`, so that nobody waits for ever and little is padded. An exception reaches every request of its batch, and
the next batch runs.
"""

import asyncio
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from humpback_ray.engines.base import Completion, Request

_LINGER_S = 0.01
"""How long an incomplete batch waits for one more request."""


@dataclass(eq=False)
class Job:
    """A request on its way: `ids` is what the model reads; of a scoring request, `tails` is what may follow it."""

    request: Request
    future: "Future[Completion]"
    ids: Sequence[int] = ()
    tails: Sequence[Sequence[int]] = ()


class BatchModel(Protocol):
    """What the queue stands in front of; used by one thread."""

    def accept(self, job: Job) -> Completion | None:
        """Tokenise a job; return its completion if nothing is to run for it."""
        ...

    def complete(self, batch: Sequence[Job]) -> list[Completion]:
        """Run a batch, all to generate or all to score."""
        ...


class BatchedEngine:
    """The running engine: a queue, a model, and the one thread that uses it."""

    def __init__(self, model: BatchModel, batch_rows: int) -> None:
        self._model, self._batch_rows = model, batch_rows
        self._arrived: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._waiting: list[Job] = []  # oldest first; the engine's thread alone touches it and `_batch`
        self._batch: list[Job] = []
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def generate(self, request: Request) -> Completion:
        """Complete or score one request, in a batch with whatever else waits."""
        job = Job(request, Future())
        self._arrived.put(job)
        # One turn of the thread per request: the first turns serve full batches, those left over find nothing to do.
        self._thread.submit(self._turn).add_done_callback(self._deliver)
        return await asyncio.wrap_future(job.future)

    def close(self) -> None:
        """Let the batch under way end, refuse what still waits, and end the thread."""
        self._closed = True
        self._thread.shutdown(wait=True)

    def _turn(self) -> list[Completion]:
        self._collect()
        if self._closed:
            self._batch, self._waiting = self._waiting, []
            raise RuntimeError("the engine was closed while requests were waiting")
        self._batch = self._next_batch()
        return self._model.complete(self._batch) if self._batch else []

    def _deliver(self, turn: "Future[list[Completion]]") -> None:
        """Hand the turn's completions, or its exception, to the requests of its batch; runs on the engine's thread."""
        batch, self._batch = self._batch, []
        if error := turn.exception():
            for job in batch:
                job.future.set_exception(error)
        else:
            for job, completion in zip(batch, turn.result(), strict=True):
                job.future.set_result(completion)

    def _collect(self) -> None:
        """Take all that has arrived; linger while something waits but does not fill a batch."""
        while not self._arrived.empty() or 0 < len(self._waiting) < self._batch_rows:
            try:
                self._accept(self._arrived.get(timeout=_LINGER_S))
            except queue.Empty:
                break

    def _accept(self, job: Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        self._batch = [job]  # should the tokenizer raise, this request hears of it
        answer = self._model.accept(job)
        self._batch = []
        if answer:
            job.future.set_result(answer)
        else:
            self._waiting.append(job)

    def _next_batch(self) -> list[Job]:
        """Remove and return the oldest job and its neighbours in length, all to generate or all to score."""
        if not self._waiting:
            return []
        oldest = self._waiting[0]
        alike = [job for job in self._waiting if bool(job.tails) == bool(oldest.tails)]
        alike.sort(key=lambda job: len(job.ids))
        start = alike.index(oldest) // self._batch_rows * self._batch_rows
        batch = alike[start : start + self._batch_rows]
        taken = set(map(id, batch))
        self._waiting = [job for job in self._waiting if id(job) not in taken]
        return batch
