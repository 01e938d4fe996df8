"""The command line: one subcommand for each question."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import activation, churn, drain, hotkey, journal, offered, outage, policies, residents, session

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
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure actorbot; benchmarks/README.md says how."
    )
    questions = parser.add_subparsers(required=True, metavar="{" + ",".join(QUESTIONS) + "}")
    for name, module in QUESTIONS.items():
        question = questions.add_parser(name, help=module.__doc__, description=module.__doc__)
        module.add_arguments(question)
        question.add_argument("--json", metavar="FILE", help="write all figures there, too")
        question.set_defaults(main=module.main, question=name)
    args = parser.parse_args(argv)
    status: int = args.main(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
