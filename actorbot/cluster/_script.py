"""A script of the log, and what the names in it lead to.

A cluster's keys begin with one hash tag, the base, so that all of them are on one server. These are
of the cluster:

- `:meta` hash: `protocol`, `slots`, `max_waiting`; `gen`, which counts changes of members and of
  leases; `last`, the time of the last renewal by anybody; `hold`, until when nobody's slots are
  taken.
- `:members` sorted set: each with the time until which its lease holds. It is the lease of all its
  slots. `:infos` hash, what each says of itself. `:leaving`, `:drains` sets of members.
- `:leases` hash: for each slot `epoch|claims until|owner`. Without an owner, it was given back.
- `:log:<slot>` stream of entries. `:acked:<slot>` set of those that are acknowledged, not flushed.

And these of a member or a caller:

- `:rung:<member>` set of slots with something new. `:bell:<member>` list, to wait at.
  `:cur:<member>` hash: for each slot the last entry that it was given; and by which of its
  connections, `by`.
- `:answers:<caller>` stream, which its reader trims. `:batch:<caller>` hash, what became of the
  batch that it has appended last.

Times are milliseconds of the server's own clock: nobody else's counts. Only commands of Redis 6.2.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final, NamedTuple

__all__ = ["IN_ANY_CASE", "Script", "made_of"]


class Script(NamedTuple):
    """A script, and what the server calls it."""

    text: bytes
    sha: bytes


HEAD: Final = """
local base, call = KEYS[1], redis.call
local meta, members, leases = base .. ':meta', base .. ':members', base .. ':leases'
local function of(kind, name) return base .. ':' .. kind .. ':' .. name end
local function parsed(record) return string.match(record, '^(%d+)|(%d+)|(.*)$') end
local function written(time) return string.format('%.0f', time) end
local function clock() local t = call('TIME') return t[1] * 1000 + math.floor(t[2] / 1000) end
local function wake(member)
  if call('EXISTS', of('bell', member)) == 0 then call('RPUSH', of('bell', member), 1) end
end
local function changed(me)  -- members or leases: all others look
  call('HINCRBY', meta, 'gen', 1)
  for _, member in ipairs(call('ZRANGE', members, 0, -1)) do if member ~= me then wake(member) end end
end
local function forget(member)
  call('ZREM', members, member)
  call('HDEL', base .. ':infos', member)
  call('SREM', base .. ':leaving', member)
  call('SREM', base .. ':drains', member)
  call('DEL', of('rung', member), of('bell', member), of('cur', member))
end
"""

# A server that is full refuses what may need memory, as long as a script has written nothing. What
# keeps a cluster alive, or empties the log, begins with a write that needs none.
IN_ANY_CASE: Final = "call('DEL', base)\n"


def made_of(body: str) -> Script:
    text = (HEAD + body).encode()
    return Script(text, sha1(text).hexdigest().encode())
