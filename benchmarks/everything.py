"""Measure all settings of the plan, each in a process of its own, and write the report."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from benchmarks import _plan, report
from benchmarks._own_servers import NoServerError, server
from benchmarks._plan import Setting
from benchmarks._report import command, without_password
from benchmarks._saved import DONE, INDEX, Index, NotAResultError, Outcome, read_index

ROOT = Path(__file__).parents[1]
LIMIT = 1200.0  # seconds for one setting
ENDING = 30.0  # seconds for an interrupted process to remove what it wrote to a server
LOOK = 0.2  # seconds between two looks at whether the process is to be interrupted
INTERRUPTED = "not measured: interrupted"


@dataclass(slots=True)
class Stop:
    """Whether somebody has pressed Ctrl-C.

    A KeyboardInterrupt will not do: it may come while a process is being started, and then nobody
    would end that process.
    """

    asked: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="take minutes instead of some 35; for a first look")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("benchmarks-report"), help="where all is written (%(default)s)"
    )
    parser.add_argument(
        "--store", nargs="+", choices=("memory", "file", "redis", "mongo"), help="only what is measured with these"
    )
    for store in ("redis", "mongo"):
        parser.add_argument(
            f"--{store}", metavar="URL", help="a server to measure with, instead of one that is started for it"
        )


def main(args: argparse.Namespace) -> int:
    """Measure, report, and return the exit status.

    It is 1 if anything was skipped, failed or void; 2 if nothing could begin.
    """
    try:
        report.check_plots()
        args.out.mkdir(parents=True, exist_ok=True)
        _clear(args.out)
    except (OSError, NotAResultError, report.NoPlotsError) as exc:
        print(exc, file=sys.stderr)
        return 2
    settings = _plan.settings(args.quick, args.store)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    servers: dict[str, str] = {}
    outcomes: list[Outcome] = []
    with ExitStack() as stack, _interruptible() as stop:
        urls, absent = _servers(stack, {"redis": args.redis, "mongo": args.mongo}, settings, servers)
        for number, setting in enumerate(settings, 1):
            line, started, outcome = command(setting.argv(args.quick)), monotonic(), INTERRUPTED
            if not stop.asked:
                print(f"[{number}/{len(settings)}] {line}", flush=True)
            if setting.server in absent:
                outcome = f"skipped: {absent[setting.server]}"
            elif not stop.asked:
                url = ["--url", urls[setting.server]] if setting.server else []
                outcome = _run([*setting.argv(args.quick), *url], args.out.resolve() / f"{setting.name}.json", stop)
            outcomes.append(Outcome(setting.name, line, round(monotonic() - started, 1), outcome))
            if not stop.asked:
                print(f"    {outcome}, {outcomes[-1].seconds:.0f} s", flush=True)
    Index("quick" if args.quick else "full", began, servers, tuple(outcomes)).write(args.out)
    for one in outcomes:
        if one.outcome != DONE:
            print(f"{one.name}: {one.outcome}", file=sys.stderr)
    status = report.write(args.out)
    return 130 if stop.asked else status  # as shells say that Ctrl-C ended a command


def _clear(out: Path) -> None:
    """Remove the results of an earlier `all`, which would look like those of this one.

    Other files stay.
    """
    for outcome in read_index(out).settings:
        # The index may be somebody else's: a name in it must not lead out of the folder.
        if Path(outcome.name).name == outcome.name:
            (out / f"{outcome.name}.json").unlink(missing_ok=True)
    (out / INDEX).unlink(missing_ok=True)


def _servers(
    stack: ExitStack, given: dict[str, str | None], settings: Sequence[Setting], versions: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the URLs of the servers that the settings need, and why a server is missing.

    The servers run until *stack* ends. Fills in the *versions*.
    """
    urls: dict[str, str] = {}
    absent: dict[str, str] = {}
    for store in dict.fromkeys(setting.server for setting in settings if setting.server):
        try:
            urls[store], versions[store] = stack.enter_context(server(store, given[store]))
        except NoServerError as exc:
            absent[store] = str(exc)
    return urls, absent


def _run(argv: Sequence[str], file: Path, stop: Stop) -> str:
    """Run one command, which writes *file*; return DONE, or what went wrong."""
    said, ended = "", ""
    # A process session of its own, so that Ctrl-C reaches the process only once: from here.
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *argv, "--json", str(file)],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        until = monotonic() + LIMIT
        while process.returncode is None:
            try:
                said, _ = process.communicate(timeout=LOOK)
            except subprocess.TimeoutExpired:
                if stop.asked or monotonic() > until:
                    ended = INTERRUPTED if stop.asked else f"failed: it took more than {LIMIT:g} s"
                    _interrupt(process)
    if process.returncode == 0 and file.exists() and not ended:
        return DONE
    last = next(
        (without_password(line.strip()) for line in reversed(said.splitlines()) if line.strip()), "nothing said"
    )
    if process.returncode == 1 and file.exists() and not ended:  # a counter was wrong: the report says that it is void
        return f"void: {last}"
    file.unlink(missing_ok=True)  # it may be only half of a result
    return ended or f"failed with status {process.returncode}: {last}"


def _interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


@contextmanager
def _interruptible() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of ending: first the processes started here have to end.

    The signals are noted also where SIGINT is ignored, as with `nohup … &`: the processes started
    here would ignore it, too.
    """
    stop = Stop()

    def ask(number: int, frame: object) -> None:
        if not stop.asked:
            print("interrupted: the report will have what is there", file=sys.stderr)
        stop.asked = True

    before = {one: signal.signal(one, ask) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
