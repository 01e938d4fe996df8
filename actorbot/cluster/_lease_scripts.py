"""Who is a member, and who owns which slots: decided by the server, and by its clock alone."""

from __future__ import annotations

from typing import Final

from actorbot.cluster._script import IN_ANY_CASE, made_of

__all__ = ["DRAIN", "JOIN", "LEASE", "MEMBERS", "RELEASE", "SLOTS"]

JOIN: Final = made_of(
    IN_ANY_CASE
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

LEASE: Final = made_of(
    IN_ANY_CASE
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
  if not record then  -- the server has lost it, and whether somebody of before may write still
    put(slot, epoch, now + day, me)
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

RELEASE: Final = made_of(
    IN_ANY_CASE
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

MEMBERS: Final = made_of("""
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

SLOTS: Final = made_of("""
local told = {}
for n = 0, tonumber(call('HGET', meta, 'slots') or 0) - 1 do
  local epoch, _, owner = parsed(call('HGET', leases, n) or '0|0|')
  told[#told + 1] = {n, epoch, owner, call('XLEN', of('log', n)) - call('SCARD', of('acked', n))}
end
return told
""")
"""For each slot: its number, epoch, owner, entries that are not acknowledged."""

DRAIN: Final = made_of(
    IN_ANY_CASE
    + """
for _, member in ipairs(ARGV) do
  if call('ZSCORE', members, member) then call('SADD', base .. ':drains', member) end
end
if call('EXISTS', meta) == 1 then changed('') end
return 1
"""
)
"""Members."""
