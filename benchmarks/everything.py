"""Measure all settings of the plan, each in a process of its own, and write the report."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import NoReturn

from benchmarks import _plan, report
from benchmarks._own_servers import NoServerError, server
from benchmarks._plan import Setting
from benchmarks._report import without_password
from benchmarks._saved import DONE, INDEX, Index, NotAResultError, Outcome, read_index

ROOT = Path(__file__).parents[1]
LIMIT = 1200.0  # seconds for one setting
ENDING = 30.0  # seconds for a process that was interrupted to clear what it has written to a server
INTERRUPTED = 130  # the exit status that shells give to a command that Ctrl-C ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="in minutes rather than in most of an hour; for a first look"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("benchmarks-report"), help="where all is written (%(default)s)"
    )
    parser.add_argument(
        "--store", nargs="+", choices=("memory", "file", "redis", "mongo"), help="only what is measured with these"
    )
    for store in ("redis", "mongo"):
        parser.add_argument(
            f"--{store}", metavar="URL", help="of a server to measure with, instead of one started for it"
        )


def main(args: argparse.Namespace) -> int:
    """Measure, report, and return the exit status: 1 if anything was skipped, failed or void; 2 if nothing could begin."""
    try:
        report.check_plots()
        args.out.mkdir(parents=True, exist_ok=True)
        _clear(args.out)
    except (OSError, NotAResultError, report.NoPlotsError) as exc:
        print(exc, file=sys.stderr)
        return 2
    settings = _plan.settings(args.quick, args.store)
    began, status = datetime.now(UTC).isoformat(timespec="seconds"), 0
    servers: dict[str, str] = {}
    outcomes: list[Outcome] = []
    with ExitStack() as stack, _terminated_as_interrupted():
        try:
            urls, absent = _servers(stack, {"redis": args.redis, "mongo": args.mongo}, settings, servers)
            for number, setting in enumerate(settings, 1):
                print(f"[{number}/{len(settings)}] {_command(setting, args.quick)}", flush=True)
                outcomes.append(_measure(setting, args.quick, args.out, urls, absent))
                print(f"    {outcomes[-1].outcome}, {outcomes[-1].seconds:.0f} s", flush=True)
        except KeyboardInterrupt:
            print("interrupted: the report has what is there", file=sys.stderr)
            status = INTERRUPTED
    rest = settings[len(outcomes) :]
    outcomes += [
        Outcome(setting.name, _command(setting, args.quick), 0.0, "not measured: interrupted") for setting in rest
    ]
    Index("quick" if args.quick else "full", began, servers, tuple(outcomes)).write(args.out)
    for one in outcomes:
        if one.outcome != DONE:
            print(f"{one.name}: {one.outcome}", file=sys.stderr)
    return max(status, report.write(args.out))


def _clear(out: Path) -> None:
    """Remove the results of an earlier `all`, which would be taken for this one's; other files stay."""
    for outcome in read_index(out).settings:
        if Path(outcome.name).name == outcome.name:  # what somebody wrote there names no file elsewhere
            (out / f"{outcome.name}.json").unlink(missing_ok=True)
    (out / INDEX).unlink(missing_ok=True)


def _servers(
    stack: ExitStack, given: dict[str, str | None], settings: Sequence[Setting], versions: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the URLs of the servers that the settings need, until *stack* ends; and why there is none. Fill in the *versions*."""
    urls: dict[str, str] = {}
    absent: dict[str, str] = {}
    for store in dict.fromkeys(setting.server for setting in settings if setting.server):
        try:
            urls[store], versions[store] = stack.enter_context(server(store, given[store]))
        except NoServerError as exc:
            absent[store] = str(exc)
    return urls, absent


def _command(setting: Setting, quick: bool) -> str:
    return " ".join(["python -m benchmarks", *setting.argv(quick)])


def _measure(setting: Setting, quick: bool, out: Path, urls: dict[str, str], absent: dict[str, str]) -> Outcome:
    started, outcome = monotonic(), f"skipped: {absent.get(setting.server)}"
    if setting.server not in absent:
        file = out.resolve() / f"{setting.name}.json"
        url = ["--url", urls[setting.server]] if setting.server else []
        outcome = _run([*setting.argv(quick), *url, "--json", str(file)], file)
    return Outcome(setting.name, _command(setting, quick), round(monotonic() - started, 1), outcome)


def _run(argv: Sequence[str], file: Path) -> str:
    """Run one command, which writes *file*; return DONE, or what went wrong."""
    # A session of its own, so that one Ctrl-C reaches the process once: from here.
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *argv],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate(timeout=LIMIT)
        except BaseException as exc:
            _interrupt(process)
            file.unlink(missing_ok=True)  # it may be half a result
            if isinstance(exc, subprocess.TimeoutExpired):
                return f"failed: it took more than {LIMIT:.0f} s"
            raise
    if process.returncode == 0 and file.exists():
        return DONE
    last = (without_password(line.strip()) for line in reversed(said.splitlines()) if line.strip())
    if process.returncode == 1 and file.exists():  # a counter was wrong: the report says that it is void
        return f"void: {next(last, '')}"
    file.unlink(missing_ok=True)
    return f"failed with status {process.returncode}: {next(last, 'it said nothing')}"


def _interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=ENDING)
    except BaseException as exc:
        process.kill()
        if not isinstance(exc, subprocess.TimeoutExpired):
            raise  # a second Ctrl-C


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: it would end this process and leave the others behind."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
