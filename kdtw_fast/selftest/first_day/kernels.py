"""How long kernels take, a row for each, by calling the library's table: products, attention and picks.

Plain Python, started by its path: `python kernels.py LIBRARY [--tiny] [--once]`. A kernel is launched again and again
in one CUDA graph, its weights in turn from more memory than any cache holds; a row is the graph's time by the
wall clock over its launches. The table and its structs are those of csrc/backend/cuda/kernels.h and core/pass.h.
"""

from __future__ import annotations

import argparse
import ctypes as c
import json
import random
import sys
import time
from array import array
from collections.abc import Callable

VERSION = 13  # of kernels.h
FUNCTIONS = (  # of the table, in its order
    *("describe", "device_count", "device_info", "use_device", "allocate", "release", "allocate_host", "release_host"),
    *("create_stream", "destroy_stream", "synchronise", "follow", "copy_in", "copy_out"),
    *("embed", "gather", "norm", "quantise", "scale_to_fp16", "linear", "linear_int8", "linear_tensor"),
    *("activate", "angles", "turn_heads", "store", "copy", "attend", "pick", "advance"),
    *("begin_graph", "end_graph", "launch_graph", "destroy_graph"),
)
FP16, INT8 = 1, 3
STORE, ADD, GATED = 0, 1, 3
GELU_TANH = 2
TOKENS = (1, 2, 4, 8, 16, 64)
# Sizes of models, their heads, and the widths of their feed-forward parts.
SIZES = {"flan-t5-small": (512, 6, 1024), "flan-t5-base": (768, 12, 2048), "flan-t5-xl": (2048, 32, 5120)}
VOCABULARY, HEAD_SIZE, CHUNK, ATTENTION_CHUNK = 32128, 64, 1024, 64
SUMMARY, SIFT = 40, 32816  # bytes of KdtwSummary and KdtwSift


class Weight(c.Structure):
    """KdtwWeight."""

    _fields_ = (
        ("data", c.c_void_p),
        ("scales", c.c_void_p),
        ("bias", c.c_void_p),
        ("cap", c.c_float),
        ("format", c.c_int32),
        ("outputs", c.c_int32),
        ("inputs", c.c_int32),
        ("stride", c.c_int32),
    )


class Norm(c.Structure):
    """kdtw::Norm."""

    _fields_ = (("scale", c.c_void_p), ("shift", c.c_void_p), ("epsilon", c.c_float), ("centred", c.c_bool))


class Ending(c.Structure):
    """KdtwEnding."""

    _fields_ = (("epilogue", c.c_int32), ("function", c.c_int32))


class Cache(c.Structure):
    """KdtwCache."""

    _fields_ = (
        ("keys", c.c_void_p),
        ("values", c.c_void_p),
        *((name, c.c_int32) for name in ("format", "rows", "heads", "head_size", "stride", "capacity")),
    )


class TokenAt(c.Structure):
    """kdtw::TokenAt."""

    _fields_ = (("row", c.c_int32), ("position", c.c_int32), ("length", c.c_int32))


class Bias(c.Structure):
    """kdtw::PositionBias."""

    _fields_ = (("table", c.c_void_p), ("lowest", c.c_int32), ("highest", c.c_int32))


class Rule(c.Structure):
    """kdtw::AttentionRule."""

    _fields_ = (
        ("heads", c.c_int32),
        ("scale", c.c_float),
        ("cap", c.c_float),
        ("window", c.c_int32),
        ("bias", Bias),
    )


class Sampling(c.Structure):
    """kdtw::Sampling."""

    _fields_ = (("temperature", c.c_float), ("top_k", c.c_int32), ("top_p", c.c_float))


class Request(c.Structure):
    """kdtw::PickRequest."""

    _fields_ = (
        *((f"pointer_{number}", c.c_void_p) for number in range(7)),  # lists, and what to leave
        *((name, c.c_double) for name in ("uniform", "accept_uniform", "threshold")),
        ("sampling", Sampling),
        ("draft_sampling", Sampling),
        *((f"count_{number}", c.c_int32) for number in range(4)),  # of the lists
        *((name, c.c_int32) for name in ("only", "draft_only", "draft_vocabulary", "check", "draft")),
        *((name, c.c_int32) for name in ("want_log_prob", "want_confidence", "want_entropy", "top_count")),
    )


class Capture(c.Structure):
    """KdtwCapture."""

    _fields_ = (("graph", c.c_void_p), ("condition", c.c_uint64), ("go_on", c.c_void_p))


class Device(c.Structure):
    """KdtwDevice."""

    _fields_ = (
        ("name", c.c_char * 256),
        ("major", c.c_int32),
        ("minor", c.c_int32),
        ("memory_bytes", c.c_uint64),
    )


class Table(c.Structure):
    """KdtwCudaTable."""

    _fields_ = (
        ("version", c.c_int32),
        ("kind", c.c_char_p),
        ("architectures", c.c_char_p),
        *((name, c.c_void_p) for name in FUNCTIONS),
    )


def integer(value: int) -> c.c_int32:
    """As the table's functions take it."""
    return c.c_int32(value)


class Kernels:
    """A library's functions, on its first device and a stream of its own.

    Attributes:
        device: its name.
        real: whether it is a GPU.
    """

    def __init__(self, path: str) -> None:
        library = c.CDLL(path)
        library.kdtw_cuda_table.restype = c.POINTER(Table)
        found = library.kdtw_cuda_table(VERSION)
        if not found:
            raise RuntimeError(f"{path} is of another version than {VERSION}, which this file is for")
        self._table = found.contents
        self.real = self._table.kind == b"CUDA"
        count = c.c_int32()
        self("device_count", c.byref(count))
        if count.value == 0:
            raise RuntimeError("the driver reports no CUDA device")
        info = Device()
        self("device_info", integer(0), c.byref(info))
        self.device, self.compute = info.name.decode(), f"{info.major}.{info.minor}"
        self("use_device", integer(0), c.byref(c.c_int32()))
        self.stream = c.c_void_p()
        self("create_stream", c.byref(self.stream))

    def __call__(self, name: str, *arguments: object) -> None:
        """Calls a function of the table; RuntimeError with its error."""
        status = c.CFUNCTYPE(c.c_int32)(getattr(self._table, name))(*arguments)
        if status:
            words = c.CFUNCTYPE(c.c_char_p, c.c_int32)(self._table.describe)(status)
            raise RuntimeError(f"{name}: {words.decode()}")

    def memory(self, size: int, fill: bytes = b"") -> int:
        """Address of so many bytes on the device, filled with copies of `fill`."""
        place = c.c_void_p()
        self("allocate", c.byref(place), c.c_size_t(size))
        address = place.value or 0
        for start in range(0, size if fill else 0, len(fill) or 1):
            part = min(len(fill), size - start)
            self("copy_in", c.c_void_p(address + start), fill, c.c_size_t(part), self.stream)
        self("synchronise", self.stream)
        return address

    def put(self, values: bytes) -> int:
        """Address of a copy of the values on the device."""
        return self.memory(len(values), values)

    def seconds(self, enqueue: Callable[[int], None], launches: int, rounds: int) -> float:
        """Of one launch: the best of some rounds, each of them a graph of `launches`, which `enqueue` gets numbered."""
        capture, graph = Capture(), c.c_void_p()
        self("begin_graph", c.c_void_p(), c.byref(capture), self.stream)
        for number in range(launches):
            enqueue(number)
        self("end_graph", c.byref(capture), c.byref(graph), self.stream)
        times = []
        for _ in range(1 + rounds):
            self("synchronise", self.stream)
            begin = time.perf_counter()
            self("launch_graph", graph, self.stream)
            self("synchronise", self.stream)
            times.append(time.perf_counter() - begin)
        self("destroy_graph", graph)
        return min(times[1:]) / launches


def copy_rate(kernels: Kernels, size: int) -> float | None:
    """Bytes that a copy on the device reads and writes a second, by the driver; None where there is no driver."""
    try:
        copy = c.CDLL("libcuda.so.1").cuMemcpyDtoDAsync_v2
    except (OSError, AttributeError):
        return None
    a, b = kernels.memory(size), kernels.memory(size)
    times = []
    for _ in range(6):
        kernels("synchronise", kernels.stream)
        begin = time.perf_counter()
        for _ in range(8):
            if copy(c.c_uint64(a), c.c_uint64(b), c.c_size_t(size), kernels.stream):
                return None
        kernels("synchronise", kernels.stream)
        times.append((time.perf_counter() - begin) / 8)
    for address in (a, b):
        kernels("release", c.c_void_p(address))
    return 2 * size / min(times)


class Sweep:
    """Rows about kernels, printed as they come."""

    def __init__(self, kernels: Kernels, tiny: bool, once: bool) -> None:
        self.kernels = kernels
        self.launches, self.rounds = (2, 1) if tiny or once else (200, 3)
        rng = random.Random(0)
        halves = array(
            "H", (rng.randrange(0x2800, 0x3000) | rng.randrange(2) << 15 for _ in range(1 << 14))
        )  # ±0.03…0.5
        self.fill = halves.tobytes() * (1 if tiny else 512)
        self.size = (1 << 20) if tiny else 384 << 20  # bytes that weights are taken from, in turn
        self.weights = kernels.memory(self.size, self.fill)
        floats = array("f", (rng.uniform(-1, 1) for _ in range(1 << 14))).tobytes()
        most = 64 * (4096 if tiny else 3 * VOCABULARY)
        self.floats = kernels.memory(4 * most, floats)
        self.out = kernels.memory(4 * most, floats)

    def row(self, name: str, tokens: int, moved: float, enqueue: Callable[[int], None]) -> None:
        """Times a kernel that must move so many bytes."""
        try:
            seconds = self.kernels.seconds(enqueue, self.launches, self.rounds)
        except RuntimeError as error:
            print(json.dumps({"kernel": name, "tokens": tokens, "failure": str(error)}), flush=True)
            return
        told = {"us": 1e6 * seconds, "MB": moved / 1e6, "GB/s": moved / seconds / 1e9}
        print(json.dumps({"kernel": name, "tokens": tokens, **told}), flush=True)

    def product(self, name: str, outputs: int, inputs: int, normed: bool, ending: int, form: int, tokens: int) -> None:
        """A decoder's product, its weight another one at each launch."""
        each = 2 if form == FP16 else 1
        size = outputs * inputs * each
        copies = max(1, self.size // size)
        norm, x = Norm(self.floats if normed else None, None, 1e-6, False), c.c_void_p(self.floats)
        ends = Ending(ending, GELU_TANH)
        k = self.kernels
        whole, factors = k.memory(tokens * inputs), k.memory(4 * tokens)

        def enqueue(number: int) -> None:
            place = self.weights + number % copies * size
            weight = Weight(place, self.floats, None, 0.0, form, outputs, inputs, inputs)
            end = (integer(tokens), c.byref(ends), c.c_void_p(self.out), k.stream)
            if form == FP16:
                k("linear", c.byref(weight), x, c.byref(norm), *end)
                return
            sizes = (integer(tokens), integer(inputs), integer(inputs))
            k("quantise", x, c.byref(norm), *sizes, c.c_void_p(whole), c.c_void_p(factors), k.stream)
            k("linear_int8", c.byref(weight), c.c_void_p(whole), c.c_void_p(factors), *end)

        kept = outputs // 2 if ending == GATED else outputs
        moved = size + 4 * tokens * (inputs + kept * (2 if ending == ADD else 1))
        told = f"{name} {outputs}x{inputs}, {'fp16' if form == FP16 else 'int8'}"
        self.row(told, tokens, moved, enqueue)
        for address in (whole, factors):
            k("release", c.c_void_p(address))

    def attention(self, heads: int, length: int, tokens: int) -> None:
        """`tokens` queries of one row over `length` keys."""
        k = self.kernels
        size = heads * length * HEAD_SIZE * 2
        copies = max(1, self.size // (2 * size))
        places = (TokenAt * tokens)(*(TokenAt(0, length - tokens + t, length - tokens + t + 1) for t in range(tokens)))
        if length < tokens:
            return
        at = k.put(bytes(places))
        rule = Rule(heads, 1.0, 0.0, 0, Bias(self.floats, 128, 128))
        chunks = k.memory(4 * tokens * heads * (length // ATTENTION_CHUNK + 1) * (HEAD_SIZE + 2))  # or more

        def enqueue(number: int) -> None:
            keys = self.weights + number % copies * 2 * size
            cache = Cache(keys, keys + size, FP16, 1, heads, HEAD_SIZE, HEAD_SIZE, length)
            queries = (c.c_void_p(self.floats), integer(heads * HEAD_SIZE))
            out = (c.byref(rule), c.c_void_p(chunks), c.c_void_p(self.out), k.stream)
            k("attend", c.byref(cache), c.c_void_p(at), integer(tokens), *queries, *out)

        moved = 2 * size + 8 * tokens * heads * HEAD_SIZE
        self.row(f"attention, {heads} heads, {length} keys", tokens, moved, enqueue)
        for address in (at, chunks):
            k("release", c.c_void_p(address))

    def pick(self, name: str, tokens: int, vocabulary: int, sampling: Sampling) -> None:
        """Decisions about logits that lie there."""
        k = self.kernels
        requests = (Request * tokens)()
        for number, request in enumerate(requests):
            request.uniform, request.sampling = (number + 0.5) / tokens, sampling
            request.draft_sampling, request.only = Sampling(0, 0, 1), -1
            request.draft_only = request.draft = -1
        asked = k.put(bytes(requests))
        chunks = (vocabulary + CHUNK - 1) // CHUNK
        summaries, results = k.memory(SUMMARY * tokens * chunks), k.memory(24 * tokens)
        sifts = k.memory(SIFT * tokens)
        how = 0 if sampling.temperature == 0 else 2 if sampling.top_k > 0 or sampling.top_p < 1 else 1

        def enqueue(number: int) -> None:
            places = (c.c_void_p(summaries), c.c_void_p(sifts), c.c_void_p(results))
            requests = (c.c_void_p(asked), integer(tokens), integer(how))
            k("pick", c.c_void_p(self.floats), integer(vocabulary), *requests, *places, k.stream)

        self.row(f"pick, {name}", tokens, 4.0 * tokens * vocabulary, enqueue)
        for address in (asked, summaries, sifts, results):
            k("release", c.c_void_p(address))


def main() -> int:
    """Prints the rate of a copy and a row for each kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--once", action="store_true", help="few launches, and only of one size: for a profiler")
    asked = parser.parse_args()
    try:
        kernels = Kernels(asked.library)
    except (OSError, RuntimeError) as error:
        print(json.dumps({"needs": f"a device and a library for it: {error}"}))
        return 0
    told = {"device": kernels.device, "compute capability": kernels.compute}
    rate = copy_rate(kernels, 256 << 20)
    print(json.dumps({**told, "GB/s of a copy": None if rate is None else rate / 1e9}), flush=True)
    sweep = Sweep(kernels, asked.tiny, asked.once)
    sizes = {"tiny": (64, 2, 96)} if asked.tiny else SIZES
    if asked.once:
        sizes = dict(list(sizes.items())[:1])
    counts = (1, 8) if asked.tiny or asked.once else TOKENS
    vocabulary = 2000 if asked.tiny else VOCABULARY
    for name, (size, heads, ff) in sizes.items():
        inner = heads * HEAD_SIZE
        for tokens in counts:
            for form in (FP16, INT8):
                sweep.product(f"{name} qkv", 3 * inner, size, True, STORE, form, tokens)
                sweep.product(f"{name} out", size, inner, False, ADD, form, tokens)
                sweep.product(f"{name} wi", 2 * ff, size, True, GATED, form, tokens)
                sweep.product(f"{name} wo", size, ff, False, ADD, form, tokens)
                sweep.product(f"{name} head", vocabulary, size, False, STORE, form, tokens)
            for length in (64, 512):
                sweep.attention(heads, length, tokens)
    for tokens in counts:
        sweep.pick("greedy", tokens, vocabulary, Sampling(0, 0, 1))
        sweep.pick("temperature 1", tokens, vocabulary, Sampling(1, 0, 1))
        sweep.pick("top-k 50, top-p 0.9", tokens, vocabulary, Sampling(1, 50, 0.9))
    return 0


if __name__ == "__main__":
    sys.exit(main())
