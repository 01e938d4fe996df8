"""How actorbot compares with what bot authors use today.

Each peer runs in a process of its own, with an environment of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks import _peers, _report
from benchmarks._peer_env import ENVIRONMENTS, ROOT, MissingPeerError, default_folder, make, run
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import DATABASE, URLS, Place
from benchmarks._workload import Workload, make_workload

IN_FLIGHT = 64
POLICY = "write-behind:max_delay=0.5"
PATIENCE = 180.0  # seconds beyond those for events: to start, to flush, to be read
PROGRAMS = Path(_peers.__file__).parent
ALL = ("memory", "redis", "mongo")
OURS = "actorbot"


@dataclass(frozen=True, slots=True)
class Peer:
    """Something that handles the workload."""

    name: str
    program: Path
    package: str
    """A name in `ENVIRONMENTS`, or a distribution that the benchmark's own interpreter has.

    "" if the peer needs neither.
    """
    variant: str = ""
    """The program itself says what this means for it."""
    stores: tuple[str, ...] = ALL

    @property
    def version(self) -> str:
        if self.package in ENVIRONMENTS:
            return ENVIRONMENTS[self.package].requirements[0].replace("==", " ").replace("@", " ")
        return f"{self.package} {version(self.package)}" if self.package else "by hand"

    def command(self, folder: Path) -> tuple[list[str], dict[str, str]]:
        """Return the command for the program, and the environment variables for it.

        An environment that is not there is made. Raises: MissingPeerError.
        """
        if self.package in ENVIRONMENTS:
            return make(self.package, folder)
        return [sys.executable], {"PYTHONPATH": str(ROOT)}


PEERS = (
    Peer("lock per user", PROGRAMS / "locked_loop.py", ""),
    Peer("pykka", PROGRAMS / "pykka_actors.py", "pykka"),
    Peer("aiogram", PROGRAMS / "aiogram_fsm.py", "aiogram"),
    Peer("aiogram simple", PROGRAMS / "aiogram_fsm.py", "aiogram", "simple"),
    Peer("ptb", PROGRAMS / "ptb_persistence.py", "ptb", stores=("memory",)),
    Peer("ptb concurrent", PROGRAMS / "ptb_persistence.py", "ptb", "concurrent", ("memory",)),
    Peer("grammy", PROGRAMS / "grammy_sessions.js", "grammy"),
    Peer("grammy sequentialize", PROGRAMS / "grammy_sessions.js", "grammy", "sequentialize"),
    Peer("bottender", PROGRAMS / "bottender_sessions.js", "bottender"),
    Peer("bottender room", PROGRAMS / "bottender_sessions.js", "bottender", "room", ("memory",)),
    Peer(OURS, PROGRAMS / "actorbot_manager.py", "actorbot"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of one program measured."""

    peer: str
    events: int
    seconds: float
    """From the first event to the last answer.

    If the peer has everything written at most a second later: until then.
    """
    flush_seconds: float
    """From the last answer until the store has everything.

    This is a part of `seconds`, except for a peer that does not write in every run (ptb).
    """
    cpu_seconds: float
    """The processor time of the program meanwhile, without a server's.

    Other programs on the machine disturb it least.
    """
    latency_ms: dict[str, float]
    lost: int
    """Events that are missing in the counters in the store."""
    wrong_counters: int
    """Sessions whose counter is not what it must be."""

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--store", choices=ALL, default="memory", help="(%(default)s)")
    add("--url", help="the server's URL, for --store redis or mongo (this machine, the usual port)")
    add(
        "--handler",
        choices=("async", "awaits"),
        default="async",
        help="awaits: it awaits between its read and its write",
    )
    add("--users", type=count, default=1_000, metavar="N", help="(%(default)s)")
    add("--events", type=count, default=50_000, metavar="N", help="repeated until --seconds are over (%(default)s)")
    add("--distribution", choices=("uniform", "zipf"), default="uniform", help="of events over users (%(default)s)")
    add("--repeats", type=count, default=3, metavar="N", help="measured runs of each, by turns (%(default)s)")
    add("--seconds", type=float, default=5.0, help="how long events are taken (%(default)s)")
    add(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[peer.name for peer in PEERS],
        help="measure only these, of %(choices)s",
    )
    add("--environments", type=Path, metavar="DIR", help=f"where environments are kept ({default_folder()})")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 1 if actorbot failed or lost an event."""
    peers = [peer for peer in PEERS if args.store in peer.stores and peer.name in (args.only or [peer.name])]
    if not peers:
        print(f"none of them keeps sessions in {args.store}", file=sys.stderr)
        return 2
    workload = make_workload(args.users, args.events, IN_FLIGHT, args.distribution)
    with _report.progress(len(peers) * (args.repeats + 1)) as begin:
        runs, missing = measure(args, peers, workload, begin)
    title = f"{args.store}, {args.handler} handler, {args.users:,} users, {args.distribution}, {IN_FLIGHT} in flight"
    remarks = {peer.name: missing.get(peer.name, peer.version) for peer in peers}
    status = Result(
        question="peers",
        options={name: value for name, value in options_of(args).items() if name != "environments"},
        tables=(Table(title, tuple(figures(runs)), remarks),),
        wrong=sum(run.wrong_counters for run in runs.get(OURS, ())),
        details={
            "runs": [asdict(run) for done in runs.values() for run in done],
            "missing": missing,
            "environments": {name: environment.requirements for name, environment in ENVIRONMENTS.items()},
        },
    ).conclude(args.json)
    return max(status, int(OURS in missing))


def measure(
    args: argparse.Namespace, peers: Sequence[Peer], workload: Workload, begin: Callable[[str], None]
) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Measure all peers by turns.

    Return the runs of those that finished all of them, and for each of the others the reason.
    """
    missing: dict[str, str] = {}
    commands = {}
    for peer in peers:
        begin(f"{peer.name}, environment")
        try:
            commands[peer.name] = peer.command(args.environments or default_folder())
        except MissingPeerError as exc:
            missing[peer.name] = f"missing: {exc}"
    runs: dict[str, list[Run]] = {peer.name: [] for peer in peers}
    for repeat in range(1, args.repeats + 1):
        for peer in peers:
            begin(f"{peer.name}, run {repeat} of {args.repeats}")
            if peer.name not in missing:
                try:
                    runs[peer.name].append(_run(peer, commands[peer.name], args, workload))
                except MissingPeerError as exc:
                    missing[peer.name] = f"failed: {exc}"
    return {name: done for name, done in runs.items() if name not in missing}, missing


def _run(peer: Peer, command: tuple[list[str], dict[str, str]], args: argparse.Namespace, workload: Workload) -> Run:
    url = args.url or URLS.get(args.store, "")
    place = Place(args.store, url)
    job = {
        "store": args.store, "url": url, "place": place.name, "database": DATABASE, "policy": POLICY,
        "handler": args.handler, "variant": peer.variant, "in_flight": workload.in_flight, "seconds": args.seconds,
        "users": workload.users, "events": workload.events,
    }  # fmt: skip
    runner, settings = command
    with tempfile.TemporaryDirectory(prefix="actorbot-peer-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job))
        try:
            said = run([*runner, str(peer.program), str(file)], settings, args.seconds + PATIENCE)
        finally:
            if url:
                place.clear()
    return judge(peer.name, said, workload)


def judge(name: str, said: str, workload: Workload) -> Run:
    """Compare the counters that a program read back with the events that it had.

    Raises: MissingPeerError.
    """
    try:
        line = json.loads(said)
        counters, events = line.pop("counters"), line["events"]
    except (ValueError, KeyError) as exc:
        raise MissingPeerError(f"it did not say what it measured: {said[:100]!r}") from exc
    expected = Counter(user for user, _ in itertools.islice(itertools.cycle(workload.events), events))
    missing = {user: expected[user] - counters.get(user, 0) for user in workload.users}
    if min(missing.values()) < 0 and name != OURS:
        raise MissingPeerError("it counted events that there were not")
    wrong = [count for count in missing.values() if count]
    return Run(name, **line, lost=sum(wrong), wrong_counters=len(wrong))


def figures(runs: Mapping[str, Sequence[Run]]) -> list[Figure]:
    """Return what is shown.

    The ratio is to the fastest peer of the same round, among those that lost nothing in any run.
    """
    safe = {name: done for name, done in runs.items() if name != OURS and not any(run.lost for run in done)}
    fastest = max(safe.values(), key=lambda done: median(run.events_per_second for run in done), default=None)
    found = []
    for name, done in runs.items():
        found += figures_of(name, done, ("events/s", "", "higher", lambda run: run.events_per_second))
        if fastest is not None:
            pairs = zip(done, fastest, strict=True)
            ratios = tuple(run.events_per_second / its.events_per_second for run, its in pairs)
            found.append(Figure("ratio", ratios, name, "", "higher"))
        found += figures_of(
            name,
            done,
            ("lost updates", "", "lower", lambda run: run.lost),
            ("lost", "%", "lower", lambda run: 100 * run.lost / run.events),
            ("CPU per event", "µs", "lower", lambda run: run.cpu_seconds / run.events * 1e6),
            ("p50", "ms", "lower", lambda run: run.latency_ms["p50"]),
            ("p99", "ms", "lower", lambda run: run.latency_ms["p99"]),
            ("flush", "s", "lower", lambda run: run.flush_seconds),
        )
    return found
