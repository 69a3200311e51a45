"""A service under load, and with faults.

    python -m bench.serving load [--record]                # tokens/s and latencies, beside other ways to serve
    python -m bench.serving faults [--requests 10000]      # disconnects, malformed bodies, slow readers, SIGTERM

`load` says how many tokens a second come through `kdtw serve`, beside `decoder.stream` with as many rows and beside
Hugging Face's generate (and CTranslate2, where it is installed) in a Starlette application: of the shipped pair, whose
decoding is cheap, and of a pair of the size that people serve. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import sys

from bench.regions import BENCHMARKS, write_region
from bench.serving_faults import faults
from bench.serving_load import recorded


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    loads = commands.add_parser("load")
    loads.add_argument("--clients", default="1,8,32")
    loads.add_argument("--turns", type=int, default=3)
    loads.add_argument("--seconds", type=float, default=1.2, help="of a turn")
    loads.add_argument("--record", action="store_true", help="into docs/benchmarks.md")
    broken = commands.add_parser("faults")
    broken.add_argument("--requests", type=int, default=10_000)
    broken.add_argument("--clients", type=int, default=16)
    broken.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.command == "load":
        text = recorded([int(one) for one in given.clients.split(",")], given.turns, given.seconds)
        print(text)
        if given.record:
            write_region(BENCHMARKS, "serving", text)
        return
    told, good = faults(given.requests, given.clients, given.seed)
    print(told)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
