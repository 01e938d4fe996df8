"""What the server does by itself: each operation of the log is one script, so all or none of it.

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
  `:cur:<member>` hash: for each slot the last entry that it was given.
- `:answers:<caller>` stream, which its reader trims.

Times are milliseconds of the server's own clock: nobody else's counts. Only commands of Redis 6.2.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final, NamedTuple

__all__ = [
    "ALL",
    "APPEND",
    "DRAIN",
    "JOIN",
    "LEASE",
    "MEMBERS",
    "READ",
    "RELEASE",
    "RIGHTS",
    "SETTLE",
    "SLOTS",
    "TRIAL",
]


class Script(NamedTuple):
    """A script, and what the server calls it."""

    text: bytes
    sha: bytes


_HEAD: Final = """
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
_IN_ANY_CASE: Final = "call('DEL', base)\n"


def _script(body: str) -> Script:
    text = (_HEAD + body).encode()
    return Script(text, sha1(text).hexdigest().encode())


JOIN: Final = _script(
    _IN_ANY_CASE
    + """
local protocol, slots, max_waiting, again, lease = unpack(ARGV)
if call('EXISTS', meta) == 0 then
  local now = clock()
  call('HSET', meta, 'protocol', protocol, 'slots', slots, 'max_waiting', max_waiting,
    'gen', written(now), 'last', written(now))
  if again == '1' then  -- the server has lost it: others are about to put their leases back
    call('HSET', meta, 'hold', written(now + lease))
  end
elseif call('HGET', meta, 'protocol') == protocol and call('HGET', meta, 'slots') == slots then
  call('HSET', meta, 'max_waiting', max_waiting)  -- as the newest member has it
end
return call('HMGET', meta, 'protocol', 'slots', 'max_waiting')
"""
)
"""Protocol, slots, max_waiting, "1" if it was there before, lease -> what the first three are."""

APPEND: Final = _script("""
local slots, max_waiting = unpack(call('HMGET', meta, 'slots', 'max_waiting'))
if not slots then return 'no cluster' end
if slots ~= ARGV[1] then return slots end
max_waiting = tonumber(max_waiting)
local outcomes, news = {}, {}
for i = 2, #ARGV, 2 do
  local log = of('log', ARGV[i])
  if call('XLEN', log) >= max_waiting then
    outcomes[#outcomes + 1] = 0
  else
    call('XADD', log, '*', 'e', ARGV[i + 1])
    outcomes[#outcomes + 1] = 1
    news[#news + 1] = ARGV[i]
  end
end
-- Each owner is rung for once, whatever there is for it: a call costs as much as what it does.
local rung = {}
for i, record in ipairs(#news > 0 and call('HMGET', leases, unpack(news)) or {}) do
  local _, _, owner = parsed(record or '0|0|')
  if owner ~= '' then
    rung[owner] = rung[owner] or {}
    table.insert(rung[owner], news[i])
  end
end
for owner, slots in pairs(rung) do
  if call('SADD', of('rung', owner), unpack(slots)) > 0 then wake(owner) end
end
return outcomes
""")
"""Slots, then pairs of slot and payload -> 1 or 0 for each pair."""

READ: Final = _script(
    _IN_ANY_CASE
    + """
local me, room = ARGV[1], tonumber(ARGV[2])
local rung, cursors = of('rung', me), of('cur', me)
call('DEL', of('bell', me))
for i = 3, #ARGV do  -- these are read from their start
  local _, _, owner = parsed(call('HGET', leases, ARGV[i]) or '0|0|')
  call('HDEL', cursors, ARGV[i])
  if owner == me and call('XLEN', of('log', ARGV[i])) > 0 then call('SADD', rung, ARGV[i]) end
end
local found = {}
-- Lua takes some thousand arguments at most.
local slots = room > 0 and call('SRANDMEMBER', rung, math.min(room, 1000)) or {}
local read = #slots > 0 and call('HMGET', cursors, unpack(slots)) or {}
local moved, empty = {}, {}
for n, slot in ipairs(slots) do
  local share = math.ceil(room / (#slots - n + 1))  -- so that a full slot does not keep others waiting
  local entries = call('XRANGE', of('log', slot), read[n] and '(' .. read[n] or '-', '+', 'COUNT', share)
  for _, entry in ipairs(entries) do
    found[#found + 1] = slot
    found[#found + 1] = entry[1]
    found[#found + 1] = entry[2][2]
  end
  if #entries > 0 then
    moved[#moved + 1] = slot
    moved[#moved + 1] = entries[#entries][1]
  end
  if #entries < share then empty[#empty + 1] = slot end
  room = room - #entries
end
if #moved > 0 then call('HSET', cursors, unpack(moved)) end
if #empty > 0 then call('SREM', rung, unpack(empty)) end
return {call('HGET', meta, 'gen') or '', call('SCARD', rung), found}
"""
)
"""Member, room, slots to begin anew -> gen, how many slots are left, and of each entry slot, id,
payload."""

LEASE: Final = _script(
    _IN_ANY_CASE
    + """
local me, lease, leaving, info, held = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4], tonumber(ARGV[5])
local last, hold, slots = unpack(call('HMGET', meta, 'last', 'hold', 'slots'))
if not slots then return 'no cluster' end
local now, day = clock(), 86400000
last, hold, slots = tonumber(last), tonumber(hold or 0), tonumber(slots)
local news = false

-- Who knows that nobody could renew, or that the clock was set, takes nobody's slots for a while.
if now < last then
  local listed = call('ZRANGE', members, 0, -1, 'WITHSCORES')
  for i = 1, #listed, 2 do call('ZADD', members, written(listed[i + 1] - last + now), listed[i]) end
end
if now < last or now - last > lease / 2 then
  hold = now + lease
  call('HSET', meta, 'hold', written(hold))
end
call('HSET', meta, 'last', written(now))

-- My own lease, and who else has one.
if call('ZADD', members, written(now + lease), me) == 1 then news = true end
call('HSET', base .. ':infos', me, info)
if leaving and call('SADD', base .. ':leaving', me) == 1 then news = true end
for i = 6 + 2 * held, #ARGV do  -- members that are known to have ended
  if call('ZSCORE', members, ARGV[i]) and call('ZADD', members, 'CH', 0, ARGV[i]) == 1 then news = true end
end
local leavers, scores, alive = {}, {}, {}
for _, member in ipairs(call('SMEMBERS', base .. ':leaving')) do leavers[member] = true end
local look = lease
local listed = call('ZRANGE', members, 0, -1, 'WITHSCORES')
for i = 1, #listed, 2 do
  local member, score = listed[i], tonumber(listed[i + 1])
  scores[member] = score
  if score > now then
    if not leavers[member] then alive[#alive + 1] = member end
    if member ~= me then look = math.min(look, score - now + 1) end
  end
end
if hold > now then look = math.min(look, hold - now + 1) end

-- What I hold, what I have lost, and what is mine without my knowing: an answer was lost.
local records, owned, mine, lost, granted = {}, {}, {}, {}, {}
local listed = call('HGETALL', leases)
for i = 1, #listed, 2 do
  local epoch, claims, owner = parsed(listed[i + 1])
  records[listed[i]] = {epoch = epoch, claims = tonumber(claims), owner = owner}
end
local function put(slot, epoch, claims, owner)
  records[slot] = {epoch = epoch, claims = claims, owner = owner}
  call('HSET', leases, slot, epoch .. '|' .. written(claims) .. '|' .. owner)
end
for i = 6, 5 + 2 * held, 2 do
  local slot, epoch = ARGV[i], ARGV[i + 1]
  local record = records[slot]
  if not record then  -- the server has lost it
    put(slot, epoch, 0, me)
    record = records[slot]
    if call('XLEN', of('log', slot)) > 0 and call('SADD', of('rung', me), slot) == 1 then wake(me) end
  end
  if record.owner == me and record.epoch == epoch then mine[slot] = true else lost[#lost + 1] = slot end
end
for slot, record in pairs(records) do
  owned[record.owner] = (owned[record.owner] or 0) + 1
  if record.owner == me and not mine[slot] then granted[#granted + 1] = slot end
end

-- How many I should have. Those with most keep most, so that few slots move.
table.sort(alive, function(a, b)
  local of_a, of_b = owned[a] or 0, owned[b] or 0
  if of_a == of_b then return a < b end
  return of_a > of_b
end)
local quota = 0
for rank, member in ipairs(alive) do
  if member == me then quota = math.floor(slots / #alive) + (rank <= slots % #alive and 1 or 0) end
end

-- Take what is free.
for n = 0, slots - 1 do
  if (owned[me] or 0) >= quota then break end
  local slot = tostring(n)
  local record = records[slot]
  local owner = record and record.owner
  local score = scores[owner] or 1
  local epoch, claims
  if not record then
    if now >= hold then epoch, claims = 1, hold > 0 and now + day or 0 end
  elseif owner == '' then  -- given back in good order
    epoch, claims = record.epoch + 1, record.claims
  elseif score <= 0 or score <= now and now >= hold then
    epoch, claims = record.epoch + 1, now + day
    call('HDEL', of('cur', owner), slot)
    call('SREM', of('rung', owner), slot)
    owned[owner] = owned[owner] - 1
  end
  if epoch then
    put(slot, written(epoch), claims, me)
    owned[me] = (owned[me] or 0) + 1
    granted[#granted + 1] = slot
    news = true
  end
end
for member, score in pairs(scores) do
  if score <= now and (score <= 0 or now >= hold) and (owned[member] or 0) == 0 then
    forget(member)
    news = true
  end
end
if news then changed(me) end

-- A hash of few short values is searched from its start, which takes 1 us for each event. One that
-- has ever had a long value is a table, until the server is restarted.
for _, key in ipairs({leases, of('cur', me)}) do
  call('HSET', key, '', string.rep('-', 65))
  call('HDEL', key, '')
end

local told = {}
for i, slot in ipairs(granted) do
  local record = records[slot]
  told[i] = {slot, record.epoch, record.claims > now and 1 or 0, call('SMEMBERS', of('acked', slot))}
end
return {call('HGET', meta, 'gen'), quota, call('SISMEMBER', base .. ':drains', me), math.ceil(look), lost, told}
"""
)
"""Member, lease, "1" if it is leaving, info, how many are held, pairs of slot and epoch, members
that have ended -> gen, quota, whether to drain, look again in ms, slots lost, and for each slot
that was granted: slot, epoch, claims, entries acknowledged."""

SETTLE: Final = _script(
    _IN_ANY_CASE
    + """
local me, count = ARGV[1], tonumber(ARGV[2])
local refused, at = {}, 3
for _ = 1, count do  -- first look, so that all is done or nothing
  local slot, epoch = ARGV[at], ARGV[at + 1]
  local record = call('HGET', leases, slot)
  if not record then return 'no cluster' end  -- the server has lost it: its owner puts it back
  local epoch_now, _, owner = parsed(record)
  if owner ~= me or epoch_now ~= epoch then refused[#refused + 1] = slot end
  at = at + 4 + ARGV[at + 2] + ARGV[at + 3]
end
if #refused > 0 then return refused end
local function each(command, key, first, number)  -- Lua takes some thousand arguments at most
  for i = first, first + number - 1, 1000 do
    call(command, key, unpack(ARGV, i, math.min(i + 999, first + number - 1)))
  end
end
at = 3
for _ = 1, count do
  local log, acked = of('log', ARGV[at]), of('acked', ARGV[at])
  local kept, done = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  each('SADD', acked, at + 4, kept)
  each('XDEL', log, at + 4 + kept, done)
  if done > 0 and call('XLEN', log) == 0 then call('DEL', acked) else each('SREM', acked, at + 4 + kept, done) end
  at = at + 4 + kept + done
end
for i = at, #ARGV, 2 do
  call('XADD', of('answers', ARGV[i]), 'MAXLEN', '~', 10000, '*', 'a', ARGV[i + 1])
  call('EXPIRE', of('answers', ARGV[i]), 120)
end
return refused
"""
)
"""Member, how many slots; for each slot, epoch, how many are acknowledged, and done, and these;
pairs of caller and answer -> slots that are not the member's in that epoch."""

RELEASE: Final = _script(
    _IN_ANY_CASE
    + """
local me, leave = ARGV[1], ARGV[2] == '1'
local given = {}
for i = 3, #ARGV, 2 do given[ARGV[i]] = ARGV[i + 1] end
local listed, news = call('HGETALL', leases), leave
for i = 1, #listed, 2 do
  local slot = listed[i]
  local epoch, claims, owner = parsed(listed[i + 1])
  if owner == me and (leave or given[slot] == epoch) then
    call('HSET', leases, slot, epoch .. '|' .. claims .. '|')
    call('HDEL', of('cur', me), slot)
    call('SREM', of('rung', me), slot)
    news = true
  end
end
if leave then forget(me) end
if news and call('EXISTS', meta) == 1 then changed(me) end
return 1
"""
)
"""Member, "1" if it leaves, pairs of slot and epoch."""

MEMBERS: Final = _script("""
local leaving, told, now = {}, {}, clock()
for _, member in ipairs(call('SMEMBERS', base .. ':leaving')) do leaving[member] = true end
for _, member in ipairs(call('SMEMBERS', base .. ':drains')) do leaving[member] = true end
local listed = call('ZRANGE', members, 0, -1, 'WITHSCORES')
for i = 1, #listed, 2 do
  local info = call('HGET', base .. ':infos', listed[i])
  told[#told + 1] = {listed[i], info or '', written(listed[i + 1] - now), leaving[listed[i]] and 1 or 0}
end
return told
""")
"""For each member: id, info, ms until its lease runs out, whether it leaves."""

SLOTS: Final = _script("""
local told = {}
for n = 0, tonumber(call('HGET', meta, 'slots') or 0) - 1 do
  local epoch, _, owner = parsed(call('HGET', leases, n) or '0|0|')
  told[#told + 1] = {n, epoch, owner, call('XLEN', of('log', n)) - call('SCARD', of('acked', n))}
end
return told
""")
"""For each slot: its number, epoch, owner, entries that are not acknowledged."""

DRAIN: Final = _script(
    _IN_ANY_CASE
    + """
for _, member in ipairs(ARGV) do
  if call('ZSCORE', members, member) then call('SADD', base .. ':drains', member) end
end
if call('EXISTS', meta) == 1 then changed('') end
return 1
"""
)
"""Members."""

RIGHTS: Final = (
    "+del +evalsha +exists +expire +hdel +hget +hgetall +hincrby +hmget +hset +blpop +rpush +sadd +scard"
    " +script|load +sismember +smembers +srandmember +srem +time +xadd +xdel +xlen +xrange +xread +xtrim"
    " +zadd +zrange +zrem +zscore"
)
"""What a user must be allowed, as ACL SETUSER writes it."""

TRIAL: Final = _script("""
-- Each command once, on a key of its own that is gone at the end. What is forbidden is told.
local key, missing, other = base .. ':trial', {}, false
local function try(right, ...)
  local answer = redis.pcall(...)
  local said = type(answer) == 'table' and answer.err
  local forbidden = false
  for _, words in ipairs({'NOPERM', 'The user executing the script', 'ACL failure', 'No permission'}) do
    forbidden = forbidden or said and string.find(said, words)
  end
  if forbidden then
    missing[#missing + 1] = right
  elseif said and string.find(said, 'READONLY') then
    other = said
  end
  redis.pcall('DEL', key)
end
try('+del', 'DEL', key)
if #missing > 0 or other then return other or missing end
try('+exists', 'EXISTS', key)
try('+expire', 'EXPIRE', key, 1)
try('+hdel', 'HDEL', key, 1)
try('+hget', 'HGET', key, 1)
try('+hgetall', 'HGETALL', key)
try('+hincrby', 'HINCRBY', key, 1, 1)
try('+hmget', 'HMGET', key, 1)
try('+hset', 'HSET', key, 1, 1)
try('+rpush', 'RPUSH', key, 1)
try('+sadd', 'SADD', key, 1)
try('+scard', 'SCARD', key)
try('+sismember', 'SISMEMBER', key, 1)
try('+smembers', 'SMEMBERS', key)
try('+srandmember', 'SRANDMEMBER', key, 1)
try('+srem', 'SREM', key, 1)
try('+time', 'TIME')
try('+xadd', 'XADD', key, '*', 1, 1)
try('+xdel', 'XDEL', key, '1-1')
try('+xlen', 'XLEN', key)
try('+xrange', 'XRANGE', key, '-', '+')
try('+xtrim', 'XTRIM', key, 'MAXLEN', 1)
try('+zadd', 'ZADD', key, 1, 1)
try('+zrange', 'ZRANGE', key, 0, -1)
try('+zrem', 'ZREM', key, 1)
try('+zscore', 'ZSCORE', key, 1)
return other or missing
""")
"""-> the rights that this user lacks; a text if the server takes no writes."""

ALL: Final = (JOIN, APPEND, READ, LEASE, SETTLE, RELEASE, MEMBERS, SLOTS, DRAIN, TRIAL)
