"""Memory requests of the kernels as nvcc compiles them (PTX for sm_75), beside what they would need at least.

    python -m gpu_proof.traffic          compare with traffic_limits.json
    python -m gpu_proof.traffic --renew  write traffic_limits.json from what is counted now

Counted on the simulated device: 32-byte sectors of each warp's request to global memory over the sectors that its bytes
would fill, and the passes over shared memory's banks that a request takes (1 where none conflict).
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gpu_proof import cases
from gpu_proof.build import CSRC, build_simulated
from gpu_proof.mutations import Bug, plant
from gpu_proof.simulated import SimulatedDevice
from kdtw_fast import SingleModelDecoder, _core
from kdtw_fast.roofline import decoder_pass
from kdtw_fast.selftest.checks import Trial
from kdtw_fast.shapes import T5Shape, random_native

LIMITS = Path(__file__).with_name("traffic_limits.json")
SLACK = 1.02  # of a limit


@dataclass
class Count:
    """One kernel's requests over all its launches in a case.

    Attributes:
        sectors: 32-byte sectors moved over the least number that the bytes asked for fill.
        passes: over shared memory's banks, over the least number.
        bytes: of global memory, each counted once a launch: read and written (but not by atomics).
        blocks: of its largest launch.
    """

    sectors: float
    passes: float
    bytes: int
    blocks: int


def count() -> dict[str, Count]:
    """Counts requests by kernel, at sizes of real models (cases.real_sizes)."""
    device = SimulatedDevice(build_simulated("ptx", checked=True))
    device.schedule()
    with device.engine() as where, device.traffic() as launches:
        cases.real_sizes(Trial(where))
    costs: dict[str, dict[str, list[int]]] = {}
    moved: dict[str, int] = {}
    blocks: dict[str, int] = {}
    for launch in launches:
        kernel = launch["kernel"]
        blocks[kernel] = max(blocks.get(kernel, 0), launch["blocks"])
        moved[kernel] = moved.get(kernel, 0) + launch["bytes_read"] + launch["bytes_written"]
        spaces = costs.setdefault(kernel, {"global": [0, 0], "shared": [0, 0]})
        for space, total in spaces.items():
            for requests in (launch[f"{space} loads"], launch[f"{space} stores"]):
                total[0] += requests["cost"]
                total[1] += requests["ideal"]
    ratio = {k: {s: round(c / i, 3) if i else 1.0 for s, (c, i) in v.items()} for k, v in costs.items()}
    return {k: Count(r["global"], r["shared"], moved[k], blocks[k]) for k, r in sorted(ratio.items())}


WAYS = {"greedy": {}, "temperature 1": {"temperature": 1.0}, "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9}}
# How it was, and still is for what a rejected draft leaves: the deciding block reads the whole row.
ALONE = Bug("sampling-by-one-block", "pick.cu", "if (chunks > kKdtwFew ||", "if (true || chunks > kKdtwFew ||", "", "")


@dataclass(frozen=True)
class Asked:
    """What one kernel of a pick asks global memory for.

    Attributes:
        bytes: that a block loads, on average.
        rows: what all blocks load, over the bytes of the row of logits.
    """

    way: str
    kernel: str
    blocks: int
    bytes: int
    rows: float


def picks() -> list[Asked]:
    """Of a pick from FLAN-T5's vocabulary, of logits that are normal with a deviation of 3, in each way."""
    vocabulary, found = 32128, []
    head = 3 * np.random.default_rng(0).standard_normal((vocabulary, 1)).astype(np.float32)
    for sources, said in ((CSRC, ""), (plant(ALONE), ", by one block")):
        device = SimulatedDevice(build_simulated("ptx", checked=True, csrc=sources))
        device.schedule()
        with device.engine() as where:
            for way, sampling in WAYS.items():
                asked = {"uniform": 0.5} | ({"temperature": 1.0} | sampling if sampling else {})
                with device.traffic() as launches:
                    Trial(where).operations.pick(head, np.ones((1, 1), np.float32), [asked], "fp32")
                for launch in launches:
                    blocks, kernel, total = launch["blocks"], launch["kernel"], launch["global loads"]["bytes"]
                    if not kernel.startswith("linear"):
                        found.append(Asked(way + said, kernel, blocks, total // blocks, total / (4 * vocabulary)))
    return found


def on_paper() -> dict[str, int]:
    """Bytes that kernels must move in that case, by the beginning of their names: weights once, inputs, outputs."""
    # outputs, inputs, values written a token, values read besides the token: what is added to, the norm's scale
    products = [
        (*cases.NORMED, cases.NORMED[0], 0, cases.NORMED[1]),
        (*cases.ADDED, cases.ADDED[0], cases.ADDED[0], 0),
        (*cases.GATED, cases.GATED[0] // 2, 0, cases.GATED[1]),
    ]
    bytes_ = {}
    for tokens in cases.TOKENS:
        bytes_[f"linear_kernel<Fp16, {tokens},"] = sum(
            2 * outputs * inputs + 4 * (tokens * (inputs + written + added) + scale)
            for outputs, inputs, written, added, scale in products
        )
    head, size = cases.VOCABULARY, cases.SIZE
    bytes_["linear_kernel<Fp16, 1,"] += 3 * (2 * head * size + 4 * (size + head))  # a pick for each way to sample
    source = cases.SOURCE
    bytes_["linear_tensor_kernel"] = sum(
        2 * (outputs + source) * inputs + 4 * (outputs + source + source * (written + added))
        for outputs, inputs, written, added, _ in products
    )
    bytes_["scale_kernel<Halves>"] = sum(source * (6 * inputs + 4) + 4 * scale for _, inputs, _, _, scale in products)
    # Each of 6 heads of 64: keys and values in fp16, the query; and of each chunk of 64 keys, values and two numbers.
    chunks = -(-cases.KEYS // 64) * (64 + 2)
    bytes_["attend_kernel<Fp16, 8, 1>"] = 6 * (2 * 2 * 64 * cases.KEYS + 4 * 64 + 4 * chunks)
    bytes_["attend_join_kernel"] = 6 * 4 * (chunks + 64)
    bytes_["norm_kernel"] = sum(4 * size * (2 * tokens + 1) for tokens in cases.TOKENS)
    return bytes_


PASSES_OF = T5Shape("a layer of FLAN-T5-small", 512, 64, 6, 1024, 1, vocab_size=1024)
SOURCE_TOKENS, CATCH_UP = 8, 8


def decoder_passes() -> dict[str, tuple[int, int]]:
    """Bytes of a student's step and of a teacher's pass over CATCH_UP tokens in whole decodes: counted, and on paper.

    Differences between decodes, so that encoders and what comes before drop out. fp16; one row.
    """
    device = SimulatedDevice(build_simulated("ptx", checked=True))
    device.schedule()

    def moved(tokens: int, forced: int = 0) -> int:
        ids = [[2 + i for i in range(SOURCE_TOKENS - 1)] + [1]]
        with device.traffic() as launches:
            decoder.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, forced_tokens=[5] * forced)
        return sum(launch["bytes_read"] + launch["bytes_written"] for launch in launches)

    with device.engine() as where:
        _core.use_cuda_drafting("host", 1)
        decoder = SingleModelDecoder(random_native(PASSES_OF, dtype="fp16", cache_dtype="fp16", device=where))
        try:
            one, two, three = (moved(tokens) for tokens in (1, 2, 3))
            # The first pass reads the start token, and the forced ones.
            catch_up = moved(CATCH_UP, CATCH_UP - 1) - one + (two - one)
        finally:
            _core.use_cuda_drafting("auto", 4)
    return {
        "step": (three - two, decoder_pass(PASSES_OF, 3, SOURCE_TOKENS).total),
        "catch-up": (catch_up, decoder_pass(PASSES_OF, CATCH_UP, SOURCE_TOKENS, tokens=CATCH_UP).total),
    }


def above(found: dict[str, Count]) -> list[str]:
    """Kernels that move more than traffic_limits.json permits, or that it does not know."""
    limits = json.loads(LIMITS.read_text(encoding="utf-8"))
    said = []
    for kernel, counted in found.items():
        limit = limits.get(kernel)
        if limit is None:
            said.append(f"{kernel}: has no limits; python -m gpu_proof.traffic --renew")
            continue
        for what, value in asdict(counted).items():
            if what != "blocks" and value > limit[what] * SLACK:
                said.append(f"{kernel}: {what} {value}, the limit is {limit[what]}")
    return said


def main() -> int:
    """The command; 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renew", action="store_true", help="write traffic_limits.json")
    options = parser.parse_args()
    found = count()
    for kernel, c in found.items():
        ratios = f"sectors over least {c.sectors:6.3f}  bank passes {c.passes:6.3f}"
        print(f"{kernel:44s} {ratios}  bytes {c.bytes:9d}  blocks {c.blocks:4d}")
    if options.renew:
        LIMITS.write_text(json.dumps({k: asdict(c) for k, c in found.items()}, indent=1) + "\n", encoding="utf-8")
    for name, (counted, paper) in decoder_passes().items():
        print(f"{name:44s} bytes {counted} of {paper} on paper")
    for p in picks():
        print(f"{p.way:34s} {p.kernel:17s} blocks {p.blocks:3d}  bytes a block {p.bytes:8d}  rows in all {p.rows:6.2f}")
    said = above(found)
    print(*said, sep="\n")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
