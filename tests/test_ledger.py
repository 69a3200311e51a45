"""The ledger against exact fractions: it means the decimal that the user wrote, at every prefix."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy
import pytest
from factories import random_pair

from kdtw_fast import NativeT5, Owner, _core

# As decimals that doubles do not hold exactly: the ledger must mean what the user wrote.
FRACTIONS = ["0", "0.05", "0.1", "0.29", "0.3", "0.333", "0.5", "0.7", "0.999", "1"]


@pytest.mark.parametrize("text", FRACTIONS)
def test_ledger_allows_what_the_exact_fraction_allows(text: str) -> None:
    exact, ledger = Fraction(text), _core.Ledger(None, float(text))
    for position in range(400):
        for calls in range(0, position + 1, 7):
            assert ledger.allows(calls, position) == (calls + 1 <= exact * (position + 1)), (calls, position)


LEDGERS = [
    ({"on_tau": True}, True),
    ({"on_tau": True, "check": _core.Check.LENIENCE, "threshold": 0.5}, True),
    ({"max_uniform": 0.5}, True),
    ({"max_entropy": 1.0}, True),
    ({"draft_length": 4}, False),
    ({"draft_length": 4, "on_tau": True}, False),
    ({"min_confidence": 0.5}, False),
    ({"max_uniform": 0.5, "check": _core.Check.LENIENCE, "threshold": 0.5}, False),
    ({"draft_length": 4, "check": _core.Check.TOP_K, "threshold": 3, "checks_all": True}, False),
]


@pytest.mark.parametrize(("rules", "keeps"), LEDGERS, ids=[str(case[0]) for case in LEDGERS])
@pytest.mark.parametrize("ledger", [(None, 0.1), (3, None)])
def test_a_ledger_that_a_method_does_not_keep_is_refused(
    rules: dict[str, Any], keeps: bool, ledger: tuple[int | None, float | None]
) -> None:
    student, teacher = random_pair("noisy", 3, 43)
    models = [NativeT5.from_model(model) for model in (student, teacher)]
    method = _core.MethodRules(two_models=True, marks_teacher=True, **rules)
    special = _core.SpecialTokens(0, [1], models[0].tau_token_ids)
    decoder = _core.Decoder("cpu", models[0].core, [models[1].core], method, special)
    plain = _core.Sampling()
    row = _core.RowOptions(
        max_new_tokens=20,
        min_new_tokens=20,
        student_sampling=plain,
        teacher_sampling=plain,
        seed=0,
        max_seconds=0.0,
    )
    options = _core.SessionOptions(
        row=row,
        teacher_batch=0,
        want_log_probs=False,
        want_reads=False,
        threads=1,
    )
    session = _core.Session(decoder, options, 1, 8)
    if not keeps:
        for bounds in ((_core.Ledger(*ledger), []), (_core.Ledger(), [_core.Ledger(*ledger)])):
            with pytest.raises(ValueError, match="asks no ledger"):
                session.add(0, bounds[0], [5, 6, 1], [], bounds[1])
    session.add(0, _core.Ledger(*ledger) if keeps else _core.Ledger(), [5, 6, 1], [])
    result = session.run(True, 0, None)
    if keeps:
        written = numpy.isin(result["owners"][0, 1:], [Owner.TEACHER, Owner.CORRECTED]).cumsum()
        limit = numpy.arange(1, 21) * ledger[1] + 1e-9 if ledger[1] is not None else ledger[0]
        assert (written <= limit).all()


@pytest.mark.parametrize("text", FRACTIONS)
def test_no_prefix_exceeds_a_ledger_that_is_used_whenever_it_allows(text: str) -> None:
    exact, ledger, calls = Fraction(text), _core.Ledger(None, float(text)), 0
    for position in range(1000):
        calls += ledger.allows(calls, position)
        assert calls <= exact * (position + 1)
    assert calls == exact * 1000 // 1  # and all of it can be used
