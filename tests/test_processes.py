"""The thread pool across fork and across Python threads: the same tokens, and never a hang."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import torch
from factories import Shape, random_t5

from kdtw_fast import GreedyDecoder

# Wide enough that its products are shared between threads.
SHAPE = Shape(256, 64, 4, 1024, 1, 2, "gated-gelu", tied=False, scaled=False)
SOURCE = torch.randint(2, 2000, (3, 17), generator=torch.Generator().manual_seed(5))


def make_decoder() -> GreedyDecoder:
    return GreedyDecoder(random_t5(SHAPE, 2000, seed=3), num_threads=2)


def decode(decoder: GreedyDecoder) -> list[list[int]]:
    return decoder.generate(SOURCE, max_new_tokens=12, min_new_tokens=12).sequences.tolist()


def test_a_forked_child_decodes_the_same() -> None:
    decoder = make_decoder()
    expected = decode(decoder)  # the parent's pool is running now
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(decode(decoder)))
    child.start()
    try:
        assert queue.get(timeout=120) == expected
    finally:
        child.join(timeout=10)
        child.kill()
    assert decode(decoder) == expected  # and the parent goes on


def test_decoders_share_the_pool_between_threads() -> None:
    decoder = make_decoder()
    expected = decode(decoder)
    with ThreadPoolExecutor(4) as executor:
        for result in executor.map(lambda _: decode(decoder), range(12)):
            assert result == expected
