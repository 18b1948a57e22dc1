"""The transformers engine: are its replies right, how fast is it, and does it survive a lack of memory?

Prompts and replies are as long as the paper's when the backward model predicts an instruction for each segment, and
when the rubric's grades are scored. The engine is compared with plain transformers (plain.py) and with what the device
could do at best (ceilings.py).
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from humpback_ray.engines.base import Completion, Request, generate_all
from humpback_ray.engines.transformers import TransformersEngine, fastest_dtype
from humpback_ray.needs import Resources
from humpback_ray.operate.plan.inference import RowWork, row_s
from tests.gpu.ceilings import Ceilings, ceilings
from tests.gpu.material import Check, let_go, rates, writer, writer_shape
from tests.gpu.plain import BATCH, Difference, Plain
from tests.gpu.profiles import Profile
from tests.gpu.steps import Steps

BEHIND = 5e-2
"""How far a written token's logit may be behind the largest, as a share of it; export/reload.py allows the same in
bfloat16."""
TIED = 1e-4
"""The same in float32, where only ties may differ."""
SCORED_APART = {"bfloat16": 0.2, "float32": 1e-2}
"""Largest difference of a token's log-probability, in nats: in bfloat16, rounding over 32 layers gives 0.1, and a wrong
mask about 1."""
GOALS = {"ratio": 8.0, "decode_share": 0.5, "rubric_share": 0.5}
"""Least figures of speed at 7B."""
GRADES = ("1", "2", "3", "4", "5")
PREFIX = "Score: "
GIVEN_UP = 16
"""An engine that runs a little short of memory must still hold at least one part in this many of its tokens."""
SPARE_BYTES = 3 << 29
"""Free memory of an engine that must run out of it: less than 128 rows of a 1B model take."""

NONE = Completion("", 0, 0, "length")
"""Stands for a request that was not asked."""

PROMPT, REPLY, RUBRIC = (430, 163), (88, 33), 400
"""Mean and deviation of the tokens of a segment and of an instruction (table 1 of the paper, over all candidates, at
four characters per token), and the tokens of a rating prompt besides the pair (`plan.rating_prompt_tokens`)."""


def part_dtype(check: Check) -> None:
    """Check that `dtype: auto` does not depend on the time of a kernel launch."""
    chosen = [fastest_dtype(check.device) for _ in range(20 if check.gpu else 2)]
    wrong = set(chosen) - {"bfloat16"} if check.gpu else set()
    check.report.judge("dtype", [f"chose {', '.join(wrong)} on a GPU"] if wrong else [], chosen=chosen)


@dataclass(frozen=True)
class Load:
    """A model and the requests to it."""

    check: Check
    name: str
    rows: int
    part: int = 1
    """Prompts and replies are one in so many of the paper's length."""
    looked_at: int = 4
    """Number of replies that are compared one by one."""

    def _texts(self, mean: float, deviation: float, salt: str) -> list[str]:
        """Return random letters; their numbers are normally distributed within two deviations."""
        draw = random.Random(f"{salt} {self.name}")
        sizes = [max(-2.0, min(draw.gauss(0, 1), 2.0)) * deviation + mean for _ in range(self.rows)]
        return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz ,.", k=round(size / self.part))) for size in sizes]

    @property
    def requests(self) -> list[Request]:
        """Requests for instructions of segments."""
        lengths = map(len, self._texts(*REPLY, "replies"))
        return [Request(text, most) for text, most in zip(self._texts(*PROMPT, "segments"), lengths, strict=True)]

    @property
    def ratings(self) -> list[Request]:
        """Requests for the grades of pairs; the prompts share the text of the rubric."""
        rubric = "".join(random.Random(self.name).choices("abcdefghij ", k=RUBRIC // self.part))
        pairs = self._texts(PROMPT[0] + REPLY[0], PROMPT[1], "pairs")
        return [Request(rubric + pair, continuations=GRADES, reply_prefix=PREFIX) for pair in pairs]

    @property
    def some(self) -> list[int]:
        """The places of the requests whose replies are looked at one by one."""
        return [*range(0, self.rows, max(1, self.rows // self.looked_at))][: self.looked_at]

    def build(self, dtype: Literal["bfloat16", "float32"] = "bfloat16") -> Any:
        """Start the engine."""
        cpus, gpus = (8, 1) if self.check.gpu else (1, 0)
        where = str(writer(self.check, self.name))
        return TransformersEngine(dtype=dtype).build(where, Resources(cpus=cpus, gpus=gpus))


def part_engine(check: Check) -> None:
    """Let a small model write and score, compare it with plain transformers, and run it with too little memory."""
    load = Load(check, "1b", 256) if check.gpu else Load(check, "tiny", 6, part=10, looked_at=3)
    check.report.attempt(f"engine-{load.name}", lambda: measure(load, {}))
    short = replace(load, rows=128) if check.gpu else load
    check.report.attempt(f"engine-{load.name}-short-of-memory", lambda: run_short_of_memory(short))


def part_engine_large(check: Check) -> None:
    """Let a large model write and score, and compare it with plain transformers."""
    load = Load(check, "7b", 256, looked_at=3) if check.gpu else Load(check, "small", 6, part=10, looked_at=3)
    check.report.attempt(f"engine-{load.name}", lambda: measure(load, GOALS))


def measure(load: Load, goals: dict[str, float]) -> None:
    """Write and score with the engine and with plain transformers; report how they compare."""
    import torch

    check = load.check
    requests, ratings = load.requests, load.ratings
    limits, where = ceilings(check), writer(check, load.name)
    held = let_go(check)
    if check.gpu:
        torch.cuda.reset_peak_memory_stats()
    engine = load.build()
    answered(engine, [*requests[:8], *ratings[:8]])
    steps = Steps(engine._model.decoder)
    out, taken = timed(engine, requests)
    figures = decoding(steps, load, out, limits)
    steps.forget()
    scored, scoring = timed(engine, ratings)
    profiled(load, engine)
    engine.close()
    peak = round(torch.cuda.max_memory_allocated() / 1e9, 2) if check.gpu else None
    del engine, steps
    exact = exactly(load)
    let_go(check)
    plain = Plain(where, check.device)
    rival = plain.tokens_per_s(requests[:BATCH])
    found = {"bfloat16": compared(plain, load, out, scored)}
    plain.widen()
    found["float32"] = compared(plain, load, *exact)
    speed = sum(one.completion_tokens for one in out) / taken
    best_s = rating_s(load, limits)
    check.report.judge(
        f"engine-{load.name}", problems(found, out, requests), goals,
        characters=sum(len(one.text) for one in out), tokens_per_s=round(speed), plain_tokens_per_s=round(rival),
        ratio=round(speed / rival, 2), planned_tokens_per_s=round(planned_tokens_per_s(load, out)), **figures,
        rubric_rows_per_s=round(load.rows / scoring, 1), rubric_share=brief(best_s / scoring),
        scored=all(len(one.logprobs or ()) == len(GRADES) for one in scored),
        **said_of("", found["bfloat16"]), **said_of("float32_", found["float32"]), peak_gb=peak, held_gb=held,
    )  # fmt: skip


def rating_s(load: Load, limits: Ceilings) -> float:
    """Return the seconds of the products that ratings need at the measured rate; the rubric is read once."""
    shape, ratings = writer_shape(load.name), load.ratings
    own = sum(len(one.prompt) - RUBRIC // load.part for one in ratings)
    context = 2 * RUBRIC / load.part + own / len(ratings)  # a token of a pair sees the rubric and half of the pair
    return shape.forward_flops(own, context, logits=len(ratings)) / limits.products[load.name]


def answered(engine: Any, requests: Sequence[Request]) -> list[Completion]:
    """Return the completions of requests that wait together."""
    return asyncio.run(generate_all(engine, requests))


def timed(engine: Any, requests: Sequence[Request]) -> tuple[list[Completion], float]:
    """Return the completions and the seconds that they took."""
    began = time.monotonic()
    return answered(engine, requests), time.monotonic() - began


def decoding(steps: Steps, load: Load, out: Sequence[Completion], limits: Ceilings) -> dict[str, Any]:
    """Return the figures of a run's forward passes, and their shares of the ceilings."""
    shape = writer_shape(load.name)
    read = sum(one.prompt_tokens for one in out)
    best_s = shape.forward_flops(read, read / len(out), logits=len(out)) / limits.products[load.name]
    return {
        "steps": steps.steps, "rows_per_step": round(steps.rows / max(steps.steps, 1), 1),
        "step_ms": round(1e3 * steps.steps_s / max(steps.steps, 1), 2),
        "decode_share": brief(steps.floor_s(shape, 2, limits) / steps.steps_s),
        "reading_s": brief(steps.reading_s), "reading_share": brief(best_s / steps.reading_s),
    }  # fmt: skip


def brief(value: float) -> float:
    """Return a figure with three digits."""
    return float(f"{value:.3g}")


def profiled(load: Load, engine: Any) -> None:
    """Profile a few steps of an engine; report them, and write the table to a file."""
    name = f"engine-{load.name}-profile"
    profile = Profile(load.check.gpu)
    steps = Steps(engine._model.decoder, profile=profile, skipped=10 if load.check.gpu else 3)
    try:
        answered(engine, load.requests[: engine._model.most_rows])
        assert profile.steps, f"the replies took only {steps.steps} steps"
        title = f"The {load.name} engine, {profile.steps} steps of about {steps.rows // steps.steps} rows."
        file = profile.write(load.check.out / f"{name}.txt", title)
        load.check.report.judge(name, [], **profile.figures(), attention=profile.attention(), table=file)
    finally:
        steps.forget()


def compared(plain: Plain, load: Load, out: Sequence[Completion], scored: Sequence[Completion]) -> Difference:
    """Return how some replies and scores differ from those of plain transformers."""
    places = load.some
    requests, ratings = load.requests, load.ratings
    return plain.compare(
        [requests[place] for place in places], [out[place] for place in places],
        [ratings[place] for place in places], [scored[place] for place in places],
    )  # fmt: skip


def exactly(load: Load) -> tuple[list[Completion], list[Completion]]:
    """Let an engine in float32 write and score what is compared, and some more; the rest stays empty."""
    let_go(load.check)
    engine = load.build("float32")
    places = sorted({*load.some, *range(min(16, load.rows))})
    made = []
    for requests in (load.requests, load.ratings):
        found = dict(zip(places, answered(engine, [requests[place] for place in places]), strict=True))
        made.append([found.get(place, NONE) for place in range(load.rows)])
    engine.close()
    return made[0], made[1]


def said_of(prefix: str, found: Difference) -> dict[str, Any]:
    """Return a comparison as figures."""
    return {
        f"{prefix}greedy_equal": f"{found.equal} of {found.count}", f"{prefix}greedy_behind": round(found.behind, 6),
        f"{prefix}greedy_gap": round(found.gap, 6), f"{prefix}scored_apart": round(found.scored, 5),
    }  # fmt: skip


def problems(found: dict[str, Difference], out: Sequence[Completion], requests: Sequence[Request]) -> list[str]:
    """Return what is wrong with replies and grades."""
    said = short(out, requests)
    for dtype, most in (("bfloat16", BEHIND), ("float32", TIED)):
        if not found[dtype].behind <= most:
            said.append(
                f"{dtype}: a greedy token is {found[dtype].behind:g} behind the first choice; noise is at most {most:g}"
            )
        if not found[dtype].scored <= SCORED_APART[dtype]:
            said.append(
                f"{dtype}: log-probabilities differ by {found[dtype].scored:g} nats; noise is at most "
                f"{SCORED_APART[dtype]:g}"
            )
    if not found["float32"].gap <= TIED:
        said.append(f"float32: replies differ where the choice is no tie, by {found['float32'].gap:g}")
    return said


def short(out: Sequence[Completion], requests: Sequence[Request]) -> list[str]:
    """Return how many replies have the wrong length: the model writes no end token, so each must reach its limit."""
    wrong = sum(one.completion_tokens != asked.max_new_tokens for one, asked in zip(out, requests, strict=True))
    return [f"{wrong} of {len(out)} replies are shorter or longer than requested"] if wrong else []


def planned_tokens_per_s(load: Load, out: Sequence[Completion]) -> float:
    """Return the speed that the plan expects for such replies."""
    written = sum(one.completion_tokens for one in out) / len(out)
    work = RowWork(sum(one.prompt_tokens for one in out) / len(out), written)
    return written / row_s(writer_shape(load.name), 1, load.check.gpu, 2, work, rates())


def run_short_of_memory(load: Load) -> None:
    """Let an engine run out of memory: it must hold fewer tokens at once and lose no reply."""
    let_go(load.check)
    engine = load.build()
    before = engine._model.decoder.most_tokens
    with little_memory(load.check):
        out, taken = timed(engine, load.requests)
    after = engine._model.decoder.most_tokens
    engine.close()
    del engine
    said = short(out, load.requests)
    if load.check.gpu and after == before:
        said.append("memory did not run out: nothing was tested")
    if after < before / GIVEN_UP:
        said.append(f"it holds {after} tokens at once instead of {before}, but 1/{GIVEN_UP} of these would have fit")
    speed = round(sum(one.completion_tokens for one in out) / taken)
    load.check.report.judge(
        f"engine-{load.name}-short-of-memory", said, tokens_per_s=speed, tokens_held=after, tokens_held_before=before
    )


@contextlib.contextmanager
def little_memory(check: Check) -> Iterator[None]:
    """Limit torch to little more GPU memory than it has reserved; on a CPU do nothing."""
    if not check.gpu:
        yield
        return
    import torch

    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + SPARE_BYTES) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
