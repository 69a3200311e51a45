"""The thread pool across fork and across Python threads: the same tokens, never a hang, never a crash."""

from __future__ import annotations

import multiprocessing
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from factories import T5Shape, random_t5

from kdtw_fast import SingleModelDecoder

# Wide enough that its products are shared between threads.
SHAPE = T5Shape("processes", 256, 64, 4, 1024, 2, encoder_layers=1)
SOURCE = torch.randint(2, 2000, (3, 17), generator=torch.Generator().manual_seed(5))


def make_decoder() -> SingleModelDecoder:
    return SingleModelDecoder(random_t5(SHAPE, 2000, seed=3), num_threads=2)


def decode(decoder: SingleModelDecoder) -> list[list[int]]:
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


def message_when_memory_is_short(decoder: SingleModelDecoder) -> str:
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # a child starts with all that its parent has mapped
    limit = pages * resource.getpagesize() + (2 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        decoder.generate(SOURCE, max_new_tokens=2**20)
    except MemoryError as error:
        decode(decoder)  # still usable
        return str(error)
    return "no error"


def test_caches_that_do_not_fit_are_a_sentence() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    decoder = make_decoder()
    child = context.Process(target=lambda: queue.put(message_when_memory_is_short(decoder)))
    child.start()
    try:
        assert "cannot allocate" in queue.get(timeout=120)
    finally:
        child.join(timeout=10)
        child.kill()


def test_decoders_share_the_pool_between_threads() -> None:
    decoder = make_decoder()
    expected = decode(decoder)
    with ThreadPoolExecutor(4) as executor:
        for result in executor.map(lambda _: decode(decoder), range(12)):
            assert result == expected
