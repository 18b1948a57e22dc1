"""A queue in front of a model: asynchronous requests in, groups of similar length to one thread, completions out.

Requests of all shards in flight wait together. The thread takes the oldest request and those nearest in length, as many
as the model has room for: no request waits forever, and there is little padding. Between two groups it lets the model
write one token of every reply in progress.

If the model raises, the requests in progress run again one by one, and only those that raise alone fail. If the thread
itself ends, every request, waiting or later, raises `Dead`.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from humpback_ray.engines.base import Completion, Request
from humpback_ray.stages.processes import Dead

logger = logging.getLogger(__name__)

LINGER_S = 0.01
"""How long an idle model waits for one more request to join those that wait, in seconds."""
WINDOW = 2
"""A group is chosen from the oldest requests, this many times as many as the model runs at once. So a shard ends before
the next one, and while its rows are stored the model works on the next shard's."""


@dataclass(eq=False)
class Job:
    """A request in the queue: the model reads `ids`; in a scoring request, `tails` are the possible continuations."""

    request: Request
    future: "Future[Completion]"
    ids: Sequence[int] = ()
    tails: Sequence[Sequence[int]] = ()
    alone: bool = False
    """Whether to run it by itself, since the model raised while it was in progress."""


Ended = list[tuple[Job, Completion]]


class OutOfMemory(Exception):
    """A group did not fit into memory; a smaller one may."""


class RunAgain(Exception):
    """The model doubts its own results; the jobs in progress have to run again."""


class BatchModel(Protocol):
    """The model behind the queue; one thread uses it."""

    most_rows: int
    """Most jobs in progress at once."""

    def accept(self, job: Job) -> Completion | None:
        """Tokenize a job; return its completion if that needs no model."""
        ...

    def fitting(self, jobs: Sequence[Job]) -> int:
        """Return how many of the first jobs there is room for now; at least one if no job is in progress."""
        ...

    def start(self, jobs: Sequence[Job]) -> Ended:
        """Begin jobs, all to generate or all to score; return those that ended at once."""
        ...

    def step(self) -> Ended:
        """Advance all jobs in progress by a token; return those that ended."""
        ...

    def busy(self) -> bool:
        """Tell whether any job is in progress."""
        ...

    def give_up(self, out_of_memory: bool) -> None:
        """Drop all jobs in progress; if memory ran out, hold fewer tokens from now on."""
        ...


class BatchedEngine:
    """The running engine: a queue, a model, and the one thread that uses it."""

    def __init__(self, model: BatchModel) -> None:
        self._model = model
        self._arrived: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting: list[Job] = []  # oldest first; only the engine's thread touches it
        self._begun: dict[Job, None] = {}  # jobs in progress; only the engine's thread touches it
        self._closed = threading.Event()
        self._refusal: Exception | None = None  # raised for every request once the thread has ended
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def generate(self, request: Request) -> Completion:
        """Complete or score one request, together with others that wait."""
        if self._closed.is_set():
            raise RuntimeError("the engine was closed")
        job = Job(request, Future())
        self._arrived.put(job)
        self._refuse_arrived()
        return await asyncio.wrap_future(job.future)

    def close(self) -> None:
        """Finish the current step, fail all requests that have not ended, and end the thread."""
        self._closed.set()
        self._arrived.put(None)
        self._thread.join()

    def _run(self) -> None:
        refusal: Exception = RuntimeError("the engine was closed while requests were waiting")
        try:
            while self._collect():
                self._start_some()
                if self._model.busy():
                    self._turn([], self._model.step)
        except BaseException as error:
            refusal = Dead(f"the engine's thread has ended: {type(error).__name__}: {error}")
            raise
        finally:
            self._refusal = refusal
            _fail([*self._begun, *self._waiting], refusal)
            self._refuse_arrived()

    def _refuse_arrived(self) -> None:
        """Fail requests that have arrived, if the thread that would take them has ended."""
        while self._refusal:
            try:
                job = self._arrived.get_nowait()
            except queue.Empty:
                return
            if job and job.future.set_running_or_notify_cancel():
                job.future.set_exception(self._refusal)

    def _collect(self) -> bool:
        """Take all requests that have arrived; wait only while no job is in progress. Returns False once closed."""
        while not self._closed.is_set():
            patience = None if not self._waiting else LINGER_S
            idle = not self._model.busy() and len(self._waiting) < self._model.most_rows
            try:
                job = self._arrived.get(idle, patience if idle else None)
            except queue.Empty:
                return True
            if job:
                self._accept(job)
        return False

    def _accept(self, job: Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            answer = self._model.accept(job)
        except Exception as error:  # noqa: BLE001 an error of the tokenizer concerns this request alone
            job.future.set_exception(error)
        else:
            if answer:
                job.future.set_result(answer)
            else:
                self._waiting.append(job)

    def _start_some(self) -> None:
        """Begin the oldest job and those nearest in length, all to generate or all to score."""
        if not self._waiting or not self._model.fitting(self._waiting[:1]):
            return
        oldest = self._waiting[0]
        if self._begun and (oldest.alone or any(job.alone for job in self._begun)):
            return
        if oldest.alone:
            self._turn([self._waiting.pop(0)], lambda: self._model.start([oldest]))
            return
        ahead = self._waiting[: WINDOW * self._model.most_rows]
        alike = [job for job in ahead if not job.alone and bool(job.tails) == bool(oldest.tails)]
        group = sorted(alike, key=lambda job: abs(len(job.ids) - len(oldest.ids)))[: self._model.most_rows]
        if count := self._model.fitting(group):
            taken = set(map(id, group[:count]))
            self._waiting = [job for job in self._waiting if id(job) not in taken]
            self._turn(group[:count], lambda: self._model.start(group[:count]))

    def _turn(self, jobs: Sequence[Job], work: Callable[[], Ended]) -> None:
        """Let the model work, with new `jobs`, and resolve the jobs that ended."""
        try:
            self._begun |= dict.fromkeys(jobs)
            for job, completion in work():
                del self._begun[job]
                job.future.set_result(completion)
        except Dead:
            raise
        except Exception as error:  # noqa: BLE001 any error of the model reaches the callers
            memory, again = isinstance(error, OutOfMemory), list(self._begun)
            self._model.give_up(memory)
            self._begun.clear()
            if len(again) == 1 and not isinstance(error, RunAgain):
                _fail(again, error)
                return
            if not isinstance(error, OutOfMemory | RunAgain):
                logger.warning(
                    "%s: %s; running the %d requests in progress again, one by one",
                    type(error).__name__,
                    error,
                    len(again),
                )
                for job in again:
                    job.alone = True
            self._waiting = [*again, *self._waiting]


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        job.future.set_exception(error)
