"""What a user of the library may rely on, as a model beside the simulation: which states a session
may be seen in, and when.

A session is a list of the events that it has counted. Each run of a handler appends a token of its
own, made of the event and the number of the run, and the model keeps which state that run saw: so a
state is whole if its last token was appended to the rest of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

__all__ = ["Branch", "Model", "Run", "Story"]

Log = tuple[str, ...]


@dataclass(eq=False)
class Run:
    """One run of a handler on one event."""

    token: str
    event: str
    base: Log
    order: int
    branches: list[Branch]
    older: list[Branch]
    """What the store had been set back to when it began, and what it did not see."""
    borrowed: bool = False
    ends: bool = False
    returned: bool = False
    failed: bool = False
    durable: bool = False
    """Whether what it did, or the end of the session since, is where the policy wants it."""
    wall: float = 0.0
    delivered: int = 0
    told: float = 0.0


@dataclass(eq=False)
class Branch:
    """What a session may be: a state with all of *required* and none of *banned*."""

    required: set[str] = field(default_factory=set)
    banned: set[str] = field(default_factory=set)
    pending: bool = False
    """Whether it is that of a destroy which has not returned: what is counted meanwhile may have
    come before it.
    """
    older: bool = False
    """Whether the store was set back to it: it counts if the session is not in memory any more."""


class Story:
    """One session, from outside."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.runs: dict[str, Run] = {}
        self.branches = [Branch()]
        self.gone: set[str] = set()
        """What failed or was destroyed, and is never seen again."""
        self.ended: set[str] = set()
        """What of that a handler has ended."""
        self.destroyed: set[str] = set()
        """What was destroyed from outside, with the ids of its events."""
        self.stored: set[str] = set()
        self.kept: set[str] = set()
        self.strangers: set[str] = set()
        """Written by another process, and to be there at the end."""
        self.end_in_doubt = False
        """Whether a destroy may be under way that nobody waits for."""
        self.doubtful = False
        """Whether there may be conflicts: another process wrote it, or a destroy may come late."""
        self.ends = 0
        """How often it may have ended, or a destroy have begun."""
        self.running: Run | None = None
        self.last_order = -1
        self.last_reply = (-1, -1)


class Model:
    """All sessions. *complain* is told what must not be; *wall* and *monotonic* tell the time."""

    def __init__(
        self,
        mode: str,
        expires_in: float,
        complain: Callable[..., None],
        wall: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.mode = mode
        self._expires_in = expires_in
        self._complain = complain
        self._wall = wall
        self._monotonic = monotonic
        self._numbers = itertools.count()
        self.stories: dict[str, Story] = {}
        self.acknowledged = 0
        self.latest = 0.0
        """The wall clock's latest time before it was set back."""

    def story(self, session_id: str) -> Story:
        if session_id not in self.stories:
            self.stories[session_id] = Story(session_id)
        return self.stories[session_id]

    # --- states ----------------------------------------------------------------------------------

    def observe(self, session_id: str, log: Log, where: str) -> list[Branch]:
        """Check that the session may be seen in this state, and return what it then may be."""
        story = self.story(session_id)
        self.check_whole(story, log, where)
        seen = set(log)
        admitting = [branch for branch in story.branches if branch.required <= seen and not branch.banned & seen]
        # Where the clock was set back, what has ended may even be followed by what was there
        # before.
        if (not log or self.latest) and any(self._may_have_ended(story, branch) for branch in story.branches):
            story.strangers.clear()
            if not admitting:
                admitting = [Branch()]
                story.branches = [*story.branches, *admitting]
        if not admitting:
            lacks = [sorted(branch.required - seen) for branch in story.branches]
            back = [sorted(branch.banned & seen) for branch in story.branches]
            self._complain(f"{where}: {session_id} is {log}; it lacks {lacks}, and these came back: {back}")
        return admitting

    def photograph(self, session_id: str) -> tuple[list[Branch], set[str], int]:
        """Return what the session may be now, for who looks at it a little later."""
        story = self.story(session_id)
        return (
            [Branch(set(branch.required), set(branch.banned)) for branch in story.branches],
            set(story.gone),
            story.ends,
        )

    def observe_since(self, session_id: str, before: tuple[list[Branch], set[str], int], log: Log, where: str) -> None:
        """Check that the session may have been in this state at some instant since *before*."""
        branches, gone, ends = before
        story, seen = self.story(session_id), set(log)
        self.check_whole(story, log, where, gone)
        admitted = any(branch.required <= seen and not branch.banned & seen for branch in branches)
        if not admitted and story.ends == ends:
            self.observe(session_id, log, where)

    def check_whole(self, story: Story, log: Log, where: str, gone: set[str] | None = None) -> None:
        """Check that it is a state that the session has had, and without what is *gone*."""
        if not log:
            return
        run = story.runs.get(log[-1])
        if run is None or run.base != log[:-1]:
            self._complain(f"{where}: {story.session_id} is {log}, which it never was")
            return
        events = [story.runs[token].event for token in log]
        if len(set(events)) < len(events):
            self._complain(f"{where}: {story.session_id} has counted an event twice: {log}")
        if back := (story.gone if gone is None else gone) & set(log):
            self._complain(f"{where}: {story.session_id} is {log}; {sorted(back)} failed or was destroyed")

    def _may_have_ended(self, story: Story, branch: Branch) -> bool:
        runs = [story.runs[token] for token in branch.required]
        if (
            self.latest
        ):  # the clock was set: what was counted since, acknowledged or not, may have ended before what came first
            runs = [run for run in story.runs.values() if run.returned]
        last = min((run.wall for run in runs), default=0.0)
        return max(self._wall(), self.latest) >= last + self._expires_in

    # --- runs ------------------------------------------------------------------------------------

    def begin(self, session_id: str, event: str, order: int, log: Log, *, borrowed: bool) -> Run:
        story = self.story(session_id)
        branches = self.observe(session_id, log, "a handler")
        number = next(self._numbers)
        branches = [branch for branch in branches if not branch.pending]
        older = [branch for branch in story.branches if branch.older and branch not in branches]
        run = Run(f"{event}.{number}", event, log, number, branches, older, borrowed)
        story.runs[run.token] = run
        if story.running is not None and not story.running.borrowed:  # whose turn can be taken from it
            self._complain(f"{session_id}: {run.token} began while {story.running.token} ran")
        if 0 <= order < story.last_order:
            self._complain(f"{session_id}: {run.token} began before what was accepted earlier")
        story.last_order = max(order, story.last_order)
        story.running = run
        return run

    def end(self, session_id: str, run: Run, *, failed: bool) -> None:
        story = self.story(session_id)
        if story.running is run:
            story.running = None
        run.wall = self._wall()
        run.failed, run.returned = failed, not failed
        if failed:
            story.gone.add(run.token)
        elif run.ends:
            story.ends += 1
            story.strangers -= set(run.base)
            story.branches.append(Branch(banned={*run.base, run.token}))

    def acknowledge(self, session_id: str, run: Run, *, durable: bool) -> None:
        """The caller of the run's event was told that it has been handled."""
        story = self.story(session_id)
        self.acknowledged += 1
        run.told = self._monotonic()
        if run.failed:
            self._complain(f"{session_id}: {run.token} was acknowledged and had failed")
        if not self.is_safe(story, run, durable=durable):
            self._complain(f"{session_id}: {run.token} was acknowledged before it was durable")
        # It went on from what was in memory, and is to be written over what the store has.
        story.branches = [branch for branch in story.branches if branch not in run.older]
        if run.ends:
            story.strangers.clear()
            if story.doubtful:
                return  # it may be lost to a conflict
            ended = [number for number, branch in enumerate(story.branches) if run.token in branch.banned]
            if ended:  # what came later stays: it may have ended again before this was told
                earlier = story.branches[: ended[0]]
                story.branches = story.branches[ended[0] :] + [branch for branch in earlier if branch.pending]
            if self.mode != "write-behind":
                story.gone |= {*run.base, run.token}
                story.ended |= {*run.base, run.token}
            return
        if max(self._wall(), self.latest) >= run.wall + self._expires_in:
            return  # it may have ended before this was told
        for branch in run.branches:
            if branch in story.branches and not branch.banned & {*run.base, run.token}:
                branch.required.add(run.token)

    def refuse(self, session_id: str, run: Run) -> None:
        """The caller of the run's event was told that it has failed."""
        story = self.story(session_id)
        run.failed = True
        story.gone.add(run.token)
        if run.delivered:
            self._complain(f"{session_id}: {run.token} failed, and a reply of it was delivered")
        if run.ends:
            story.branches = [branch for branch in story.branches if run.token not in branch.banned]

    def duplicate(self, session_id: str, event: str) -> None:
        """The caller was told that the session has counted *event* before."""
        story = self.story(session_id)
        runs = [
            run
            for run in story.runs.values()
            if run.event == event and run.returned and not run.failed and run.token not in story.destroyed
        ]
        if not runs:
            self._complain(f"{session_id}: {event} was called a duplicate, and never counted")
        elif len(runs) == 1 and not runs[0].ends and runs[0].token not in story.gone:
            self.acknowledge(session_id, runs[0], durable=False)

    def is_safe(self, story: Story, run: Run, *, durable: bool) -> bool:
        """Tell whether what the policy asks for has been done about the run."""
        if self.mode == "write-behind" and not durable:
            return run.returned
        kept = story.kept if self.mode == "journaled" else story.stored
        return run.durable or run.token in kept

    def reply(self, session_id: str, token: str, number: int) -> None:
        story = self.story(session_id)
        run = story.runs[token]
        run.delivered += 1
        if run.failed:
            self._complain(f"{session_id}: a reply of {token}, which failed, was delivered")
        if not self.is_safe(story, run, durable=False):
            self._complain(f"{session_id}: a reply of {token} was delivered before it was durable")
        if (run.order, number) <= story.last_reply:
            self._complain(f"{session_id}: reply {number} of {token} came twice or after a later one")
        story.last_reply = (run.order, number)

    # --- the ends of sessions --------------------------------------------------------------------

    def begin_destroy(self, session_id: str) -> Branch:
        story = self.story(session_id)
        story.end_in_doubt = True
        story.ends += 1
        branch = Branch(banned=set(story.runs), pending=True)
        story.branches.append(branch)
        return branch

    def end_destroy(self, session_id: str, branch: Branch, *, done: bool | None) -> None:
        """*done* is `None` where nobody knows."""
        story = self.story(session_id)
        branch.pending = False
        story.end_in_doubt = done is None
        story.ends += 1
        if done is None:
            story.doubtful = True
            story.strangers.clear()
            if branch not in story.branches:
                story.branches.append(branch)
        elif done:
            story.branches = [branch, *(other for other in story.branches if other.pending)]
            story.gone |= branch.banned
            story.destroyed |= branch.banned
            story.strangers.clear()
        elif branch in story.branches:
            story.branches.remove(branch)

    def stranger(self, session_id: str, log: Log) -> str:
        """Another process appends a token of its own to what is stored; return it."""
        story = self.story(session_id)
        number = next(self._numbers)
        run = Run(f"stranger-{number}", f"stranger-{number}", log, number, [], [], returned=True, wall=self._wall())
        story.runs[run.token] = run
        story.branches.append(Branch({*log, run.token}))
        # A destroy that is in the journal replaces anything, until the store has confirmed what
        # came after it.
        if not story.end_in_doubt and not (self.mode == "journaled" and story.ends):
            story.strangers.add(run.token)
        story.doubtful = True
        story.gone -= story.ended - story.destroyed  # which may be lost to a conflict now
        return run.token

    def may_go_back(self, session_id: str) -> bool:
        """Tell whether all ends of the session are known: then it may come back from one."""
        story = self.story(session_id)
        ends = any(run.ends and run.returned and not run.told for run in story.runs.values())
        return not (ends or story.running or any(branch.pending for branch in story.branches))

    def set_back(self, session_id: str, log: Log) -> None:
        """The store has this state again. What is in memory is newer, and stays if it goes on."""
        story = self.story(session_id)
        for past in (story.gone, story.ended, story.destroyed):
            past.difference_update(log)
        story.strangers.clear()
        story.branches.append(Branch(set(log), set(story.runs) - set(log), older=True))

    # --- media -----------------------------------------------------------------------------------

    def note(self, session_id: str, log: Log, *, stored: bool) -> None:
        """The store (or else the journal) has this state now."""
        story = self.story(session_id)
        # What was destroyed may still be in the store, or come there late, while the journal knows
        # better.
        late = stored and self.mode == "journaled"
        self.check_whole(story, log, "the store" if stored else "the journal", set() if late else None)
        (story.stored if stored else story.kept).update(log)
        if stored == (self.mode != "journaled"):
            first = story.runs[log[0]].order if log else inf
            for run in story.runs.values():  # what came before its beginning has ended with what it was
                run.durable = run.durable or (run.returned and run.order < first)

    def crash(self) -> None:
        for story in self.stories.values():
            story.running = None
            story.last_order = -1
            # What an earlier process wrote is not always known by what is left of the journal.
            story.doubtful = story.doubtful or any(branch.older for branch in story.branches)
            for branch in story.branches:
                branch.pending = False

    def lose(self, session_id: str) -> None:
        """Something was lost, and told: to a conflict, or by a close whose last write may come
        late.
        """
        self.story(session_id).branches.append(Branch())

    def restart_from(self, session_id: str, logs: Iterable[Log]) -> None:
        """What the session is now is one of these states: all else was lost, as the policy says it
        may be.
        """
        story = self.story(session_id)
        logs = list(logs)
        for log in logs:
            self.check_whole(story, log, "what was left")
        story.branches = [Branch(set(log), set(story.runs) - set(log)) for log in logs]
