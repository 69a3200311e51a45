"""What CUDA kernels are held to on a simulated device: the self-test's checks, drafts, and sizes of real models.

A case runs in any schedule, checked or not. It raises AssertionError where a result is wrong, and RuntimeError (of
which SimulatedError is one) where the device objects.
"""

from collections.abc import Callable

import numpy as np

from gpu_proof.simulated import SimulatedDevice
from gpu_proof.table import Kernels, constants
from kdtw_fast.random import uniform
from kdtw_fast.selftest.checks import Trial
from kdtw_fast.selftest.numpy_twins import normal, product, rms
from kdtw_fast.selftest.operations import NOTHING, OPERATIONS

CASES: dict[str, Callable[[Kernels], None]] = {}  # that call the kernels' own interface
CHECKS = {check.name: check for check in OPERATIONS}  # that call the engine
# What runs in every schedule.
CASES_OF_TESTS = [check.name for check in OPERATIONS]


def case(function: Callable[[Kernels], None]) -> Callable[[Kernels], None]:
    """Registers a case under its name."""
    CASES[function.__name__] = function
    CASES_OF_TESTS.append(function.__name__)
    return function


def run(name: str, device: SimulatedDevice, trial: type[Trial] = Trial) -> None:
    """Runs one case, and frees what it allocated."""
    if name in CASES:
        try:
            CASES[name](Kernels(device))
        finally:
            device.release()
        return
    with device.engine() as where:
        CHECKS[name].run(trial(where))


@case
def empty_place(k: Kernels) -> None:
    """A token of length 0, of a row that has stopped, stores nothing and attends to nothing."""
    keys, values = k.device.empty((1, 1, 2, 4)), k.device.empty((1, 1, 2, 4))
    sizes = {"rows": 1, "heads": 1, "head_size": 4, "stride": 4, "capacity": 2}
    cache = k.make("KdtwCache", keys=keys, values=values, format=constants()["kKdtwFp32"], **sizes)
    tokens = k.device.array(np.array([(0, 0, 1), (0, 0, 0)], np.int32))  # row, position, length
    wanted = np.arange(8, dtype=np.float32).reshape(2, 4)
    k.store(cache, tokens, 2, k.device.array(wanted), k.device.array(-wanted), 4, None)
    np.testing.assert_array_equal(keys.numpy()[0, 0, 0], wanted[0])
    np.testing.assert_array_equal(values.numpy()[0, 0, 0], -wanted[0])
    out, no_bias = k.device.empty((2, 4)), k.make("PositionBias", table=None, lowest=0, highest=0)
    k.attend(cache, tokens, 2, k.device.array(wanted), 4, no_bias, out, None)
    np.testing.assert_array_equal(out.numpy(), [-wanted[0], np.zeros(4)])


# Drafts: ids that stop a row, and the teacher that it waits for then.
STOPS = [(1, 0), (6, 1), (7, 2)]
OUTPUTS = 7  # an output's most tokens; drafts are STEPS at most
STEPS, IDS, SEED, CONFIDENCE, ENTROPY, UNIFORM = 6, 40, 2**40 + 7, 0.25, 1.5, 0.8
NEVER = 2**31 - 1
FINISHED, DRAFTING = constants()["kFinished"], constants()["kDrafting"]


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
        checks_all: bool = False,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.ended = 1 if checks_all else FINISHED
        self.k, self.width, self.waiting, self.batch = k, width, waiting, batch
        self.limits = limits
        self.keys = [2**50 + row for row in range(len(limits))]
        self.first = rng.integers(0, 5, (width, len(STOPS))).astype(np.int32)
        # A row's limit is its output's end, or (odd rows) that of its drafts.
        self.positions = [
            int(rng.integers(0, OUTPUTS - limit)) if row % 2 else OUTPUTS - limit for row, limit in enumerate(limits)
        ]
        self.picks: list[list[int]] = [[] for _ in limits]  # ids, by row
        self.stands = [DRAFTING] * len(limits)  # or FINISHED, or the teacher that the row waits for
        self.first_call = rng.integers(0, 6, len(limits)).tolist() if unsure else [NEVER] * len(limits)
        self.unseen_by = rng.integers(0, 4, len(limits)).tolist() if unseen else [0] * len(limits)
        self.go_on = True
        self.logits = k.device.empty((STEPS, IDS))
        first_allowed = k.device.array(self.first)
        rows = [
            k.make(
                "DraftRow", key=key, keep_logits=self.logits if row % 2 else None, id=20 + row, marked=row % 3,
                row=row, position=position, source_length=5 + row, drafts=STEPS - limit if row % 2 else 0, picks=0,
                stand=DRAFTING, first_call=self.first_call[row], unseen_by=self.unseen_by[row],
                first_allowed=first_allowed.pointer + 4 * len(STOPS) * row,
            )
            for row, (key, position, limit) in enumerate(zip(self.keys, self.positions, limits))
        ]  # fmt: skip
        rows += [k.make("DraftRow", stand=FINISHED)] * (width - len(limits))
        pause = k.make("DraftPause", batch=batch, at_finish=0, at_unseen=1, most_steps=STEPS + 1)
        pause.waiting[:2] = waiting
        state = k.make("KdtwDraftState", pause=pause, steps=0, go_on=0)
        self.state = k.upload([state])
        self.rows = k.upload(rows)
        self.taken = k.device.empty(STEPS * width * len(bytes(k.make("PickResult"))), np.uint8)
        self.lists = {name: k.device.empty(width, np.int32) for name in ("ids", "wanted")}
        self.marked = k.device.empty(width, np.uint8)
        self.banned = k.device.empty((width, len(STOPS)), np.int32)
        self.requests = k.upload([k.make("PickRequest")] * width)
        self.places = {name: k.device.empty((width, 3), np.int32) for name in ("self", "cross")}
        self.decided = k.upload([k.make("PickResult")] * width)
        rules = k.make(
            "DraftRules", stops=k.upload([k.make("StopToken", id=id_, teacher=k_) for id_, k_ in STOPS]),
            stop_count=len(STOPS), seed=SEED, vocabulary=IDS, min_confidence=CONFIDENCE, teachers=2,
            max_entropy=ENTROPY if unsure else np.inf, max_uniform=UNIFORM, draft_length=STEPS, most_outputs=OUTPUTS,
            most_drafted=OUTPUTS, checks_all=checks_all, sampling=k.make("Sampling", temperature=0.5, top_p=1.0),
        )  # fmt: skip
        self.struct = k.make(
            "KdtwDraft", rules=rules, state=self.state, rows=self.rows, banned=self.banned, width=width,
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
            self.k.make("PickResult", id=i, passed=1, finite=f, log_prob=-1.0, confidence=c, entropy=e)
            for i, c, e, f in zip(ids, confidences, entropies, finite)
        ]
        made += [self.k.make("PickResult", id=1)] * (self.width - len(ids))
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
                self.stands[row] = stops[id_] or self.ended
            elif len(self.picks[row]) == self.limits[row]:
                self.stands[row] = row % 2 or self.ended
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
        rows = k.download("DraftRow", self.rows)
        requests = k.download("PickRequest", self.requests)
        taken = k.download("PickResult", self.taken)
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
            assert logits == (self.logits.pointer + 4 * IDS * len(picks) if row % 2 else 0)


@case
def draft(k: Kernels) -> None:
    """What stands between steps: stops, limits, bans, draws, calls, and when a draft pauses."""
    for seed, (rows, width, waiting, batch, unsure, unseen, checks_all) in enumerate(
        [
            (1, 1, (0, 0), 0, False, False, False),
            (3, 4, (0, 0), 0, False, False, True),
            (3, 4, (1, 0), 3, False, True, False),
            (5, 8, (0, 1), 2, False, False, True),
            (5, 8, (1, 1), 9, True, False, False),
            (6, 8, (3, 0), 5, True, True, False),
            (8, 8, (0, 4), 0, True, False, False),
            (4, 4, (0, 2), 3, False, False, False),  # of two teachers neither has enough, both together have
            (6, 8, (0, 2), 3, False, False, False),
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
            checks_all=checks_all,
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


# ---------------------------------------------------------------- sizes of real models, for counting traffic
# FLAN-T5-small's products: outputs, inputs; after a norm, added to what was there, or gated.
SIZE, VOCABULARY = 512, 4096
NORMED, ADDED, GATED = (3 * 384, SIZE), (SIZE, 384), (2 * 1024, SIZE)
TOKENS = (1, 8)
SOURCE = 64  # tokens of an encoder's pass


def real_sizes(trial: Trial) -> None:
    """One layer's kernels in fp16: a token, eight tokens and a source; and a token's attention, head and pick."""
    operations, rng = trial.operations, np.random.default_rng(0)
    weights = [normal(rng, *shape) * np.float32(shape[1] ** -0.5) for shape in (NORMED, ADDED, GATED)]
    scale = np.ones(SIZE, np.float32)
    for tokens, encoder in [*((tokens, False) for tokens in TOKENS), (SOURCE, True)]:
        x, inner = normal(rng, tokens, SIZE), normal(rng, tokens, ADDED[1])
        out = operations.norm_linear(weights[0], x, scale, 1e-6, "fp16", encoder)
        trial.close(out, product(rms(x, scale, 1e-6), weights[0], "fp16"), 1e-2, "after a norm")
        out = operations.linear(weights[1], inner, "fp16", np.ones((tokens, SIZE), np.float32), encoder)
        trial.close(out, product(inner, weights[1], "fp16") + 1, 1e-2, "added")
        operations.norm_linear_activate(weights[2], x, scale, 1e-6, True, "fp16", encoder)
        if not encoder:
            operations.rms_norm(x, scale, 1e-6)
    length, width = 96, 6 * 64
    stored = [(0, position) for position in range(length)]
    keys, values, query = normal(rng, length, width), normal(rng, length, width), normal(rng, 1, width)
    operations.attend(1, length + 3, 6, "fp16", stored, keys, values, [(0, length - 1, length)], query, NOTHING, 0)
    head, hidden = normal(rng, VOCABULARY, SIZE), normal(rng, 1, SIZE)
    (answer,), logits = operations.pick(head, hidden, [{"want_log_prob": True}], "fp16")
    assert answer[0] == logits[0].argmax()
