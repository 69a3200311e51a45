"""The soak, short: many threads, every way in, the bits of one; and it tells where they differ, or what grows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.soak import Soak, Soaked


def test_threads_give_the_bits_of_one() -> None:
    soak = Soak(threads=8, seed=3, rows=1)
    soak.round(0, 15)
    assert soak.soaked.wrong == []
    assert len(soak.soaked.counts) == 12, "a way in was not tried"
    soak.cases = [[replace(case, says=case.says | {"drafted": b""}) for case in cases] for cases in soak.cases]
    soak.round(1, 3)
    assert any("other bits" in said for said in soak.soaked.wrong)
    soak.close()


@pytest.mark.parametrize("place", range(4))
def test_what_grows_is_told(place: int) -> None:
    steady = [(500.0, 400_000, 4, 6)] * 20
    assert Soaked(held=steady).grown() == []
    growing = [tuple(n + 500 * i * (j == place) for j, n in enumerate(held)) for i, held in enumerate(steady)]
    assert len(Soaked(held=growing).grown()) == 1  # type: ignore[arg-type]
