"""What a user of the server must be allowed, found out by trying each command once."""

from __future__ import annotations

from typing import Final

from actorbot.cluster._script import made_of

__all__ = ["RIGHTS", "TRIAL"]

RIGHTS: Final = (
    "+del +evalsha +exists +expire +hdel +hget +hgetall +hincrby +hmget +hset +blpop +rpush +sadd +scard"
    " +script|load +sismember +smembers +srandmember +srem +time +xadd +xdel +xlen +xrange +xread +xtrim"
    " +zadd +zrange +zrem +zscore"
)
"""What a user must be allowed, as ACL SETUSER writes it."""

TRIAL: Final = made_of("""
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
