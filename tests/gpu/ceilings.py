"""What this machine can do at best: bandwidths and rates of matrix products, measured in the same call as the rest.

A speed says little without the machine's limit, and limits on data sheets are never reached. So other parts also give
their speeds as shares of these figures. The first part that needs them measures them, which takes seconds; all parts of
a call share the file.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from humpback_ray.train.sizes import Shape
from tests.gpu.material import SHAPES, Check

FILE = "ceilings.json"
GB, TERA = 1e9, 1e12
SPIN_UP = 300
"""Products before the first measurement, about half a second: an idle GPU's clock is a fifth of a busy one's."""


@dataclass(frozen=True)
class Ceilings:
    """The limits of one device."""

    copy: float
    """Bytes per second that a copy within the device's memory reads and writes together."""
    products: dict[str, float]
    """FLOP/s of bfloat16 products of a layer's matrices with many tokens, by model size."""
    square: float
    """FLOP/s of the product of two large square matrices in bfloat16."""
    launch_s: float
    """Seconds per call of a tiny kernel, when many are called from Python one after another."""
    links: dict[str, float]
    """Bytes per second between host and GPU, by direction and kind of host memory; empty without a GPU."""

    @property
    def pinned(self) -> float | None:
        """Bytes per second from the GPU to pinned memory of the host, or back, whichever is slower."""
        return min((speed for name, speed in self.links.items() if "unpinned" not in name), default=None)


def ceilings(check: Check) -> Ceilings:
    """Return this call's ceilings; measure them if no part has."""
    file = check.shared / FILE
    if not file.exists():
        file.write_text(json.dumps(asdict(measured(check))))
    return Ceilings(**json.loads(file.read_text()))


def part_ceilings(check: Check) -> None:
    """Measure and report the ceilings."""
    began = time.monotonic()
    found = ceilings(check)
    check.report.judge(
        "ceilings", [], copy_gb_per_s=round(found.copy / GB, 1),
        product_tflops={name: round(rate / TERA, 2) for name, rate in found.products.items()},
        square_tflops=round(found.square / TERA, 2), launch_us=round(1e6 * found.launch_s, 2),
        links_gb_per_s={name: round(speed / GB, 1) for name, speed in found.links.items()},
        seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip


def measured(check: Check) -> Ceilings:
    """Measure the ceilings."""
    import torch

    clock = partial(seconds, gpu=check.gpu, repeats=50 if check.gpu else 10)
    size, width, tokens = (1 << 30, 8192, 8192) if check.gpu else (1 << 24, 256, 64)
    squares = [torch.randn(width, width, device=check.device).bfloat16() for _ in range(2)]
    clock(lambda: squares[0] @ squares[1], repeats=SPIN_UP * check.gpu + 1)
    left, right = (torch.empty(size, dtype=torch.uint8, device=check.device) for _ in range(2))
    copy_s = clock(lambda: left.copy_(right))
    tiny = torch.ones(1, device=check.device)
    launch_s = clock(lambda: tiny.add_(1), repeats=2000)
    square_s = clock(lambda: squares[0] @ squares[1])
    names = ("1b", "3b", "7b") if check.gpu else ("tiny", "small")
    return Ceilings(
        copy=2 * size / copy_s, products={name: product_rate(SHAPES[name], tokens, check) for name in names},
        square=2 * width**3 / square_s, launch_s=launch_s, links=link_speeds(left[: size // 4]) if check.gpu else {},
    )  # fmt: skip


def seconds(work: Callable[[], Any], gpu: bool, repeats: int) -> float:
    """Return the mean seconds of `work` on the device, without the first calls."""
    import torch

    def wait() -> None:
        if gpu:
            torch.cuda.synchronize()

    for _ in range(3):
        work()
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - began) / repeats


def product_rate(shape: Shape, tokens: int, check: Check) -> float:
    """Return the FLOP/s of all products of a layer with that many tokens, on random values in bfloat16."""
    import torch

    draw = partial(torch.randn, device=check.device, dtype=torch.bfloat16)
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    outward = [draw(width, shape.hidden) for width in (queries, keys, keys, shape.ffn, shape.ffn)]
    back = [draw(shape.hidden, width) for width in (queries, shape.ffn)]
    x = {weight.shape[1]: draw(tokens, weight.shape[1]) for weight in (*outward, *back)}

    def layer() -> None:
        for weight in (*outward, *back):
            torch.nn.functional.linear(x[weight.shape[1]], weight)

    return 2 * tokens * sum(shape.layer_matrices.values()) / seconds(layer, check.gpu, 50 if check.gpu else 10)


def link_speeds(block: Any) -> dict[str, float]:
    """Return the bytes per second of copies between a block of device memory and the host's, pinned and unpinned."""
    import torch

    found = {}
    for kind in ("pinned", "unpinned"):
        host = torch.empty(block.shape, dtype=block.dtype, pin_memory=kind == "pinned")
        for name, copy in (("host", partial(host.copy_, block)), ("GPU", partial(block.copy_, host))):
            found[f"to the {name}, {kind}"] = block.numel() / seconds(copy, gpu=True, repeats=4)
    return found
