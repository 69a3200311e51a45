"""Every kernel of the project against NumPy, at sizes that break things; for tests and for planted bugs alike.

A case runs on a simulated device (any schedule, checked or not) and raises AssertionError where a result is wrong, or
SimulatedError where the device objects.
"""

from collections.abc import Callable, Iterator

import numpy as np

from gpu_proof.simulated import DeviceArray, SimulatedDevice
from gpu_proof.table import Kernels, constants
from kdtw_fast.random import uniform

Array = np.ndarray
CASES: dict[str, Callable[[Kernels], None]] = {}


def case(function: Callable[[Kernels], None]) -> Callable[[Kernels], None]:
    """Registers a case under its name."""
    CASES[function.__name__] = function
    return function


def run(name: str, device: SimulatedDevice) -> None:
    """Runs one case, and frees what it allocated."""
    try:
        CASES[name](Kernels(device))
    finally:
        device.release()


# ---------------------------------------------------------------- numbers
def _random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _bf16_bits(values: Array) -> Array:
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _encode(values: Array, format_: str) -> tuple[Array, Array]:
    """The stored form of float values in a format, and the values that it stands for."""
    if format_ == "fp32":
        return values, values
    if format_ == "fp16":
        return values.astype(np.float16), values.astype(np.float16).astype(np.float32)
    bits = _bf16_bits(values)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


FORMATS = {"fp32": "kKdtwFp32", "fp16": "kKdtwFp16", "bf16": "kKdtwBf16"}


def _close(actual: Array, expected: Array, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(
        actual, expected, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(expected).max(initial=0)))
    )


def _weight(k: Kernels, outputs: int, inputs: int, format_: str, seed: int = 1) -> tuple[object, Array]:
    """A weight [outputs, inputs] on the device, rows padded to 16 bytes, and its values."""
    stored, values = _encode(_random(outputs, inputs, seed=seed) / np.float32(np.sqrt(inputs)), format_)
    each = 16 // stored.itemsize
    stride = -(-inputs // each) * each
    padded = np.zeros((outputs, stride), stored.dtype)
    padded[:, :inputs] = stored
    made = k.make(
        "KdtwWeight",
        data=k.device.array(padded),
        scales=None,
        format=constants()[FORMATS[format_]],
        outputs=outputs,
        inputs=inputs,
        stride=stride,
    )
    return made, values


def _rms(x: Array, scale: Array, epsilon: float) -> Array:
    x64 = x.astype(np.float64)
    return x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + epsilon) * scale


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


# ---------------------------------------------------------------- cases
@case
def embedding(k: Kernels) -> None:
    """Rows of the table, with the vector of the teacher that wrote the token added."""
    for format_, size in [("fp32", 33), ("fp16", 64), ("bf16", 31)]:
        table, values = _weight(k, 9, size, format_)
        ids = np.array([3, 0, 8, 3, 5], np.int32)
        marked = np.array([0, 1, 0, 2, 0], np.uint8)  # by whom
        marks = _random(2, size, seed=3)
        out = k.device.empty((5, size))
        k.embed(table, k.device.array(ids), k.device.array(marked), k.device.array(marks), 5, out, None)
        expected = values[ids] + np.concatenate([np.zeros((1, size), np.float32), marks])[marked]
        np.testing.assert_array_equal(out.numpy(), expected)
        k.embed(table, k.device.array(ids), None, None, 5, out, None)
        np.testing.assert_array_equal(out.numpy(), values[ids])
        rows = k.device.empty((3, size))
        k.gather(out, k.device.array(np.array([4, 4, 1], np.int32)), 3, size, rows, None)
        np.testing.assert_array_equal(rows.numpy(), values[ids][[4, 4, 1]])


@case
def norm(k: Kernels) -> None:
    """RMS norm of sizes around warps and blocks."""
    for size in (1, 31, 32, 33, 257, 512):
        x, scale = _random(3, size), _random(size, seed=2)
        out = k.device.empty((3, size))
        k.rms_norm(k.device.array(x), k.device.array(scale), 1e-6, 3, size, out, None)
        _close(out.numpy(), _rms(x, scale, 1e-6))


def _linear_shapes() -> Iterator[tuple[int, int, int]]:
    yield from [(1, 1, 1), (1, 33, 31), (2, 16, 64), (3, 31, 257), (5, 8, 48), (9, 34, 32), (17, 10, 1100)]


def _ended(y: Array, before: Array, epilogue: str) -> Array:
    """What an epilogue makes of y = x W^T, and of what was in its place."""
    half = y.shape[1] // 2
    if epilogue == "kKdtwGatedGelu":
        return _gelu(y[:, :half]) * y[:, half:]
    return {"kKdtwStore": y, "kKdtwAdd": before + y, "kKdtwRelu": np.maximum(y, 0)}[epilogue]


@case
def linear(k: Kernels) -> None:
    """Products for 1 to 17 tokens in all formats, plain and after a norm, with every epilogue."""
    epilogues = ["kKdtwStore", "kKdtwAdd", "kKdtwRelu", "kKdtwGatedGelu"]
    for i, (tokens, outputs, inputs) in enumerate(_linear_shapes()):
        format_ = list(FORMATS)[i % 3]
        weight, values = _weight(k, outputs, inputs, format_)
        x, scale = _random(tokens, inputs, seed=5), _random(inputs, seed=6)
        for fused in (False, True):
            y = (_rms(x, scale, 1e-6) if fused else x.astype(np.float64)) @ values.astype(np.float64).T
            for epilogue in epilogues:
                if epilogue == "kKdtwGatedGelu" and outputs % 2:
                    continue
                before = _random(tokens, outputs, seed=7)
                expected = _ended(y, before, epilogue)
                adds = epilogue == "kKdtwAdd"
                out = k.device.array(before) if adds else k.device.empty(expected.shape)
                norm_scale = k.device.array(scale) if fused else None
                arguments = (weight, k.device.array(x), norm_scale, 1e-6, tokens, constants()[epilogue], out, None)
                k.linear(*arguments)
                _close(out.numpy(), expected, 5e-5)


@case
def linear_int8(k: Kernels) -> None:
    """Quantised tokens and bytes: the integers are exact."""
    for tokens, outputs, inputs in [(1, 7, 16), (3, 33, 31), (6, 16, 100), (17, 10, 48)]:
        stride = -(-inputs // 16) * 16
        x = _random(tokens, inputs, seed=8)
        to, scales = k.device.empty((tokens, stride), np.int8), k.device.empty(tokens)
        k.quantise(k.device.array(x), None, 0.0, tokens, inputs, stride, to, scales, None)
        largest = np.abs(x).max(1)
        _close(scales.numpy(), largest / 127, 1e-6)
        expected = np.rint(x * (np.float32(127) / largest)[:, None])
        np.testing.assert_array_equal(to.numpy()[:, :inputs], expected)
        assert not to.numpy()[:, inputs:].any()
        weight = np.zeros((outputs, stride), np.int8)
        weight[:, :inputs] = np.random.default_rng(9).integers(-127, 128, (outputs, inputs))
        of_outputs = np.abs(_random(outputs, seed=10))
        made = k.make(
            "KdtwWeight",
            data=k.device.array(weight),
            scales=k.device.array(of_outputs),
            format=constants()["kKdtwInt8"],
            outputs=outputs,
            inputs=inputs,
            stride=stride,
        )
        out = k.device.empty((tokens, outputs))
        k.linear_int8(made, to, scales, tokens, constants()["kKdtwStore"], out, None)
        sums = to.numpy().astype(np.int64) @ weight.astype(np.int64).T
        _close(out.numpy(), sums * (scales.numpy()[:, None] * of_outputs), 1e-6)


def _halves(values: Array) -> tuple[Array, Array]:
    """Rows as fp16 times a power of two each, the largest in [2^14, 2^15), and the powers; rows of zeros have 0."""
    largest = np.abs(values.astype(np.float64)).max(1)
    scales = np.ldexp(1.0, np.frexp(largest)[1] - 15)  # frexp: largest = m 2^e with m in [1/2, 1)
    scales[largest == 0] = 0.0
    fractions = values / np.where(scales == 0, 1.0, scales)[:, None]
    return fractions.astype(np.float16), scales.astype(np.float32)


def _tensor_weight(k: Kernels, outputs: int, inputs: int) -> tuple[object, Array]:
    """A weight [outputs, inputs] as tensor cores multiply it, rows padded to 64 bytes, and its values."""
    halves, scales = _halves(_random(outputs, inputs, seed=1) / np.float32(np.sqrt(inputs)))
    stride = -(-inputs // 32) * 32
    padded = np.zeros((outputs, stride), np.float16)
    padded[:, :inputs] = halves
    made = k.make(
        "KdtwWeight",
        data=k.device.array(padded),
        scales=k.device.array(scales),
        format=constants()["kKdtwScaledFp16"],
        outputs=outputs,
        inputs=inputs,
        stride=stride,
    )
    return made, halves.astype(np.float64) * scales[:, None]


def _scaled(k: Kernels, x: Array, norm_scale: Array | None) -> tuple[DeviceArray, DeviceArray, Array]:
    """What scale_to_fp16 makes of tokens: halves and scales on the device, and the values that they stand for."""
    tokens, inputs = x.shape
    stride = -(-inputs // 32) * 32
    to, scales = k.device.empty((tokens, stride), np.float16), k.device.empty(tokens)
    norm = None if norm_scale is None else k.device.array(norm_scale)
    k.scale_to_fp16(k.device.array(x), norm, 1e-6, tokens, inputs, stride, to, scales, None)
    halves = to.numpy()
    assert not halves[:, inputs:].any()
    return to, scales, halves[:, :inputs].astype(np.float64) * scales.numpy()[:, None]


@case
def scaled_tokens(k: Kernels) -> None:
    """Tokens as halves and powers of two, however large or small; those that are not finite say so."""
    x = _random(8, 70, seed=8) * np.array([1, 1e6, 1e-9, 3e37, 1e-35, 0, 1, 1], np.float32)[:, None]
    x[6, 69], x[7, 3] = np.inf, np.nan
    to, scales, values = _scaled(k, x, None)
    halves, expected = _halves(x[:6])
    np.testing.assert_array_equal(scales.numpy()[[0, 1, 2, 3, 5]], expected[[0, 1, 2, 3, 5]])
    np.testing.assert_array_equal(to.numpy()[[0, 1, 2, 3, 5], :70], halves[[0, 1, 2, 3, 5]])
    _close(values[4] * 1e35, x[4].astype(np.float64) * 1e35, 2**-11)  # its factor would not be finite: a smaller one
    assert np.isnan(scales.numpy()[6:]).all()
    norm_scale = _random(70, seed=6)
    _, _, values = _scaled(k, x[:3], norm_scale)
    exact = _rms(x[:3], norm_scale, 1e-6)
    np.testing.assert_allclose(values, exact, rtol=2**-11, atol=1e-30)


@case
def linear_tensor(k: Kernels) -> None:
    """Products on tensor cores around the sizes of tiles, with every epilogue; a token alone has the same bits."""
    for tokens, outputs, inputs in [(1, 1, 1), (9, 33, 31), (64, 64, 32), (65, 66, 33), (3, 130, 100)]:
        weight, values = _tensor_weight(k, outputs, inputs)
        to, scales, x = _scaled(k, _random(tokens, inputs, seed=5) * np.float32(1e6), None)
        y = x @ values.T
        for epilogue in ["kKdtwStore", "kKdtwAdd", "kKdtwRelu", "kKdtwGatedGelu"]:
            if epilogue == "kKdtwGatedGelu" and outputs % 2:
                continue
            before = _random(tokens, outputs, seed=7)
            expected = _ended(y, before, epilogue)
            out = k.device.array(before) if epilogue == "kKdtwAdd" else k.device.empty(expected.shape)
            k.linear_tensor(weight, to, scales, tokens, constants()[epilogue], out, None)
            _close(out.numpy(), expected)
        alone = k.device.empty(outputs)
        last = tokens - 1
        at = DeviceArray(k.device, to.pointer + 2 * last * to.shape[1], (1,), to.dtype)
        scale = DeviceArray(k.device, scales.pointer + 4 * last, (1,), scales.dtype)
        k.linear_tensor(weight, at, scale, 1, constants()["kKdtwStore"], alone, None)
        whole = k.device.empty((tokens, outputs))
        k.linear_tensor(weight, to, scales, tokens, constants()["kKdtwStore"], whole, None)
        np.testing.assert_array_equal(alone.numpy(), whole.numpy()[last])


@case
def activation(k: Kernels) -> None:
    """The feed-forward's activations by themselves."""
    for tokens, size in [(1, 1), (3, 33), (2, 256)]:
        hidden = _random(tokens, 2 * size)
        out = k.device.empty((tokens, size))
        k.activate(1, k.device.array(hidden), tokens, size, out, None)
        _close(out.numpy(), _gelu(hidden[:, :size].astype(np.float64)) * hidden[:, size:])
        k.activate(0, k.device.array(hidden[:, :size]), tokens, size, out, None)
        np.testing.assert_array_equal(out.numpy(), np.maximum(hidden[:, :size], 0))


@case
def attention(k: Kernels) -> None:
    """A ragged batch of queries attends to what was stored, some to nothing, with and without bias."""
    _attend(k, 3, 8, [1, 33, 0, 130], "fp32")
    _attend(k, 1, 64, [31, 32, 5], "fp16")
    _attend(k, 2, 12, [140, 2], "bf16")


def _attend(k: Kernels, heads: int, size: int, lengths: list[int], format_: str) -> None:
    rows, capacity = len(lengths), max(lengths) + 3
    width = heads * size
    stored_as = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}[format_]
    each = 16 // np.dtype(stored_as).itemsize
    stride = -(-size // each) * each
    cache = k.make(
        "KdtwCache",
        keys=k.device.empty((rows, heads, capacity, stride), stored_as),
        values=k.device.empty((rows, heads, capacity, stride), stored_as),
        format=constants()[FORMATS[format_]],
        rows=rows,
        heads=heads,
        head_size=size,
        stride=stride,
        capacity=capacity,
    )
    places = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    both = _random(len(places), 2 * width, seed=11)
    tokens = np.array([(row, position, position + 1) for row, position in places], np.int32)
    tokens = np.concatenate([tokens, [(0, 0, 0)]]).astype(np.int32)  # a place that stays empty
    both = np.concatenate([both, np.full((1, 2 * width), 9.0, np.float32)])
    keys_from = k.device.array(both)
    values_from = DeviceArray(k.device, keys_from.pointer + 4 * width, (1,), np.dtype(np.float32))
    k.store(cache, k.device.array(tokens), len(tokens), keys_from, values_from, 2 * width, None)
    rounded = _encode(both, format_)[1].astype(np.float64)
    bias = _random(heads, capacity + 1, seed=12)  # distances key - query from -capacity to 0
    queries = _random(rows, width + 5, seed=13)
    asks = np.array([(row, max(n - 1, 0), n) for row, n in enumerate(lengths)], np.int32)
    tables = [
        k.make("KdtwBias", table=k.device.array(bias), lowest=capacity, highest=0),
        k.make("KdtwBias", table=None, lowest=0, highest=0),
    ]
    for biased, table in zip((True, False), tables):
        out = k.device.empty((rows, width))
        k.attend(cache, k.device.array(asks), rows, k.device.array(queries), width + 5, table, out, None)
        expected = np.zeros((rows, heads, size))
        for row, n in enumerate(lengths):
            mine = [j for j, (r, _) in enumerate(places) if r == row]
            for h in range(heads if n else 0):
                at = slice(h * size, (h + 1) * size)
                scores = rounded[mine, :width][:, at] @ queries[row, at].astype(np.float64)
                if biased:
                    scores += bias[h, np.arange(n) - (n - 1) + capacity]
                weights = np.exp(scores - scores.max())
                expected[row, h] = weights / weights.sum() @ rounded[mine, width:][:, at]
        _close(out.numpy(), expected.reshape(rows, width), 5e-5)


def _requests(k: Kernels, vocabulary: int, **of_all: object) -> dict:
    return {
        **{"banned": None, "draft_banned": None, "draft_logits": None, "keep_logits": None, "uniform": 0.5},
        **{"accept_uniform": 0.5, "threshold": 0.0, "banned_count": 0, "draft_banned_count": 0},
        **{"draft_vocabulary": vocabulary, "check": constants()["kKdtwNone"], "draft": -1},
        **{"want_log_prob": 0, "want_confidence": 0, "want_entropy": 0},
        **of_all,
    }


def _decide(k: Kernels, logits: Array, requests: list[dict]) -> list:
    count, vocabulary = logits.shape
    chunks = -(-vocabulary // constants()["kKdtwChunk"])
    summaries = k.device.empty(count * chunks * 64, np.uint8)
    results = k.device.empty(count * 64, np.uint8)
    made = [k.make("KdtwRequest", **request) for request in requests]
    k.pick(k.device.array(logits), vocabulary, k.upload(made), count, summaries, results, None)
    size = len(bytes(k.make("KdtwResult")))
    raw = DeviceArray(k.device, results.pointer, (count * size,), np.dtype(np.uint8))
    return k.download("KdtwResult", raw)


@case
def pick_greedy(k: Kernels) -> None:
    """The largest logit that is not banned, the lowest id on ties, with log-probability, confidence and entropy."""
    for vocabulary in (1, 31, 33, 1024, 1025, 2100):
        logits = _random(3, vocabulary, seed=14)
        logits[:, vocabulary // 2] = logits[:, vocabulary // 3] = 9.0
        best = min(vocabulary // 2, vocabulary // 3)
        banned = np.array([best], np.int32)
        wants = {"want_log_prob": 1, "want_confidence": 1, "want_entropy": 1}
        requests = [_requests(k, vocabulary, **wants) for _ in range(3)]
        forbidden = vocabulary > 31
        if forbidden:
            requests[2] = _requests(k, vocabulary, banned=k.device.array(banned), banned_count=1, **wants)
        results = _decide(k, logits, requests)
        for row, result in enumerate(results):
            allowed = logits[row].astype(np.float64)
            if row == 2 and forbidden:
                allowed[best] = -np.inf
            assert result.finite and result.id == allowed.argmax(), (row, result.id, allowed.argmax())
            raw = logits[row].astype(np.float64)
            _close(np.array(result.log_prob), raw[result.id] - np.log(np.exp(raw - raw.max()).sum()) - raw.max(), 1e-4)
            weights = np.exp(allowed - allowed.max())
            _close(np.array(result.confidence), 1 / weights.sum(), 1e-4)
            shares = weights[weights > 0] / weights.sum()
            _close(np.array(result.entropy), -(shares * np.log(shares)).sum(), 1e-4)


@case
def pick_not_finite(k: Kernels) -> None:
    """A row with a NaN or an infinity says so, its neighbours do not mind."""
    logits = _random(3, 1500, seed=15)
    logits[0, 1499], logits[2, 7] = np.nan, np.inf
    results = _decide(k, logits, [_requests(k, 1500) for _ in range(3)])
    assert [bool(r.finite) for r in results] == [False, True, False]
    assert results[1].id == logits[1].argmax()


@case
def pick_checks(k: Kernels) -> None:
    """Top-k membership, lenience and divergence of a draft, and draws that follow the distribution's support."""
    vocabulary, check = 1100, constants()
    logits = _random(1, vocabulary, seed=16)
    order = np.argsort(-logits[0], kind="stable")
    log_p = logits[0].astype(np.float64) - np.log(np.exp(logits[0].astype(np.float64)).sum())
    for rank in (0, 4, 5, 700):
        draft = int(order[rank])
        gap = float(logits[0, order[0]] - logits[0, draft])
        asked = [
            (_requests(k, vocabulary, check=check["kKdtwTopK"], draft=draft, threshold=5.0), rank < 5),
            (_requests(k, vocabulary, check=check["kKdtwLenience"], draft=draft, threshold=-0.5), gap <= 0.5),
            (_requests(k, vocabulary, check=check["kKdtwLenience"], draft=draft, threshold=np.inf), rank == 0),
            (
                _requests(k, vocabulary, check=check["kKdtwDivergence"], draft=draft, threshold=4.0, want_confidence=1),
                -log_p[draft] <= 4.0,
            ),
        ]
        results = _decide(k, np.repeat(logits, len(asked), 0), [request for request, _ in asked])
        assert [bool(r.passed) for r in results] == [passes for _, passes in asked], rank
    sampling = k.make("KdtwSampling", temperature=0.7, top_k=5, top_p=1.0)
    uniforms = np.linspace(0.01, 0.99, 7)
    requests = [_requests(k, vocabulary, sampling=sampling, uniform=u) for u in uniforms]
    drawn = [r.id for r in _decide(k, np.repeat(logits, 7, 0), requests)]
    assert set(drawn) <= set(order[:5].tolist()) and len(set(drawn)) > 1


# Drafts: ids that stop a row, and the teacher that it waits for then.
STOPS = [(1, 0), (6, 1), (7, 2)]
STEPS, VOCABULARY, SEED, CONFIDENCE, ENTROPY, UNIFORM = 6, 40, 2**40 + 7, 0.25, 1.5, 0.8
NEVER = 2**31 - 1
FINISHED, DRAFTING = constants()["kKdtwFinished"], constants()["kKdtwDrafting"]


class _Draft:
    """A draft in device memory, and what Python makes of the same rules."""

    def __init__(
        self,
        k: Kernels,
        limits: list[int],
        width: int,
        *,
        seed: int,
        waiting: tuple[int, int] = (0, 0),
        batch: int = 0,
        unsure: bool = False,
        unseen: bool = False,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.k, self.width, self.waiting, self.batch = k, width, waiting, batch
        self.limits = limits
        self.keys = [2**50 + row for row in range(len(limits))]
        self.first = rng.integers(0, 5, (width, len(STOPS))).astype(np.int32)
        self.positions = rng.integers(0, 4, len(limits)).tolist()
        self.picks: list[list[int]] = [[] for _ in limits]  # ids, by row
        self.stands = [DRAFTING] * len(limits)  # or FINISHED, or the teacher that the row waits for
        self.first_call = rng.integers(0, 6, len(limits)).tolist() if unsure else [NEVER] * len(limits)
        self.unseen_by = rng.integers(0, 4, len(limits)).tolist() if unseen else [0] * len(limits)
        self.go_on = True
        self.logits = k.device.empty((STEPS, VOCABULARY))
        rows = [
            k.make(
                "KdtwDraftRow", key=key, keep_logits=self.logits if row % 2 else None, id=20 + row, marked=row % 3,
                row=row, position=position, source_length=5 + row, limit=limit, waits_at_limit=row % 2, picks=0,
                stand=DRAFTING, first_call=self.first_call[row], unseen_by=self.unseen_by[row],
            )
            for row, (key, position, limit) in enumerate(zip(self.keys, self.positions, limits))
        ]  # fmt: skip
        rows += [k.make("KdtwDraftRow", stand=FINISHED)] * (width - len(limits))
        state = k.make("KdtwDraftState", batch=batch, at_finish=0, go_on=0)
        state.waiting[:2] = waiting
        self.state = k.upload([state])
        self.rows = k.upload(rows)
        self.taken = k.device.empty(STEPS * width * len(bytes(k.make("KdtwResult"))), np.uint8)
        self.lists = {name: k.device.empty(width, np.int32) for name in ("ids", "wanted")}
        self.marked = k.device.empty(width, np.uint8)
        self.banned = k.device.empty((width, len(STOPS)), np.int32)
        lists = [self.banned.pointer + 4 * len(STOPS) * row for row in range(width)]
        self.requests = k.upload([k.make("KdtwRequest", banned=at, draft=-1) for at in lists])
        self.places = {name: k.device.empty((width, 3), np.int32) for name in ("self", "cross")}
        self.decided = k.upload([k.make("KdtwResult")] * width)
        self.struct = k.make(
            "KdtwDraft", state=self.state, rows=self.rows, first_allowed=k.device.array(self.first),
            stops=k.upload([k.make("KdtwStop", id=id_, waits_for=k_) for id_, k_ in STOPS]), width=width,
            stop_count=len(STOPS), seed=SEED, stream=0, vocabulary=VOCABULARY, min_confidence=CONFIDENCE, teachers=2,
            by_entropy=int(unsure), max_entropy=ENTROPY, max_uniform=UNIFORM, call_stream=3,
            marked=self.marked, requests=self.requests, decided=self.decided, picks=self.taken,
            **self.lists, **self.places,
        )  # fmt: skip

    def calls(self, row: int) -> bool:
        """Whether the ledger lets a control call for the row's next output."""
        return self.positions[row] + len(self.picks[row]) >= self.first_call[row]

    def decide(self, ids: list[int], confidences: list[float], entropies: list[float], finite: list[int]) -> None:
        """Writes what a step picks, and follows the rules. A pick that need not know its entropy says 0."""
        entropies = [entropy if self.calls(row) else 0.0 for row, entropy in enumerate(entropies)]
        made = [
            self.k.make("KdtwResult", id=i, passed=1, finite=f, log_prob=-1.0, confidence=c, entropy=e)
            for i, c, e, f in zip(ids, confidences, entropies, finite)
        ]
        made += [self.k.make("KdtwResult", id=1)] * (self.width - len(ids))
        self.decided.put(np.frombuffer(b"".join(bytes(m) for m in made), np.uint8))
        if not self.go_on:
            return
        stops = dict(STOPS)
        for row, (id_, confidence, is_finite) in enumerate(zip(ids, confidences, finite)):
            if self.stands[row] != DRAFTING:
                continue
            self.picks[row].append(id_)
            position = self.positions[row] + len(self.picks[row])
            if not is_finite:
                self.stands[row] = FINISHED
            elif confidence < CONFIDENCE or entropies[row] > ENTROPY:
                self.stands[row] = 1
            elif id_ in stops:
                self.stands[row] = stops[id_] or FINISHED
            elif len(self.picks[row]) == self.limits[row]:
                self.stands[row] = row % 2 or FINISHED
            elif self.calls(row) and uniform(SEED, self.keys[row], position, 3) > UNIFORM:
                self.stands[row] = 1
        going = self.stands.count(DRAFTING)
        waits = [self.waiting[teacher - 1] + self.stands.count(teacher) for teacher in (1, 2)]
        called = any(count > 0 and count >= (self.batch or going) for count in waits)
        unseen = any(stand > 0 and seen >> (stand - 1) & 1 for stand, seen in zip(self.stands, self.unseen_by))
        self.go_on = going > 0 and not called and not unseen

    def check(self) -> None:
        """The device's state is what the rules say, and so is what the next step would read."""
        k = self.k
        (state,) = k.download("KdtwDraftState", self.state)
        assert bool(state.go_on) == self.go_on
        rows = k.download("KdtwDraftRow", self.rows)
        requests = k.download("KdtwRequest", self.requests)
        taken = k.download("KdtwResult", self.taken)
        ids, marked, banned = self.lists["ids"].numpy(), self.marked.numpy(), self.banned.numpy()
        own, cross = self.places["self"].numpy(), self.places["cross"].numpy()
        np.testing.assert_array_equal(self.lists["wanted"].numpy(), np.arange(self.width))
        assert not own[len(self.limits) :, 2].any() and not cross[len(self.limits) :, 2].any()
        for row, picks in enumerate(self.picks):
            assert rows[row].stand == self.stands[row], (row, self.stands)
            assert bool(requests[row].want_entropy) == (self.stands[row] == DRAFTING and self.calls(row))
            assert [taken[step * self.width + row].id for step in range(len(picks))] == picks
            if self.stands[row] != DRAFTING:
                assert own[row, 2] == cross[row, 2] == 0, "a row that has stopped reads at an empty place"
                assert requests[row].keep_logits is None
                continue
            position = self.positions[row] + len(picks)
            assert ids[row] == (picks[-1] if picks else 20 + row)
            assert marked[row] == (0 if picks else row % 3)
            assert own[row].tolist() == [row, position, position + 1]
            assert cross[row].tolist() == [row, position, 5 + row]
            expected = [id_ for (id_, _), first in zip(STOPS, self.first[row]) if position < first]
            assert banned[row, : requests[row].banned_count].tolist() == expected
            assert requests[row].uniform == float(uniform(SEED, self.keys[row], position, 0))
            logits = requests[row].keep_logits or 0
            assert logits == (self.logits.pointer + 4 * VOCABULARY * len(picks) if row % 2 else 0)


@case
def draft(k: Kernels) -> None:
    """What stands between steps: stops, limits, bans, draws, calls, and when a draft pauses."""
    for seed, (rows, width, waiting, batch, unsure, unseen) in enumerate(
        [
            (1, 1, (0, 0), 0, False, False),
            (3, 4, (0, 0), 0, False, False),
            (3, 4, (1, 0), 3, False, True),
            (5, 8, (0, 1), 2, False, False),
            (5, 8, (1, 1), 9, True, False),
            (6, 8, (3, 0), 5, True, True),
            (8, 8, (0, 4), 0, True, False),
        ]
    ):
        rng = np.random.default_rng(seed)
        drafts = _Draft(
            k,
            rng.integers(1, STEPS + 1, rows).tolist(),
            width,
            seed=seed,
            waiting=waiting,
            batch=batch,
            unsure=unsure,
            unseen=unseen,
        )
        k.advance(drafts.struct, 1, None)
        drafts.check()
        for _ in range(STEPS):
            ids = rng.choice([1, 6, 7, *range(10, 40)], rows, p=[0.1, 0.1, 0.05, *[0.75 / 30] * 30]).tolist()
            finite = (rng.random(rows) < 0.95).astype(int).tolist()
            confidences, entropies = (rng.choice(of, rows, p=[0.1, 0.9]).tolist() for of in ([0.2, 0.9], [1.6, 0.4]))
            drafts.decide(ids, confidences, entropies, finite)
            k.advance(drafts.struct, 0, None)
            drafts.check()
        assert not drafts.go_on


@case
def draft_in_a_loop(k: Kernels) -> None:
    """A graph repeats advance() until the rows have reached their limits; launched again it does nothing."""
    drafts = _Draft(k, [2, 5, 4], 4, seed=9, batch=99)
    k.advance(drafts.struct, 1, None)
    stream, graph, capture = k.pointer(), k.pointer(), k.make("KdtwCapture")
    k.create_stream(stream)
    go_on = drafts.state.pointer + type(k.make("KdtwDraftState")).go_on.offset
    k.begin_graph(go_on, capture, stream[0])
    k.advance(drafts.struct, 0, stream[0])
    k.end_graph(capture, graph, stream[0])
    for _ in range(5):
        drafts.decide([10, 11, 12], [0.9] * 3, [0.0] * 3, [1] * 3)
    for _ in range(2):
        k.launch_graph(graph[0], stream[0])
        k.synchronise(stream[0])
        drafts.check()
    assert [len(picks) for picks in drafts.picks] == [2, 5, 4]
    k.destroy_graph(graph[0])
    k.destroy_stream(stream[0])


CASES_OF_TESTS = list(CASES)  # what follows is large: for counting traffic

# FLAN-T5-small's products: outputs, inputs, epilogue, whether a norm comes before.
SIZE = 512
PRODUCTS = [
    (3 * 384, SIZE, "kKdtwStore", True),
    (SIZE, 384, "kKdtwAdd", False),
    (2 * 1024, SIZE, "kKdtwGatedGelu", True),
]
TOKENS = (1, 8)
SOURCE = 64  # tokens of an encoder's pass


@case
def real_sizes(k: Kernels) -> None:
    """One layer's kernels at FLAN-T5-small's sizes, halves, a token, eight and a source: what traffic is counted of."""
    size, heads, head, length, vocabulary = SIZE, 6, 64, 96, 4096
    for tokens in TOKENS:
        for outputs, inputs, epilogue, fused in PRODUCTS:
            weight, values = _weight(k, outputs, inputs, "fp16")
            x, scale = _random(tokens, inputs, seed=5), np.ones(inputs, np.float32)
            width = outputs // 2 if epilogue == "kKdtwGatedGelu" else outputs
            out = k.device.array(np.zeros((tokens, width), np.float32))
            at = (k.device.array(x), k.device.array(scale) if fused else None)
            k.linear(weight, *at, 1e-6, tokens, constants()[epilogue], out, None)
            y = (_rms(x, scale, 1e-6) if fused else x.astype(np.float64)) @ values.astype(np.float64).T
            gated = epilogue == "kKdtwGatedGelu"
            _close(out.numpy(), _gelu(y[:, :width]) * y[:, width:] if gated else y, 5e-5)
        x = _random(tokens, size)
        out = k.device.empty((tokens, size))
        k.rms_norm(k.device.array(x), k.device.array(np.ones(size, np.float32)), 1e-6, tokens, size, out, None)
        _close(out.numpy(), _rms(x, np.ones(size), 1e-6))
    for outputs, inputs, epilogue, fused in PRODUCTS:
        weight, values = _tensor_weight(k, outputs, inputs)
        norm_scale = np.ones(inputs, np.float32) if fused else None
        to, scales, x = _scaled(k, _random(SOURCE, inputs, seed=5), norm_scale)
        width = outputs // 2 if epilogue == "kKdtwGatedGelu" else outputs
        out = k.device.array(np.zeros((SOURCE, width), np.float32))
        k.linear_tensor(weight, to, scales, SOURCE, constants()[epilogue], out, None)
        _close(out.numpy(), _ended(x @ values.T, np.zeros((SOURCE, width)), epilogue))
    _attend(k, heads, head, [length], "fp16")
    logits = _random(1, vocabulary, seed=14)
    (result,) = _decide(k, logits, [_requests(k, vocabulary, want_log_prob=1)])
    assert result.id == logits.argmax()
