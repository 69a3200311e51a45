"""How a service is to run."""

from __future__ import annotations

from dataclasses import dataclass

from kdtw_fast.options import MOST_ROWS, MOST_TOKENS, check_int, check_real

MOST_BODY = 2**30
TRANSLATES = {"debian-de-en": ("de", "en")}  # shipped pairs that translate, and their languages


@dataclass(frozen=True)
class ServeOptions:
    """Limits of a service.

    Args:
        batch_size: rows decoded together, 1 to 2^16; a request's texts are rows.
        max_queue: rows that may wait for a place, >= 0; what comes beyond them is answered 429.
        max_new_tokens: longest output that a request may ask for, and gets where neither it nor the checkpoint's
            generation_config asks for less, 1 to 2^20.
        max_source_length: longest source in tokens, its prompt included, 1 to 2^20.
        max_prompts: texts of one request, >= 1.
        max_body_bytes: largest body of a request, 1 to 2^30.
        request_timeout: seconds, > 0, from a request to the end of its answer; later it is ended with an error.
        drain_timeout: seconds, > 0, that requests have to end after SIGTERM.
    """

    batch_size: int = 16
    max_queue: int = 256
    max_new_tokens: int = 256
    max_source_length: int = 512
    max_prompts: int = 64
    max_body_bytes: int = 2**20
    request_timeout: float = 300.0
    drain_timeout: float = 30.0

    def __post_init__(self) -> None:
        check_int("batch_size", self.batch_size, 1, MOST_ROWS)
        check_int("max_queue", self.max_queue, 0)
        check_int("max_new_tokens", self.max_new_tokens, 1, MOST_TOKENS)
        check_int("max_source_length", self.max_source_length, 1, MOST_TOKENS)
        check_int("max_prompts", self.max_prompts, 1)
        check_int("max_body_bytes", self.max_body_bytes, 1, MOST_BODY)
        check_real("request_timeout", self.request_timeout, 0.0, open_low=True)
        check_real("drain_timeout", self.drain_timeout, 0.0, open_low=True)
