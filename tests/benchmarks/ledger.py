"""The cost of the ledger for a driver: memory, and seconds to plan, run, resume and verify 1,000 and 10,000 shards.

    make bench-ledger          (or: python -m tests.benchmarks.ledger --rows 100 1000 10000)

First it measures the watch over a pass with 1,000, 10,000 and 100,000 shards whose attempts are on a local disk: a look
at the directory, which must be faster than the log line every 30 s; and the event of an ended shard, whose cost must
not grow. Then it measures the verification of 10^6 rows in 10^4 shards in its own process, and counts its storage
requests, which are the same number on S3.

Shards have 100 rows and the engine `echo`. Each number of shards has its own driver process. Its memory is the peak of
its resident set, so the difference between two numbers is the cost of the shards.
"""

import argparse
import functools
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.augment import AugmentConfig, AugmentRecipe, make_candidates
from humpback_ray.engines import EchoEngine
from humpback_ray.operate.verify import verify_stage
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import CANDIDATE, SEGMENT
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.pace import Pace
from humpback_ray.stages.shards import Shard, plan_rows
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.stages.watch import Watch
from humpback_ray.storage import files
from tests.jobs.prepared import write_corpus, write_model

T = TypeVar("T")

MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
GROWTH_MB = 50
WATCHED = (1000, 10_000, 100_000)
VERIFIED = (1_000_000, 10_000)
LOOK_S = 10
EVENT_GROWTH = 3
OPEN = 300
"""Number of shards in progress while the watch is measured."""


def measure_watch(shards: int) -> dict[str, float]:
    """Measure a watch at three quarters of a pass: seconds of a look and of a concern, microseconds of an event."""
    with tempfile.TemporaryDirectory(prefix="bench-watch-") as folder:
        names = [f"{number:06d}" for number in range(shards)]
        begun = 3 * shards // 4
        (Path(folder) / "commits").mkdir()
        placement = PoolPlacement(max_replicas=100)
        pace = Pace(placement, dict.fromkeys(names, 10.0))
        planned = [Shard(name, slices=(("f", 0, 10),)) for name in names]
        watch = Watch("watched", Ledger(folder, "b"), planned, pace)

        def look() -> None:
            watch.look()
            deque(watch.overdue(), 0)
            deque(watch.stragglers(), 0)

        for number, name in enumerate(names[:begun]):
            attempt = Path(folder, "attempts", name)
            attempt.mkdir(parents=True)
            (attempt / "0001.json").write_text('{"submission": "b", "node": "n"}')
            if number < begun - OPEN:
                Path(folder, "commits", f"{name}.json").write_text("{}")
        look_s, _ = timed(look)
        concern_s, _ = timed(watch.concern)
        again_s, _ = timed(look)
        events = names[begun - OPEN : begun]
        for _ in range(shards - len(events)):
            pace.ended(10.0, 5.0)
        event_s = statistics.median(timed(functools.partial(watch.committed, name, 5.0))[0] for name in events)
    return {"look_s": max(look_s, again_s), "concern_s": concern_s, "event_us": 1e6 * event_s}


def write_stage(root: Path, rows: int, shards: int) -> None:
    """Make a corpus and a stage of `shards` shards from it, without Ray and without waiting for disks."""
    os.fsync = lambda fd: None
    corpus = Stage(Place("corpus", str(root / "corpus"), "bench"), {}, {}, SEGMENT)
    source = corpus.leased(functools.partial(write_corpus, rows=rows))
    stage = Stage(Place("candidates", str(root / "candidates"), "bench"), {}, {"corpus": source}, CANDIDATE)
    plan = plan_rows(source, rows // shards)
    stage.ledger.create_or_read("plan.json", {"shards": [asdict(shard) for shard in plan]})
    ids = functools.cache(lambda name: storage.read_table(storage.join(source.uri, name), ["id"])["id"])
    commits = []
    for shard in plan:
        some = pa.chunked_array([c for f, a, b in shard.slices for c in ids(f).slice(a, b - a).chunks], pa.string())
        values = {
            "id": some, "url": [""] * len(some), "instruction": ["x" * 30] * len(some),
            "response": ["y" * 40] * len(some), "finish_reason": ["stop"] * len(some), "prompt_tokens": [9] * len(some),
            "completion_tokens": [9] * len(some), "drop_reason": [None] * len(some),
        }  # fmt: skip
        with stage.ledger.begin(shard.name) as attempt:
            commits.append(attempt.write(pa.table(values, schema=CANDIDATE)))
    stage._publish(commits)
    (root / "run.json").write_text("{}")


def measure_verify(root: Path) -> dict[str, float]:
    """Count the storage requests of verifying the stage that `write_stage` made."""
    manifest = read_manifest(str(root / "candidates"))
    assert manifest is not None
    asked: Counter[str] = Counter()
    for name in ("read_bytes", "open_input", "exists"):
        counted = counting(asked, manifest.uri, name, getattr(storage, name))
        for module in (storage, files):  # `storage.read_json` calls its own module's `read_bytes`
            setattr(module, name, counted)
    verify_stage(manifest)
    return {"requests_per_shard": asked.total() / len(manifest.commits)}


def run_verify(root: Path) -> dict[str, float]:
    """Return seconds and memory of `jobs.verify`, which imports less than this module does."""
    since = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "jobs.verify", str(root)], stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return {"s": time.perf_counter() - since, "peak_mb": used.ru_maxrss * MAXRSS_BYTES / 1e6}


def counting(asked: "Counter[str]", stage: str, name: str, call: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a call that counts itself if its URI is in a stage."""

    def counted(uri: str) -> Any:
        if uri.startswith(stage):
            asked[name] += 1
        return call(uri)

    return counted


def apart(work: Callable[..., T], *arguments: Any) -> T:
    """Run a function in its own process and return its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def measure(root: Path, shards: int, rows: int) -> dict[str, Any]:
    """Drive one stage of `shards` shards; return seconds, and memory in MB."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    corpus = Stage(Place("corpus", str(root / "corpus"), "bench"), {}, {}, SEGMENT)
    source = corpus.once(write_corpus, (shards * rows,), TaskPlacement())
    model = Stage(Place("models/backward", str(root / "model"), "bench"), {}, {}).leased(write_model)
    figures: dict[str, Any] = {"idle_mb": peak_mb()}
    config = AugmentConfig(
        recipe=AugmentRecipe(engine=EchoEngine(), max_new_tokens=8, max_failed_share=1.0),
        placement=PoolPlacement(min_replicas=1, cpus_per_replica=1, rows_per_shard=rows, shards_in_flight=2),
    )

    def run(submission: str) -> Manifest:
        place = Place("candidates", str(root / "candidates"), submission)
        return make_candidates(config, ChatRecipe(), source, Model.of(model), place)

    figures["plan_s"] = timed(lambda: plan_rows(source, rows))[0]
    figures["run_s"], done = timed(lambda: run("first"))
    figures["peak_mb"] = peak_mb()
    figures["finished_s"] = timed(lambda: run("second"))[0]
    storage.delete(storage.join(done.uri, "manifest.json"))
    figures["resume_s"] = timed(lambda: run("third"))[0]
    ray.shutdown()
    manifest = read_manifest(done.uri)
    assert manifest is not None
    assert manifest.rows == shards * rows
    figures["verify_s"] = timed(lambda: verify_stage(manifest))[0]
    return figures


def timed(call: Any) -> tuple[float, Any]:
    since = time.perf_counter()
    value = call()
    return time.perf_counter() - since, value


def peak_mb() -> float:
    """Return the peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument("--rows", type=int, default=100, help="rows of a shard")
    parser.add_argument("--watched", type=int, nargs="*", default=WATCHED, help="shards under the watch")
    parser.add_argument("--verified", type=int, nargs="*", default=VERIFIED, help="rows and shards to verify")
    arguments = parser.parse_args()
    watched = {shards: measure_watch(shards) for shards in arguments.watched}
    for shards, figures in watched.items():
        line(f"watch_{shards}_look_s", figures["look_s"], f"<{LOOK_S}")
        line(f"watch_{shards}_concern_s", figures["concern_s"], "<1")
        least = min(other["event_us"] for other in watched.values())
        line(f"watch_{shards}_event_us", figures["event_us"], f"<{max(EVENT_GROWTH * least, 100):.0f}")
    if arguments.verified:
        rows, shards = arguments.verified
        with tempfile.TemporaryDirectory(prefix="bench-verify-") as folder:
            apart(write_stage, Path(folder), rows, shards)
            figures = apart(measure_verify, Path(folder))
            figures |= run_verify(Path(folder))
        for name, goal in (("s", "<90"), ("peak_mb", "<300"), ("requests_per_shard", "<2.5")):
            line(f"verify_{rows}_rows_{shards}_shards_{name}", figures[name], goal)
    results = {}
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
            results[shards] = apart(measure, Path(folder), shards, arguments.rows)
        print(f"{shards} shards of {arguments.rows} rows: {json.dumps(results[shards])}", flush=True)
    for shards, figures in results.items():
        for name in ("plan_s", "run_s", "finished_s", "resume_s", "verify_s"):
            line(f"ledger_{shards}_{name}", figures[name], "-")
    if not results:
        return
    first, last = min(results), max(results)
    growth = results[last]["peak_mb"] - results[first]["peak_mb"]
    line(f"ledger_driver_growth_{first}_to_{last}_mb", growth, f"<{GROWTH_MB}")


def line(name: str, value: float, goal: str) -> None:
    """Print one figure; it was measured once, since a run takes minutes."""
    print(f"BENCH {name} value={value:.3f} low={value:.3f} high={value:.3f} goal={goal}")


if __name__ == "__main__":
    main()
