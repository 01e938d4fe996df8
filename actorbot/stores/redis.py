"""Sessions in Redis or Valkey: of one process, or of several that share them.

A batch is one call of a script that compares before it writes.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import sha1
from typing import Any, ClassVar, Final, Self

from actorbot._state.record import Record
from actorbot.errors import (
    ActorbotError,
    ConfigError,
    CorruptSessionError,
    ForeignSessionError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from actorbot.stores._findings import Finding
from actorbot.stores._redis_damage import Damage
from actorbot.stores._redis_lease import RedisLease
from actorbot.stores._redis_link import Command, Link, is_about_script, is_refused
from actorbot.stores._redis_rights import Rights, try_rights
from actorbot.stores._redis_server import check_server, examine, time_of
from actorbot.stores._server_clock import ServerClock
from actorbot.stores.base import ONE_YEAR, RecordStore, Write, check_expires_in

__all__ = ["RedisSessionStore"]

logger = logging.getLogger("actorbot")

GRACE: Final = 300.0  # seconds that the server keeps a record longer: its next write may be on its way
LONGEST: Final = 10**15  # milliseconds: 30,000 years, and far from the most that a server takes
CALL_BYTES: Final = 16 * 1024**2  # the most of a batch that goes into one command
SCANNED: Final = 1_000  # keys that the server looks at in one go
PAGE: Final = 250  # records that are read at a time, of the keys found
MOST_TOLD: Final = 5  # other key prefixes that are told of

# A value consists of the number of write ids, those ids (8 bytes each, newest first), and the
# record's bytes. There are three arguments for each key: the base ("*": anything may be replaced),
# the value, and in how many milliseconds the server drops it (it counts by its own clock). The
# answer has a letter for each key: w, written; d, done before; c, a conflict; x, the key holds
# something else; r, it may not be read. Then come the values that were compared and replaced: only
# here can it be seen whether one was damaged. The rules are those of `base.judge`.
SCRIPT: Final = b"""
local letters, answer_and_old = {}, {''}
for i, key in ipairs(KEYS) do
  local base, value, answer = ARGV[3 * i - 2], ARGV[3 * i - 1], 'w'
  local old = redis.pcall('GET', key) or ''
  if type(old) == 'string' and old ~= '' then
    if base ~= '*' and string.sub(old, 2, 1 + 8 * math.min(1, string.byte(old))) ~= base then answer = 'c' end
    if base == '*' or answer == 'c' then
      local id = string.sub(value, 2, 9)
      for at = 2, 8 * string.byte(old), 8 do
        if string.sub(old, at, at + 7) == id then answer = 'd' end
      end
    end
  elseif type(old) ~= 'string' and base ~= '*' then
    answer = string.find(old.err, 'WRONGTYPE', 1, true) and 'x' or 'r'
  end
  if answer == 'w' then redis.call('SET', key, value, 'PX', ARGV[3 * i]) end
  letters[i] = answer
  answer_and_old[i + 1] = answer == 'w' and base ~= '*' and old or ''
end
answer_and_old[1] = table.concat(letters)
return answer_and_old
"""
SCRIPT_SHA: Final = sha1(SCRIPT, usedforsecurity=False).hexdigest()


class RedisSessionStore(RedisLease, RecordStore):
    """Keeps each session under the key `<key_prefix><session id>` of a Redis or Valkey server.

    Redis 6.2 or newer. *url* is `redis://[[user]:password@]host[:port][/database]`, `unix:///path`,
    or `rediss://…` for TLS, with `?ssl_ca_certs=/path` and the other `ssl_` options of redis-py.
    `?socket_timeout=` and `?socket_connect_timeout=` (seconds; 3 and 1.5 by default) should
    together be less than the policy's `store_deadline`.

    An ACL user needs `+eval +evalsha +script|load +mget +get +exists +set +time` on
    `~<key_prefix>*`, and `+cluster|slots` in a Redis Cluster. `init` names what is missing, and
    docs/stores.md says what more is good for what.

    A batch is one script call, which compares and writes: about 140,000 records of 0.8 KB a second.
    Pipelined SETs, which compare nothing, reach 115,000. In a Redis Cluster it is one call for each
    slot, and the calls for one node go together: about 95,000. A hash tag in *key_prefix*, as in
    `"{mybot}:"`, brings all sessions into one slot, and so to one node and one call. Keys in a slot
    that is being moved are refused until it has been moved.

    A write is sent once. Its caller sends it again, with the same write id. All threads share at
    most 20 connections to a server. If one says nothing for a second, and the server answers on a
    new one, all are made anew, and what was asked is sent once more.

    The server drops a record by itself five minutes after it has ended, or five minutes after it
    was written if that is later. Ends are kept by the server's clock.

    Raises: ConfigError.
    """

    name: ClassVar[str] = "redis"

    def __init__(self, url: str, *, key_prefix: str = "actorbot:", expires_in: float = ONE_YEAR) -> None:
        self.expires_in = check_expires_in(expires_in)
        if type(key_prefix) is not str or not 0 < len(key_prefix) <= 256 or not key_prefix.isprintable():
            raise ConfigError("key_prefix", key_prefix, "1 to 256 printable characters, for example 'actorbot:'")
        self.key_prefix = key_prefix
        self._prefix = key_prefix.encode()
        self._link = Link(url)
        self._clock = ServerClock(self.name, partial(time_of, self._link))
        self._damage = Damage(self._link, self.note_damage)
        self._is_open = False

    def __repr__(self) -> str:
        return f"<RedisSessionStore {self._link.where}, key_prefix={self.key_prefix!r}>"

    # --- life ------------------------------------------------------------------------------------

    def init(self) -> Self:
        if self._is_open:
            return self
        try:
            self._link.open()
            check_server(self._link)
            self._try_rights().check(self._link.where)
            self._link.ask("SCRIPT", "LOAD", SCRIPT)
            self._clock.measure()
        except BaseException:
            self._link.close()
            raise
        self._is_open = True
        return self

    def look(self) -> str | None:
        if self._is_open:
            return None
        try:
            self._link.open()
            self._clock.measure()
        except BaseException:
            self._link.close()
            raise
        return None

    def close(self) -> None:
        self._is_open = False
        self._link.close()

    def examine(self) -> Iterator[Finding]:
        self._link.open()
        answers = "answers, a node of a cluster" if self._link.is_cluster else "answers"
        yield Finding("reach", "ok", f"{self._link.where} {answers}")
        found = [*examine(self._link), self._clock.measure()]
        yield from found
        if "failure" not in {each.level for each in found}:
            yield from self._try_rights().judge()

    def _try_rights(self) -> Rights:
        return try_rights(self._link, script=SCRIPT, sha=SCRIPT_SHA, prefix=self._prefix)

    def sweep(self, now: float) -> Sequence[Record]:
        self._clock.keep()
        return ()

    @property
    def complaint(self) -> str:
        return self._clock.complaint

    # --- reading ---------------------------------------------------------------------------------

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        self._clock.keep_if_set()
        keys = [self._key(session_id) for session_id in session_ids]
        values: list[Any] = [None] * len(keys)
        for group, found in self._run_grouped("MGET", keys, range(len(keys))):
            fits = type(found) is list and len(found) == len(group)  # else it calls no session absent
            each = found if fits else self._spread(found, len(group), StoreUnavailableError)
            for n, value in zip(group, each, strict=True):
                values[n] = value
        # MGET also answers nil where a key holds something else than a string: that is no absent
        # session.
        absent = [n for n, value in enumerate(values) if value is None]
        odd = [n for group, count in self._run_grouped("EXISTS", keys, absent) if count for n in group]
        for n, value in zip(odd, self._link.run([(keys[n], ("GET", keys[n])) for n in odd]), strict=True):
            values[n] = b"" if is_refused(value) and "WRONGTYPE" in str(value) else value
        _raise_if_all_failed(values)
        return [self._to_record(*each) for each in zip(session_ids, values, strict=True)]

    def _run_grouped(self, command: str, keys: Sequence[bytes], numbers: Sequence[int]) -> list[tuple[list[int], Any]]:
        """Run *command* over the *keys* of these *numbers*, in as few calls as possible.

        Returns for each call the numbers that it was about, and its answer.
        """
        groups = [[numbers[n] for n in group] for group in self._link.group([keys[n] for n in numbers])]
        calls: list[tuple[bytes, Command]] = [
            (keys[group[0]], (command, *(keys[n] for n in group))) for group in groups
        ]
        return list(zip(groups, self._link.run(calls), strict=True))

    def _to_record(self, session_id: str, value: Any) -> Record | ActorbotError | None:
        if value is None or isinstance(value, ActorbotError):
            return value
        if not value:
            return self._foreign(session_id)
        head = 1 + 8 * value[0]
        try:
            record = Record.from_bytes(value[head:], session_id=session_id, store=self.name)
        except CorruptSessionError as error:
            inner, key = Record.peek_id(value[head:]), self.key_prefix + session_id
            if inner not in {"", session_id, key} and key.endswith(inner):
                return ForeignSessionError(self.name, session_id, inner, key.removesuffix(inner))
            return error
        if record.write_ids != value[1:head]:
            return CorruptSessionError(self.name, session_id, "its write ids are not those in front of it")
        return self._clock.here(record)

    def scan(self) -> Iterator[Record | ActorbotError]:
        others: Counter[str] = Counter()  # prefixes that begin with this one: who has them sees to their sessions
        for keys in self._keys():
            for at in range(0, len(keys), PAGE):
                for found in self._read_page(keys[at : at + PAGE]):
                    if isinstance(found, ForeignSessionError):
                        others[found.key_prefix] += 1
                    else:
                        yield found
        for prefix, number in others.most_common(MOST_TOLD):
            logger.warning("%s: sessions of the key prefix %r were left out: %d", self.name, prefix, number)

    def _read_page(self, keys: Sequence[bytes]) -> Iterator[Record | ActorbotError]:
        session_ids = []
        for key in keys:
            try:
                session_ids.append(key[len(self._prefix) :].decode())
            except UnicodeDecodeError:
                yield self._foreign(repr(key[len(self._prefix) :]))
        found = self.read_many(session_ids) if session_ids else ()
        for session_id, each in zip(session_ids, found, strict=True):
            aside = isinstance(each, CorruptSessionError) and Damage.may_be_aside(session_id.encode())
            if each is not None and not aside:
                yield each

    def count(self) -> int:
        keys = (key for page in self._keys() for key in page)
        return sum(not Damage.may_be_aside(key[len(self._prefix) :]) for key in keys)

    def _keys(self) -> Iterator[list[bytes]]:
        pattern = re.sub(rb"[][*?\\]", rb"\\\g<0>", self._prefix) + b"*"
        for keys in self._link.scan(pattern, SCANNED):
            yield [key for key in keys if not self.is_lease(key)]

    # --- writing ---------------------------------------------------------------------------------

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        self._clock.keep_if_set()
        keys = [self._key(write.record.session_id) for write in writes]
        if any(write.over_damage for write in writes):
            writes = self._damage.make_way(writes, keys)
        groups, calls = [], []
        for group in self._link.group(keys):
            for part, arguments in self._arguments(writes, group):
                groups.append(part)
                calls.append((keys[part[0]], (len(part), *(keys[n] for n in part), *arguments)))
        outcomes: list[ActorbotError | None] = [None] * len(writes)
        for part, answer in zip(groups, self._run_script(calls), strict=True):
            letters, replaced = _understand(answer, len(part))
            each: Sequence[str | ActorbotError] = letters or self._spread(answer, len(part), OutcomeUnknownError)
            for n, one in zip(part, each, strict=True):
                outcomes[n] = self._outcome(writes[n], one)
            for n, old in replaced:
                if writes[part[n]].record.state is not None:  # what is destroyed leaves nothing behind
                    self._damage.look_at(writes[part[n]].record.session_id, keys[part[n]], old)
        _raise_if_all_failed(outcomes)
        return outcomes

    def _arguments(self, writes: Sequence[Write], group: list[int]) -> Iterator[tuple[list[int], list[bytes | int]]]:
        """Yield the script's arguments for the writes of *group*, with the numbers of those writes.

        They come in one part, unless that would be larger than CALL_BYTES.
        """
        now = time.time()
        part: list[int] = []
        arguments: list[bytes | int] = []
        size = 0
        for n in group:
            record, base = writes[n].record, writes[n].base
            value = bytes([len(record.write_ids) // 8]) + record.write_ids + self._clock.there(record).to_bytes()
            if part and size + len(value) > CALL_BYTES:
                yield part, arguments
                part, arguments, size = [], [], 0
            stays = min(int((max(record.expires_at - now, 0.0) + GRACE) * 1000), LONGEST)
            part.append(n)
            arguments += (b"*" if base is None else base, value, stays)
            size += len(value)
        yield part, arguments

    def _run_script(self, calls: Sequence[tuple[bytes, Command]]) -> list[Any]:
        answers = self._link.run([(key, ("EVALSHA", SCRIPT_SHA, *rest)) for key, rest in calls], writes=True)
        # A server that restarted, failed over or was flushed does not know the script any more.
        unknown = [n for n, answer in enumerate(answers) if is_about_script(answer)]
        whole = [(key, ("EVAL", SCRIPT, *rest)) for key, rest in (calls[n] for n in unknown)]
        for n, answer in zip(unknown, self._link.run(whole, writes=True), strict=True):
            answers[n] = answer
        return answers

    def _outcome(self, write: Write, answer: str | ActorbotError) -> ActorbotError | None:
        if isinstance(answer, ActorbotError):
            return answer
        if answer == "c":
            return write.conflict(self.name)
        if answer == "r":
            reason = f"{self._link.where} does not let this user read it: +get is missing"
            return StoreUnavailableError(self.name, reason, session_id=write.record.session_id)
        return self._foreign(write.record.session_id) if answer == "x" else None

    # --- both ------------------------------------------------------------------------------------

    def _key(self, session_id: str) -> bytes:
        return self._prefix + session_id.encode()

    def _spread(self, answer: Any, size: int, kind: type[StoreUnavailableError]) -> list[ActorbotError]:
        """Make the errors of *size* sessions from the one *answer* there was.

        If the answer makes no sense, the error is of that *kind*.
        """
        error = answer if isinstance(answer, ActorbotError) else self._link.misunderstood(kind)
        return [error] * size

    def _foreign(self, session_id: str) -> CorruptSessionError:
        return CorruptSessionError(self.name, session_id, "its key holds something that is not a record of actorbot")


def _understand(answer: Any, size: int) -> tuple[str, list[tuple[int, bytes]]]:
    """Return the script's letters, and the values that it has replaced, by number; or nothing."""
    if type(answer) is list and len(answer) == size + 1 and all(type(each) is bytes for each in answer):
        letters = answer[0]
        if len(letters) == size and not letters.strip(b"wdcxr"):
            return letters.decode(), [(n, old) for n, old in enumerate(answer[1:]) if old]
    return "", []


def _raise_if_all_failed(answers: Sequence[object]) -> None:
    """Raise an error if all failed: then the server is down, rather than some sessions damaged."""
    failed = [answer for answer in answers if isinstance(answer, StoreUnavailableError)]
    if failed and len(failed) == len(answers):
        raise next((error for error in failed if isinstance(error, OutcomeUnknownError)), failed[0])
