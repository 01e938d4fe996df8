"""A Redis server in memory that executes the real Lua scripts: what a cluster's log asks of one.

It does nothing by itself: whoever has it says what the time is, and in which order commands come.
What it was told can be told to another one from the start, up to some instant, as a server does
that is restarted from its append-only file.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha1
from random import Random
from typing import Any, Final

from lupa.lua51 import LuaRuntime, lua_type

__all__ = ["ReplyError", "SimRedis", "encode"]

Reply = Any
Id = tuple[int, int]

VERSION: Final = "7.0.15"
NODE: Final = 100  # entries of a stream that "about" leaves standing


class ReplyError(Exception):
    """What the server answers with an error."""


class Status(str):
    """A simple string."""

    __slots__ = ()


OK: Final = Status("OK")


class Stream:
    """The entries of a stream, and the last id that it gave away."""

    def __init__(self) -> None:
        self.ids: list[Id] = []
        self.fields: list[list[bytes]] = []
        self.last: Id = (0, 0)


def encode(reply: Reply) -> bytes:
    """Return *reply* as it is sent."""
    out: list[bytes] = []
    _encode(reply, out)
    return b"".join(out)


def _encode(reply: Reply, out: list[bytes]) -> None:
    if reply is None:
        out.append(b"$-1\r\n")
    elif isinstance(reply, bytes):
        out.append(b"$%d\r\n%b\r\n" % (len(reply), reply))
    elif isinstance(reply, int):
        out.append(b":%d\r\n" % reply)
    elif isinstance(reply, Status):
        out.append(b"+%b\r\n" % reply.encode())
    elif isinstance(reply, ReplyError):
        out.append(b"-%b\r\n" % str(reply).encode())
    else:
        out.append(b"*%d\r\n" % len(reply))
        for each in reply:
            _encode(each, out)


# --- scripts -------------------------------------------------------------------------------------

_PRELUDE = b"""
local call, pcall, sha = ...
redis = {call = call, pcall = pcall}
function redis.sha1hex(text) return sha(text) end
function redis.error_reply(text) return {err = text} end
function redis.status_reply(text) return {ok = text} end
function redis.log() end
function redis.replicate_commands() return true end
redis.LOG_DEBUG, redis.LOG_VERBOSE, redis.LOG_NOTICE, redis.LOG_WARNING = 0, 1, 2, 3
os, io, require, dofile, loadfile, python = nil, nil, nil, nil, nil, nil
math.random, math.randomseed = nil, nil
setmetatable(_G, {
  __newindex = function(_, name) error('Script attempted to create global variable ' .. name, 2) end,
  __index = function(_, name) error('Script attempted to access nonexistent global variable ' .. name, 2) end,
})
"""


class _Scripts:
    """The interpreter, one for all servers of a process: what stands in a script's memory is gone
    when it ends.
    """

    def __init__(self) -> None:
        self.server: SimRedis | None = None
        self._lua = LuaRuntime(encoding=None, unpack_returned_tuples=False, register_eval=False)  # type: ignore[call-arg]
        self._lua.execute(_PRELUDE, self._call, self._pcall, lambda text: sha1(text).hexdigest().encode())
        self._table = self._lua.table_from
        self._compiled: dict[bytes, Any] = {}

    def run(self, server: SimRedis, sha: bytes, text: bytes, keys: list[bytes], args: list[bytes]) -> Reply:
        function = self._compiled.get(sha)
        if function is None:
            try:
                function = self._lua.execute(b"return function(KEYS, ARGV) " + text + b"\nend")
            except Exception as error:
                raise ReplyError(f"ERR Error compiling script: {error}") from None
            self._compiled[sha] = function
        self.server = server
        try:
            return self._back(function(self._table(keys), self._table(args)))
        except ReplyError:
            raise
        except Exception as error:
            raise ReplyError(f"ERR Error running script {sha.decode()}: {error}") from error
        finally:
            self.server = None

    def _call(self, *args: Any) -> Any:
        assert self.server is not None
        return self._there(self.server.command([_argument(each) for each in args]))

    def _pcall(self, *args: Any) -> Any:
        try:
            return self._call(*args)
        except ReplyError as error:
            return self._lua.table_from({b"err": str(error).encode()})

    def _there(self, reply: Reply) -> Any:
        if reply is None:
            return False
        if isinstance(reply, Status):
            return self._table({b"ok": reply.encode()})
        if isinstance(reply, list | tuple):
            return self._table([self._there(each) for each in reply])
        return reply

    def _back(self, value: Any) -> Reply:
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, bytes | int):
            return value
        if isinstance(value, float):
            return int(value)
        if lua_type(value) != "table":
            raise ReplyError(f"ERR a script returned {value!r}")
        if (text := value[b"err"]) is not None:
            raise ReplyError(text.decode())
        if (text := value[b"ok"]) is not None:
            return Status(text.decode())
        found: list[Reply] = []
        while (each := value[len(found) + 1]) is not None:
            found.append(self._back(each))
        return found


def _argument(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReplyError("ERR Lua redis() command arguments must be strings or integers")
    return b"%d" % value if isinstance(value, int) else b"%.17g" % value


_interpreter = cache(_Scripts)


# --- the server ----------------------------------------------------------------------------------

Command = Callable[["SimRedis", list[bytes]], Reply]
COMMANDS: Final[dict[bytes, Command]] = {}
WRITES: Final[set[bytes]] = set()


def _command(*, writes: bool = False) -> Callable[[Command], Command]:
    def add(function: Command) -> Command:
        name = function.__name__.strip("_").upper().encode()
        COMMANDS[name] = function
        if writes:
            WRITES.add(name)
        return function

    return add


class SimRedis:
    """The data of a server, and the commands."""

    def __init__(self) -> None:
        self.keys: dict[bytes, Any] = {}
        self.ends: dict[bytes, float] = {}
        self.scripts: dict[bytes, bytes] = {}
        self.now = 0.0
        """Seconds of its clock. A script has the same from its start to its end."""
        self.told: list[tuple[float, float, list[bytes]]] = []
        """All that has changed something: at which instant, by which clock."""
        self._written = False
        self.on_write: Callable[[list[bytes], Reply], None] = lambda args, reply: None
        """Is told each command that writes, also those of a script, after it was done."""

    def call(self, instant: float, clock: float, args: list[bytes]) -> Reply:
        """Do what a client asks. An error is a reply."""
        self.now, self._written = clock, False
        try:
            reply = self.command(args)
        except ReplyError as error:
            reply = error
        if self._written:
            self.told.append((instant, clock, args))
        return reply

    def again(self, until: float) -> SimRedis:
        """Return a server that was told the same up to the instant *until*."""
        other = SimRedis()
        other.scripts = dict(self.scripts)
        for instant, clock, args in self.told:
            if instant > until:
                break
            other.call(instant, clock, args)
        other.scripts = {}
        return other

    def command(self, args: list[bytes]) -> Reply:
        name = args[0].upper()
        function = COMMANDS.get(name)
        if function is None:
            raise ReplyError(f"ERR unknown command '{args[0].decode()}'")
        try:
            reply = function(self, args[1:])
        except (IndexError, ValueError) as error:
            raise ReplyError(f"ERR wrong arguments for '{name.decode()}': {args[1:]}: {error}") from error
        if name in WRITES:
            self._written = True
            self.on_write(args, reply)
        return reply

    def value(self, key: bytes, kind: type | None = None) -> Any:
        """Return what is at *key*, a new one of *kind* if there is nothing."""
        if self.ends.get(key, self.now) < self.now:
            self.drop(key)
        value = self.keys.get(key)
        if value is None:
            if kind is None:
                return None
            value = self.keys[key] = kind()
        elif kind is not None and type(value) is not kind:
            raise ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def look(self, key: bytes, kind: type) -> Any:
        """Return what is at *key*, or an empty one."""
        value = self.value(key)
        if value is None:
            return kind()
        if type(value) is not kind:
            raise ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def tidy(self, key: bytes) -> None:
        """Have no empty key; only streams may be."""
        if not isinstance(self.keys.get(key), Stream) and not self.keys.get(key):
            self.drop(key)

    def drop(self, key: bytes) -> bool:
        self.ends.pop(key, None)
        return self.keys.pop(key, None) is not None


class _Set(dict[bytes, None]):
    """In the order in which they came."""


class _Sorted(dict[bytes, float]):
    """Members with their scores."""

    def sorted(self) -> list[tuple[bytes, float]]:
        return sorted(self.items(), key=lambda item: (item[1], item[0]))


# --- the server itself ---------------------------------------------------------------------------


@_command()
def ping(server: SimRedis, args: list[bytes]) -> Reply:
    return args[0] if args else Status("PONG")


@_command()
def hello(server: SimRedis, args: list[bytes]) -> Reply:
    if args and args[0] != b"2":
        raise ReplyError("NOPROTO unsupported protocol version")
    return [b"server", b"redis", b"version", VERSION.encode(), b"proto", 2, b"mode", b"standalone", b"role", b"master"]


@_command()
def info(server: SimRedis, args: list[bytes]) -> Reply:
    return (
        f"# Server\r\nredis_version:{VERSION}\r\nredis_mode:standalone\r\nrole:master\r\ncluster_enabled:0\r\n".encode()
    )


@_command()
def role(server: SimRedis, args: list[bytes]) -> Reply:
    return [b"master", 0, []]


@_command()
def client(server: SimRedis, args: list[bytes]) -> Reply:
    return OK


@_command()
def select(server: SimRedis, args: list[bytes]) -> Reply:
    return OK


@_command()
def cluster(server: SimRedis, args: list[bytes]) -> Reply:
    raise ReplyError("ERR This instance has cluster support disabled")


@_command()
def time(server: SimRedis, args: list[bytes]) -> Reply:
    seconds, micros = divmod(int(server.now * 1e6), 1_000_000)
    return [b"%d" % seconds, b"%d" % micros]


@_command()
def script(server: SimRedis, args: list[bytes]) -> Reply:
    what = args[0].upper()
    if what == b"LOAD":
        sha = sha1(args[1]).hexdigest().encode()
        server.scripts[sha] = args[1]
        return sha
    if what == b"EXISTS":
        return [int(each in server.scripts) for each in args[1:]]
    raise ReplyError("ERR unknown subcommand")


@_command()
def eval_(server: SimRedis, args: list[bytes]) -> Reply:
    sha = script(server, [b"LOAD", args[0]])
    return evalsha(server, [sha, *args[1:]])


@_command()
def evalsha(server: SimRedis, args: list[bytes]) -> Reply:
    text = server.scripts.get(args[0])
    if text is None:
        raise ReplyError("NOSCRIPT No matching script. Please use EVAL.")
    count = 2 + int(args[1])
    return _interpreter().run(server, args[0], text, args[2:count], args[count:])


# --- keys ----------------------------------------------------------------------------------------


@_command(writes=True)
def del_(server: SimRedis, args: list[bytes]) -> Reply:
    return sum(server.value(key) is not None and server.drop(key) for key in args)


COMMANDS[b"UNLINK"] = del_
WRITES.add(b"UNLINK")


@_command()
def exists(server: SimRedis, args: list[bytes]) -> Reply:
    return sum(server.value(key) is not None for key in args)


@_command()
def type_(server: SimRedis, args: list[bytes]) -> Reply:
    names = {bytes: "string", dict: "hash", _Set: "set", _Sorted: "zset", list: "list", Stream: "stream"}
    value = server.value(args[0])
    return Status("none" if value is None else names[type(value)])


@_command(writes=True)
def expire(server: SimRedis, args: list[bytes]) -> Reply:
    return pexpire(server, [args[0], b"%d" % (int(args[1]) * 1000)])


@_command(writes=True)
def pexpire(server: SimRedis, args: list[bytes]) -> Reply:
    if server.value(args[0]) is None:
        return 0
    server.ends[args[0]] = server.now + int(args[1]) / 1000
    return 1


@_command()
def pttl(server: SimRedis, args: list[bytes]) -> Reply:
    if server.value(args[0]) is None:
        return -2
    return int((server.ends[args[0]] - server.now) * 1000) if args[0] in server.ends else -1


@_command()
def get(server: SimRedis, args: list[bytes]) -> Reply:
    return server.look(args[0], bytes) or None


@_command(writes=True)
def set_(server: SimRedis, args: list[bytes]) -> Reply:
    options = [each.upper() for each in args[2:]]
    if b"NX" in options and server.value(args[0]) is not None:
        return None
    server.drop(args[0])
    server.keys[args[0]] = args[1]
    for name, seconds in ((b"EX", 1.0), (b"PX", 0.001)):
        if name in options:
            server.ends[args[0]] = server.now + int(options[options.index(name) + 1]) * seconds
    return OK


@_command(writes=True)
def incr(server: SimRedis, args: list[bytes]) -> Reply:
    number = int(server.look(args[0], bytes) or b"0") + 1
    server.keys[args[0]] = b"%d" % number
    return number


# --- hashes --------------------------------------------------------------------------------------


@_command()
def hget(server: SimRedis, args: list[bytes]) -> Reply:
    return server.look(args[0], dict).get(args[1])


@_command()
def hmget(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.look(args[0], dict)
    return [value.get(each) for each in args[1:]]


@_command()
def hgetall(server: SimRedis, args: list[bytes]) -> Reply:
    return [each for item in server.look(args[0], dict).items() for each in item]


@_command()
def hkeys(server: SimRedis, args: list[bytes]) -> Reply:
    return list(server.look(args[0], dict))


@_command()
def hvals(server: SimRedis, args: list[bytes]) -> Reply:
    return list(server.look(args[0], dict).values())


@_command()
def hlen(server: SimRedis, args: list[bytes]) -> Reply:
    return len(server.look(args[0], dict))


@_command()
def hexists(server: SimRedis, args: list[bytes]) -> Reply:
    return int(args[1] in server.look(args[0], dict))


@_command(writes=True)
def hset(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.value(args[0], dict)
    before = len(value)
    names, values = args[1::2], args[2::2]
    if not values or len(names) != len(values):
        raise ValueError
    value.update(zip(names, values, strict=True))
    return len(value) - before


@_command(writes=True)
def hmset(server: SimRedis, args: list[bytes]) -> Reply:
    hset(server, args)
    return OK


@_command(writes=True)
def hsetnx(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.value(args[0], dict)
    if args[1] in value:
        return 0
    value[args[1]] = args[2]
    return 1


@_command(writes=True)
def hincrby(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.value(args[0], dict)
    number = int(value.get(args[1], b"0")) + int(args[2])
    value[args[1]] = b"%d" % number
    return number


@_command(writes=True)
def hdel(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.look(args[0], dict)
    gone = sum(value.pop(each, None) is not None for each in args[1:])
    server.tidy(args[0])
    return gone


# --- sets ----------------------------------------------------------------------------------------


@_command(writes=True)
def sadd(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.value(args[0], _Set)
    before = len(value)
    if not args[1:]:
        raise ValueError
    value.update(dict.fromkeys(args[1:]))
    return len(value) - before


@_command(writes=True)
def srem(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.look(args[0], _Set)
    before = len(value)
    for each in args[1:]:
        value.pop(each, None)
    server.tidy(args[0])
    return before - len(value)


@_command()
def smembers(server: SimRedis, args: list[bytes]) -> Reply:
    return list(server.look(args[0], _Set))


@_command()
def sismember(server: SimRedis, args: list[bytes]) -> Reply:
    return int(args[1] in server.look(args[0], _Set))


@_command()
def srandmember(server: SimRedis, args: list[bytes]) -> Reply:
    members = list(server.look(args[0], _Set))
    return Random(f"{server.now} {len(members)}").sample(members, min(int(args[1]), len(members)))


@_command()
def scard(server: SimRedis, args: list[bytes]) -> Reply:
    return len(server.look(args[0], _Set))


# --- sorted sets ---------------------------------------------------------------------------------


@_command(writes=True)
def zadd(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.value(args[0], _Sorted)
    rest, options = args[1:], set()
    while rest[0].upper() in {b"NX", b"XX", b"GT", b"LT", b"CH"}:
        options.add(rest.pop(0).upper())
    added = changed = 0
    for score, member in zip(map(float, rest[::2]), rest[1::2], strict=True):
        old = value.get(member)
        if (
            (b"NX" in options and old is not None)
            or (b"XX" in options and old is None)
            or (b"GT" in options and old is not None and score <= old)
            or (b"LT" in options and old is not None and score >= old)
        ):
            continue
        added += old is None
        changed += old != score
        value[member] = score
    server.tidy(args[0])
    return changed if b"CH" in options else added


@_command(writes=True)
def zrem(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.look(args[0], _Sorted)
    gone = sum(value.pop(each, None) is not None for each in args[1:])
    server.tidy(args[0])
    return gone


@_command()
def zscore(server: SimRedis, args: list[bytes]) -> Reply:
    score = server.look(args[0], _Sorted).get(args[1])
    return None if score is None else _score(score)


@_command()
def zmscore(server: SimRedis, args: list[bytes]) -> Reply:
    return [zscore(server, [args[0], each]) for each in args[1:]]


@_command()
def zcard(server: SimRedis, args: list[bytes]) -> Reply:
    return len(server.look(args[0], _Sorted))


@_command()
def zrange(server: SimRedis, args: list[bytes]) -> Reply:
    options = [each.upper() for each in args[3:]]
    if b"BYSCORE" in options:
        return zrangebyscore(server, args[:3] + [each for each in options if each != b"BYSCORE"])
    items = server.look(args[0], _Sorted).sorted()
    return _with_scores(items[_span(args[1], args[2], len(items))], options)


@_command()
def zrangebyscore(server: SimRedis, args: list[bytes]) -> Reply:
    fits = _between(args[1], args[2])
    options = [each.upper() for each in args[3:]]
    items = [item for item in server.look(args[0], _Sorted).sorted() if fits(item[1])]
    if b"LIMIT" in options:
        place = options.index(b"LIMIT")
        start, count = int(options[place + 1]), int(options[place + 2])
        items = items[start:] if count < 0 else items[start : start + count]
    return _with_scores(items, options)


@_command()
def zcount(server: SimRedis, args: list[bytes]) -> Reply:
    fits = _between(args[1], args[2])
    return sum(map(fits, server.look(args[0], _Sorted).values()))


@_command(writes=True)
def zremrangebyscore(server: SimRedis, args: list[bytes]) -> Reply:
    return zrem(server, [args[0], *zrangebyscore(server, args)])


def _between(lowest: bytes, highest: bytes) -> Callable[[float], bool]:
    def bound(text: bytes) -> tuple[float, bool]:
        return (float(text[1:]), True) if text.startswith(b"(") else (float(text), False)

    (low, above), (high, below) = bound(lowest), bound(highest)
    return lambda score: (score > low if above else score >= low) and (score < high if below else score <= high)


def _with_scores(items: list[tuple[bytes, float]], options: list[bytes]) -> list[bytes]:
    if b"WITHSCORES" not in options:
        return [member for member, _ in items]
    return [each for member, score in items for each in (member, _score(score))]


def _score(score: float) -> bytes:
    return b"%.17g" % score


def _span(start: bytes, stop: bytes, length: int) -> slice:
    first, last = int(start), int(stop)
    return slice(max(0, first + length if first < 0 else first), (last + length if last < 0 else last) + 1)


# --- lists ---------------------------------------------------------------------------------------


@_command(writes=True)
def rpush(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.value(args[0], list)
    value += args[1:]
    return len(value)


@_command(writes=True)
def lpush(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.value(args[0], list)
    value[:0] = args[:0:-1]
    return len(value)


@_command(writes=True)
def lpop(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.look(args[0], list)
    found = value.pop(0) if value else None
    server.tidy(args[0])
    return found


@_command()
def llen(server: SimRedis, args: list[bytes]) -> Reply:
    return len(server.look(args[0], list))


@_command()
def lrange(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.look(args[0], list)
    return value[_span(args[1], args[2], len(value))]


@_command(writes=True)
def ltrim(server: SimRedis, args: list[bytes]) -> Reply:
    value = server.look(args[0], list)
    value[:] = value[_span(args[1], args[2], len(value))]
    server.tidy(args[0])
    return OK


# --- streams -------------------------------------------------------------------------------------


def _id(text: bytes, seq: int = 0) -> Id:
    """Return an id; one without a second number gets *seq*."""
    head, _, tail = text.partition(b"-")
    return int(head), int(tail) if tail else seq


def _text(entry_id: Id) -> bytes:
    return b"%d-%d" % entry_id


@_command(writes=True)
def xadd(server: SimRedis, args: list[bytes]) -> Reply:
    key, rest = args[0], args[1:]
    make, trim = True, []
    while rest[0].upper() in {b"NOMKSTREAM", b"MAXLEN", b"MINID"}:
        if rest[0].upper() == b"NOMKSTREAM":
            make, rest = False, rest[1:]
            continue
        count = 3 if rest[1] in {b"~", b"="} else 2
        trim, rest = rest[:count], rest[count:]
    if not make and server.value(key) is None:
        return None
    stream = server.value(key, Stream)
    if rest[0] == b"*":
        millis = int(server.now * 1000)
        new = (millis, 0) if millis > stream.last[0] else (stream.last[0], stream.last[1] + 1)
    else:
        new = _id(rest[0])
        if new <= stream.last:
            raise ReplyError("ERR The ID specified in XADD is equal or smaller than the target stream top item")
    if len(rest) < 3 or len(rest) % 2 == 0:
        raise ValueError
    stream.ids.append(new)
    stream.fields.append(rest[1:])
    stream.last = new
    if trim:
        _trim(stream, trim)
    return _text(new)


def _trim(stream: Stream, args: list[bytes]) -> int:
    about = args[1] == b"~"
    bound = args[2] if args[1] in {b"~", b"="} else args[1]
    by_count = args[0].upper() == b"MAXLEN"
    gone = max(0, len(stream.ids) - int(bound)) if by_count else bisect_left(stream.ids, _id(bound))
    if about:
        gone -= gone % NODE
    del stream.ids[:gone], stream.fields[:gone]
    return gone


@_command(writes=True)
def xtrim(server: SimRedis, args: list[bytes]) -> Reply:
    return _trim(server.look(args[0], Stream), args[1:])


@_command()
def xlen(server: SimRedis, args: list[bytes]) -> Reply:
    return len(server.look(args[0], Stream).ids)


@_command(writes=True)
def xdel(server: SimRedis, args: list[bytes]) -> Reply:
    stream, gone = server.look(args[0], Stream), 0
    for each in map(_id, args[1:]):
        place = bisect_left(stream.ids, each)
        if stream.ids[place : place + 1] == [each]:
            del stream.ids[place], stream.fields[place]
            gone += 1
    return gone


def _entries(stream: Stream, first: bytes, last: bytes) -> Iterator[list[Any]]:
    low = (0, 0) if first == b"-" else _id(first.removeprefix(b"("))
    if first.startswith(b"("):
        low = low[0], low[1] + 1
    high = (1 << 63, 0) if last == b"+" else _id(last.removeprefix(b"("), 1 << 63)
    for place in range(bisect_left(stream.ids, low), len(stream.ids)):
        if stream.ids[place] > high or (stream.ids[place] == high and last.startswith(b"(")):
            return
        yield [_text(stream.ids[place]), stream.fields[place]]


def _count(options: list[bytes]) -> int | None:
    return int(options[1]) if options and options[0].upper() == b"COUNT" else None


@_command()
def xrange(server: SimRedis, args: list[bytes]) -> Reply:
    return list(_entries(server.look(args[0], Stream), args[1], args[2]))[: _count(args[3:])]


@_command()
def xrevrange(server: SimRedis, args: list[bytes]) -> Reply:
    return list(_entries(server.look(args[0], Stream), args[2], args[1]))[::-1][: _count(args[3:])]


@_command()
def xread(server: SimRedis, args: list[bytes]) -> Reply:
    """What is there; to block is the connection's business."""
    upper = [each.upper() for each in args]
    place = upper.index(b"STREAMS")
    count = int(args[upper.index(b"COUNT") + 1]) if b"COUNT" in upper[:place] else None
    rest = args[place + 1 :]
    keys, after = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    found = []
    for key, cursor in zip(keys, after, strict=True):
        if entries := list(_entries(server.look(key, Stream), b"(" + cursor, b"+"))[:count]:
            found.append([key, entries])
    return found or None


@_command()
def blpop(server: SimRedis, args: list[bytes]) -> Reply:
    raise ReplyError("ERR timeout is not a float or out of range")


def block_of(args: list[bytes]) -> tuple[list[bytes], float] | None:
    """Return what a command that may block asks now, and for how many seconds it waits."""
    name = args[0].upper()
    if name == b"BLPOP":
        try:
            return args[1:-1], float(args[-1])
        except ValueError:
            return None
    if name == b"XREAD":
        text = b" ".join(args).upper()
        if (found := re.search(rb" BLOCK (\d+)", text)) is not None:
            return args, int(found[1]) / 1000
    return None
