"""What the server does by itself: each operation of the log is one script, so all or none of it.

Here is what becomes of events and answers.
"""

from __future__ import annotations

from typing import Final

from actorbot.cluster._lease_scripts import DRAIN, JOIN, LEASE, MEMBERS, RELEASE, SLOTS
from actorbot.cluster._rights import RIGHTS, TRIAL
from actorbot.cluster._script import IN_ANY_CASE, Script, made_of

__all__ = [
    "ALL", "APPEND", "DRAIN", "JOIN", "LEASE", "MEMBERS", "READ", "RELEASE", "RIGHTS", "SETTLE", "SLOTS", "TRIAL", "Script",
]  # fmt: skip

APPEND: Final = made_of("""
local slots, max_waiting = unpack(call('HMGET', meta, 'slots', 'max_waiting'))
if not slots then return 'no cluster' end
if slots ~= ARGV[1] then return slots end
max_waiting = tonumber(max_waiting)
local outcomes, news = {}, {}
local batch = of('batch', ARGV[2])  -- the last one of this caller
if ARGV[2] ~= '' then
  local number, known = unpack(call('HMGET', batch, 'number', 'outcomes'))
  if number == ARGV[3] then  -- only its answer was lost
    for each in string.gmatch(known, '.') do outcomes[#outcomes + 1] = tonumber(each) end
    return outcomes
  end
  -- One that was on its way in a connection that was given up: the caller has sent it again since.
  if number and tonumber(number) > tonumber(ARGV[3]) then return outcomes end
end
for i = 4, #ARGV, 2 do
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
if ARGV[2] ~= '' then
  call('HSET', batch, 'number', ARGV[3], 'outcomes', table.concat(outcomes))
  call('EXPIRE', batch, 120)
end
return outcomes
""")
"""Slots, caller, batch, then pairs of slot and payload -> 1 or 0 for each pair."""

READ: Final = made_of(
    IN_ANY_CASE
    + """
local me, room, connection = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local rung, cursors = of('rung', me), of('cur', me)
call('DEL', of('bell', me))
local newest = tonumber(call('HGET', cursors, 'by') or 0)
if connection < newest then return {'', 0, {}} end  -- it was given up: its packets come late, and nobody listens
if connection > newest then call('HSET', cursors, 'by', connection) end
for i = 4, #ARGV do  -- these are read from their start
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
"""Member, room, which of its connections this is, slots to begin anew -> gen, how many slots are
left, and of each entry slot, id, payload."""

SETTLE: Final = made_of(
    IN_ANY_CASE
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

ALL: Final = (JOIN, APPEND, READ, LEASE, SETTLE, RELEASE, MEMBERS, SLOTS, DRAIN, TRIAL)
