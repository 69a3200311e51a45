"""A Ray Serve application: the service of `kdtw serve` as an ingress, with as many replicas as are asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve

from kdtw_fast.methods import find_method
from kdtw_fast.options import check_int, check_real
from kdtw_fast.pairs import DEFAULT_PAIR, pair_folder
from kdtw_fast.ray.stage import assigned_cpus, load_pair_or_folders, placed
from kdtw_fast.serve.settings import TRANSLATES, ServeOptions

_CLOSING = 5.0  # seconds beyond the drain that a replica has to end


def deployment(
    pair: str | None = None,
    *,
    student: str | Path | None = None,
    teacher: str | Path | list[str | Path] | None = None,
    tokenizer: str | Path | None = None,
    name: str | None = None,
    method: str | None = None,
    replicas: int | tuple[int, int] = 1,
    target_ongoing_requests: float | None = None,
    num_cpus: int = 1,
    api_key: str | None = None,
    languages: tuple[str, str] | None = None,
    dtype: str = "auto",
    teacher_dtype: str | None = None,
    cache: bool | None = None,
    generation_config: Mapping[str, Any] | str | None = None,
    limits: ServeOptions | None = None,
) -> serve.Application:
    """A pair behind HTTP on a Ray cluster, for ``serve.run``: the endpoints, answers and errors of ``kdtw serve``.

    Every replica holds the whole service and answers bit for bit as the others do. Of models in folders the replicas of
    a machine share one packed file. A replica that is stopped ends the requests that it has first.

    Args:
        pair, student, teacher, tokenizer, dtype, teacher_dtype, cache, generation_config: as for
            :class:`kdtw_fast.ray.Decode`.
        name: what requests call the model; None = the pair's name, or the student's folder's.
        method: of requests that name none; None = Training Wheels where the pair can.
        replicas: how many, or the fewest (0: none while nobody asks) and the most, between which their number follows
            the requests under way.
        target_ongoing_requests: so many for each replica, above which there will be more; None = ``batch_size``.
        num_cpus: of each replica, which are its threads.
        api_key: what requests must bring as ``Authorization: Bearer KEY``; None = nothing. The cluster keeps it.
        languages: codes of the source's and the output's language, of a pair that translates.
        limits: of each replica; None = ``ServeOptions()``. What more than ``max_queue`` requests wait for, at least
            1, is 503.

    Raises:
        TypeError, ValueError: a wrong argument. What is wrong with the models is told by ``serve.run``.
    """
    limits = limits or ServeOptions()
    several = isinstance(replicas, tuple)
    least, most = replicas if isinstance(replicas, tuple) else (replicas, replicas)
    check_int("replicas", least, 0 if several else 1)
    check_int("replicas", most, max(1, least))
    check_int("num_cpus", num_cpus, 1)
    if target_ongoing_requests is not None:
        check_real("target_ongoing_requests", target_ongoing_requests, 0.0, open_low=True)
    if method is not None:
        find_method(method)
    if api_key is not None and not api_key.strip():
        raise ValueError("the API key is empty; leave it out, or give one")
    first = teacher[0] if isinstance(teacher, list) else teacher
    folder = student or first
    if folder is None:
        pair_folder(pair or DEFAULT_PAIR)  # an unknown one is told here
        languages = languages or TRANSLATES.get(pair or DEFAULT_PAIR)
    called = name or (Path(folder).resolve().name if folder is not None else pair or DEFAULT_PAIR)
    if not re.fullmatch(r"[\w.:-]+", called):
        raise ValueError(f"name must be of letters, digits and ._:-, got {called!r}; give another with name=…")
    # A pair, or what there is of one: the methods that it lacks models for are not offered.
    given = [role for role, place in (("student", student), ("teacher", teacher)) if place]
    roles = tuple(given) or ("student", "teacher")
    where = pair, placed(student), placed(teacher), placed(tokenizer), dtype, teacher_dtype, "cpu", cache

    def build() -> Any:
        """The application, made in the replica."""
        from kdtw_fast.serve.app import Service
        from kdtw_fast.serve.served import Served

        models, words = load_pair_or_folders(roles, *where)
        served = Served(called, models, words, limits, method, assigned_cpus(), generation_config)
        return Service(served, api_key, languages).app()

    told_replicas: dict[str, Any] = {"num_replicas": least}
    if several:
        target = limits.batch_size if target_ongoing_requests is None else target_ongoing_requests
        scale = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target}
        told_replicas = {"autoscaling_config": scale}
    made = serve.deployment(
        serve.ingress(build)(),
        name=called,
        ray_actor_options={"num_cpus": num_cpus},
        max_ongoing_requests=2 * limits.batch_size,  # a batch, and what follows it without a pause
        max_queued_requests=max(1, limits.max_queue),  # Ray's fewest
        graceful_shutdown_timeout_s=limits.drain_timeout + _CLOSING,
        **told_replicas,
    )
    return made.bind()
