"""The command line: one subcommand for each question."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

try:
    import rich  # noqa: F401
    from pymongo.errors import ConnectionFailure
    from redis.exceptions import ConnectionError as RedisConnectionError
except ModuleNotFoundError as exc:
    sys.exit(f"the benchmarks need {exc.name}, which is not installed: pip install '.[bench]'")

from actorbot.errors import StoreUnavailableError
from benchmarks import (
    activation,
    churn,
    cluster,
    compare,
    deploy,
    drain,
    everything,
    hotkey,
    journal,
    offered,
    outage,
    peers,
    policies,
    report,
    residents,
    session,
)

QUESTIONS = {
    "session": session,
    "residents": residents,
    "activation": activation,
    "offered": offered,
    "journal": journal,
    "hotkey": hotkey,
    "churn": churn,
    "policies": policies,
    "outage": outage,
    "drain": drain,
    "deploy": deploy,
    "cluster": cluster,
    "peers": peers,
}
COMMANDS = {"all": everything, "report": report, "compare": compare}  # these work on the answers


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure actorbot; benchmarks/README.md says how."
    )
    questions = parser.add_subparsers(required=True, metavar="{" + ",".join((*QUESTIONS, *COMMANDS)) + "}")
    for name, module in {**QUESTIONS, **COMMANDS}.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        question = questions.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(question)
        if name in QUESTIONS:
            question.add_argument("--json", metavar="FILE", help="write all figures there, too")
        question.set_defaults(main=module.main, question=name)
    args = parser.parse_args(argv)
    try:
        status: int = args.main(args)
    except (ConnectionFailure, RedisConnectionError, StoreUnavailableError) as exc:
        print(f"the store cannot be reached: {exc}. Start its server, or name another one with --url", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
