import asyncio
import threading
from collections.abc import Sequence

import pytest

from humpback_ray.engines.base import Completion, Request, generate_all
from humpback_ray.engines.batching import BatchedEngine, Ended, Job, OutOfMemory
from humpback_ray.stages.processes import Dead


class Counting:
    """A model whose tokens are characters, with room for some jobs; it raises on some of them: "bad", "half", "late".

    A job that scores ends at once, the others after `steps` steps; memory runs out with more than `fits` in progress.
    """

    def __init__(self, most_rows: int, steps: int = 1, fits: int = 99) -> None:
        self.most_rows, self.steps, self.fits = most_rows, steps, fits
        self.groups: list[list[str]] = []
        self.work: dict[Job, int] = {}
        self.started = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def accept(self, job: Job) -> Completion | None:
        if job.request.prompt == "unreadable":
            raise UnicodeError("the tokenizer chokes")
        job.ids = list(job.request.prompt.encode())
        job.tails = [[0]] if job.request.continuations else []
        return None if job.ids else Completion("", 0, 0, "context")

    def fitting(self, jobs: Sequence[Job]) -> int:
        return min(len(jobs), self.most_rows - len(self.work))

    def busy(self) -> bool:
        return bool(self.work)

    def start(self, jobs: Sequence[Job]) -> Ended:
        self.started.set()
        self.may_go_on.wait(10)
        if any(job.request.prompt == "bad" for job in jobs):
            raise MemoryError("a bad batch")
        if len(self.work) + len(jobs) > self.fits:
            raise OutOfMemory(f"{len(jobs)} jobs are too many")
        self.groups.append([job.request.prompt for job in jobs])
        if any(
            job.request.prompt == "half" for job in jobs
        ):  # accepted first, like a model that fails at its first token
            self.work |= dict.fromkeys(jobs, self.steps)
            raise MemoryError("a bad token")
        if jobs[0].tails:
            return [(job, Completion("", len(job.ids), 0, "scored")) for job in jobs]
        self.work |= dict.fromkeys(jobs, self.steps)
        return []

    def step(self) -> Ended:
        for job in self.work:
            self.work[job] -= 1
            if job.request.prompt == "late" and self.work[job] == 0:
                raise MemoryError("a bad step")
        ended = [job for job, left in self.work.items() if not left]
        for job in ended:
            del self.work[job]
        return [(job, Completion(job.request.prompt, len(job.ids), 0, "stop")) for job in ended]

    def give_up(self, out_of_memory: bool) -> None:
        if out_of_memory:
            self.most_rows = max(1, self.most_rows // 2)
        self.work = {}


async def outcomes(engine: BatchedEngine, prompts: Sequence[str]) -> list[Completion | BaseException]:
    return await asyncio.gather(*(engine.generate(Request(prompt)) for prompt in prompts), return_exceptions=True)


@pytest.mark.parametrize("culprit", ["bad", "late", "half"], ids=["when it starts", "at a step", "half started"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_request_at_which_the_model_raises_fails_alone(culprit: str, steps: int) -> None:
    engine = BatchedEngine(Counting(3, steps))
    prompts = ["mate", culprit, *("x" * n for n in range(1, 9)), culprit, "y" * 90]
    kinds = [type(outcome) for outcome in asyncio.run(outcomes(engine, prompts))]
    later = [type(outcome) for outcome in asyncio.run(outcomes(engine, ["one", culprit, "two"]))]
    engine.close()
    assert kinds == [MemoryError if prompt == culprit else Completion for prompt in prompts]
    assert later == [Completion, MemoryError, Completion]


class Dies(Counting):
    """A model that ends the engine's thread, as a failed GPU does."""

    def step(self) -> Ended:
        if any(job.request.prompt == "last" for job in self.work):
            raise Dead("the GPU has failed")
        return super().step()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_once_the_thread_has_ended_every_request_raises_at_once() -> None:
    engine = BatchedEngine(Dies(2))
    assert {type(outcome) for outcome in asyncio.run(outcomes(engine, ["last", "mate", "waits"]))} == {Dead}
    later = asyncio.run(asyncio.wait_for(outcomes(engine, ["later"]), 5))
    assert str(later[0]) == "the engine's thread has ended: Dead: the GPU has failed"
    engine.close()


def test_if_memory_runs_out_smaller_groups_are_tried_and_no_request_fails() -> None:
    model = Counting(8, steps=3, fits=3)
    engine = BatchedEngine(model)
    kinds = {type(outcome) for outcome in asyncio.run(outcomes(engine, ["x" * n for n in range(1, 20)]))}
    engine.close()
    assert kinds == {Completion}
    assert model.most_rows == 2  # remembered
    assert sorted(prompt for group in model.groups for prompt in group) == ["x" * n for n in range(1, 20)]


def test_a_request_that_does_not_fit_into_memory_even_alone_fails_alone() -> None:
    engine = BatchedEngine(Counting(4, fits=0))
    assert [type(outcome) for outcome in asyncio.run(outcomes(engine, ["a", "b"]))] == [OutOfMemory] * 2
    engine.close()


def test_a_request_that_the_tokenizer_refuses_fails_alone() -> None:
    engine = BatchedEngine(Counting(8))
    kinds = [
        type(outcome) for outcome in asyncio.run(outcomes(engine, ["a", "unreadable", "b", "unreadable", "c", ""]))
    ]
    engine.close()
    assert kinds == [Completion, UnicodeError, Completion, UnicodeError, Completion, Completion]


def test_jobs_that_end_make_room_for_jobs_that_wait() -> None:
    model = Counting(2, steps=2)
    engine = BatchedEngine(model)
    asyncio.run(outcomes(engine, ["a", "bb", "ccc", "dddd", "eeeee"]))
    engine.close()
    assert model.groups == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]


@pytest.mark.parametrize(
    ("arrived", "groups"),
    [
        ((50, 1, 51, 2, 52, 90, 3, 91, 92), [[50, 51, 52], [1, 2, 3], [90, 91, 92]]),
        ((50, 1, 51, 2, 90, 3, 52), [[50, 51, 90], [1, 2, 3], [52]]),  # the last one is beyond the window of six
    ],
)
def test_a_group_holds_the_jobs_nearest_in_length_among_the_oldest(
    arrived: tuple[int, ...], groups: list[list[int]]
) -> None:
    model = Counting(3)
    engine = BatchedEngine(model)
    model.may_go_on.clear()

    async def run() -> None:
        first = asyncio.create_task(engine.generate(Request("first")))
        await asyncio.to_thread(model.started.wait, 10)
        others = [asyncio.create_task(engine.generate(Request("x" * n))) for n in arrived]
        await asyncio.sleep(0.05)
        model.may_go_on.set()
        await asyncio.gather(first, *others)

    asyncio.run(run())
    engine.close()
    lengths = [sorted(map(len, batch)) for batch in model.groups]
    assert lengths == [[5], *groups]


def test_scoring_and_generating_never_share_a_group() -> None:
    model = Counting(8)
    engine = BatchedEngine(model)
    requests = [Request(f"score{i}", continuations=("a",)) if i % 2 else Request(f"write{i}") for i in range(10)]
    asyncio.run(generate_all(engine, requests))
    engine.close()
    assert all(len({prompt[:5] for prompt in batch}) == 1 for batch in model.groups)


def test_closing_ends_the_thread_and_fails_the_requests_that_wait() -> None:
    model = Counting(1)
    engine = BatchedEngine(model)
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
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(engine.generate(Request("late")))
