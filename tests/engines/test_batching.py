import asyncio
import threading
from collections.abc import Sequence

import pytest

from humpback_ray.engines.base import Completion, Request, generate_all
from humpback_ray.engines.batching import BatchedEngine, Job


class Counting:
    """A model whose tokens are characters; it raises on "bad", refuses "text" of no token, and notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.started = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def accept(self, job: Job) -> Completion | None:
        if job.request.prompt == "unreadable":
            raise UnicodeError("the tokenizer chokes")
        job.ids = list(job.request.prompt.encode())
        job.tails = [[0]] if job.request.continuations else []
        return None if job.ids else Completion("", 0, 0, "context")

    def complete(self, batch: Sequence[Job]) -> list[Completion]:
        self.started.set()
        self.may_go_on.wait(10)
        self.batches.append([job.request.prompt for job in batch])
        if any(job.request.prompt == "bad" for job in batch):
            raise MemoryError("the device is full")
        return [Completion(job.request.prompt, len(job.ids), 0, "stop") for job in batch]


def test_a_batch_that_raises_reaches_all_its_requests_and_no_other() -> None:
    async def run() -> list[Completion | BaseException]:
        prompts = ["bad", "xxx", "a" * 90, "b" * 91]
        return await asyncio.gather(*(engine.generate(Request(p)) for p in prompts), return_exceptions=True)

    engine = BatchedEngine(Counting(), batch_rows=2)
    first, second, *others = asyncio.run(run())
    engine.close()
    assert isinstance(first, MemoryError)
    assert isinstance(second, MemoryError)
    assert [type(other) for other in others] == [Completion, Completion]


def test_a_request_that_the_tokenizer_refuses_fails_alone() -> None:
    async def run() -> list[Completion | BaseException]:
        prompts = ["a", "unreadable", "b", "unreadable", "c", ""]
        return await asyncio.gather(*(engine.generate(Request(p)) for p in prompts), return_exceptions=True)

    engine = BatchedEngine(Counting(), batch_rows=8)
    kinds = [type(result) for result in asyncio.run(run())]
    engine.close()
    assert kinds == [Completion, UnicodeError, Completion, UnicodeError, Completion, Completion]


def test_a_batch_holds_neighbours_in_length_and_the_oldest_is_among_the_first() -> None:
    model = Counting()
    engine = BatchedEngine(model, batch_rows=3)
    model.may_go_on.clear()

    async def run() -> None:
        first = asyncio.create_task(engine.generate(Request("first")))
        await asyncio.to_thread(model.started.wait, 10)
        others = [asyncio.create_task(engine.generate(Request("x" * n))) for n in (50, 1, 90, 2, 51, 91, 3, 52, 92)]
        await asyncio.sleep(0.05)
        model.may_go_on.set()
        await asyncio.gather(first, *others)

    asyncio.run(run())
    engine.close()
    lengths = [sorted(map(len, batch)) for batch in model.batches]
    assert lengths == [[5], [50, 51, 52], [1, 2, 3], [90, 91, 92]]


def test_scoring_and_generating_never_share_a_batch() -> None:
    model = Counting()
    engine = BatchedEngine(model, batch_rows=8)
    requests = [Request(f"score{i}", continuations=("a",)) if i % 2 else Request(f"write{i}") for i in range(10)]
    asyncio.run(generate_all(engine, requests))
    engine.close()
    assert all(len({prompt[:5] for prompt in batch}) == 1 for batch in model.batches)


def test_closing_ends_the_thread_and_refuses_what_waits() -> None:
    model = Counting()
    engine = BatchedEngine(model, batch_rows=1)
    model.may_go_on.clear()

    async def run() -> list[Completion | BaseException]:
        tasks = [asyncio.create_task(engine.generate(Request(f"r{i}"))) for i in range(3)]
        await asyncio.to_thread(model.started.wait, 10)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await asyncio.sleep(0.05)
        model.may_go_on.set()
        await closing
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = asyncio.run(run())
    assert isinstance(first, Completion)
    assert [type(other) for other in others] == [RuntimeError, RuntimeError]
    assert not any(thread.name.startswith("engine") for thread in threading.enumerate())
    with pytest.raises(RuntimeError, match="shutdown"):
        asyncio.run(engine.generate(Request("late")))
