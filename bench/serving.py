"""A service under load, and with faults.

    python -m bench.serving load [--record]                # tokens/s and latencies, beside other ways to serve
    python -m bench.serving cost                           # processor time of an answer, by thread
    python -m bench.serving faults [--requests 10000]      # disconnects, malformed bodies, slow readers, SIGTERM

`load` says how many tokens a second come through `kdtw serve`, beside `decoder.stream` with as many rows and beside
Hugging Face's generate (and CTranslate2, where it is installed) in a Starlette application: of the shipped pair, whose
decoding is cheap, and of a pair of the size that people serve. Wants a quiet machine; `cost` hardly needs one.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bench.regions import BENCHMARKS, write_region

app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def load(
    clients: Annotated[str, typer.Option(help="How many, with commas.")] = "1,8,32",
    turns: int = 3,
    seconds: Annotated[float, typer.Option(help="Of a turn.")] = 1.2,
    record: Annotated[bool, typer.Option("--record", help="Into docs/benchmarks.md.")] = False,
) -> None:
    """Tokens a second and latencies."""
    from bench.serving_load import recorded

    print(text := recorded([int(one) for one in clients.split(",")], turns, seconds))
    if record:
        write_region(BENCHMARKS, "serving", text)


@app.command()
def cost(clients: int = 8, requests: int = 600) -> None:
    """Processor time of an answer, by thread, beside that of the same texts in `decoder.stream`."""
    from bench.serving_cost import costs_table

    print(costs_table(clients, requests))


@app.command()
def faults(requests: int = 10_000, clients: int = 16, seed: int = 1) -> None:
    """Requests with faults, and what becomes of answers and memory."""
    from bench.serving_faults import campaign

    told, good = campaign(requests, clients, seed)
    print(told)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    app()
