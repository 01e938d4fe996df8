"""The Redis of the simulation answers as a real one does."""

from __future__ import annotations

import socket
import uuid
from random import Random
from typing import Any

import hiredis
import pytest

from actorbot.cluster import _scripts
from tests.faults._sim_redis import COMMANDS, SimRedis, encode
from tests.servers import redis_servers
from tests.tiers import tiers
from tests.waiting import SOON

WORDS = ("a", "b", "c", "d")
IDS = ("1-1", "2-0", "2-1", "5-0")
SCORES = ("1", "2.5", "-3", "1700000000123")
SCRIPT = """
local n, key = tonumber(ARGV[1]), KEYS[1]
local found = redis.call('HGETALL', key .. 'hash')
local wrong = redis.pcall('HGET', key .. 'list', 'a')
return {n / 4, n * 1700000000, tostring(n / 3), #found, found, false, redis.call('ZSCORE', key .. 'zset', 'a'),
  wrong and wrong.err and 1 or wrong, redis.call('XRANGE', key .. 'stream', '(2-0', '+', 'COUNT', 2)}
"""


def _a_command(random: Random, base: str) -> list[str | int]:
    word, entry, number = (lambda: random.choice(WORDS)), (lambda: random.choice(IDS)), random.randint(-2, 3)
    score = lambda: random.choice(SCORES)  # noqa: E731
    bound = lambda: random.choice(("-inf", "+inf", "(1", "2.5", "(2.5"))  # noqa: E731
    hash_, set_, zset, list_, stream = (base + kind for kind in ("hash", "set", "zset", "list", "stream"))
    commands: list[list[str | int]] = [
        ["HSET", hash_, word(), word(), word(), word()], ["HGET", hash_, word()], ["HMGET", hash_, word(), word()],
        ["HGETALL", hash_], ["HDEL", hash_, word(), word()], ["HINCRBY", hash_, "number", number], ["HLEN", hash_],
        ["SADD", set_, word(), word()], ["SREM", set_, word()], ["SISMEMBER", set_, word()], ["SCARD", set_],
        ["SMEMBERS", set_], ["ZADD", zset, score(), word(), score(), word()], ["ZADD", zset, "CH", score(), word()],
        ["ZADD", zset, "NX", score(), word()], ["ZADD", zset, "GT", score(), word()], ["ZREM", zset, word()],
        ["ZSCORE", zset, word()], ["ZRANGE", zset, 0, -1, "WITHSCORES"], ["ZRANGE", zset, number, -1], ["ZCARD", zset],
        ["ZRANGEBYSCORE", zset, bound(), bound()], ["RPUSH", list_, word()], ["LPOP", list_], ["LLEN", list_],
        ["LRANGE", list_, 0, number], ["XADD", stream, entry(), "e", word()], ["XDEL", stream, entry(), entry()],
        ["XRANGE", stream, "(" + entry(), "+"], ["XRANGE", stream, "-", entry(), "COUNT", 2], ["XLEN", stream],
        ["XTRIM", stream, "MINID", entry()], ["XREAD", "COUNT", 2, "STREAMS", stream, entry()],
        ["DEL", random.choice((hash_, set_, zset, list_))], ["EXISTS", hash_, set_], ["TYPE", random.choice((zset, list_))],
        ["HGET", set_, word()], ["SADD", hash_, word()], ["EVAL", SCRIPT, 1, base, number],
    ]  # fmt: skip
    return random.choice(commands)


@pytest.mark.parametrize("seed", tiers(range(8)))
def test_the_simulated_redis_answers_as_a_real_one(seed: int) -> None:
    random, simulated, base = Random(seed), SimRedis(), uuid.uuid4().hex
    with socket.create_connection(("127.0.0.1", redis_servers.shared().port), timeout=SOON) as real:
        for number in range(1_500):
            command = [str(part).encode() for part in _a_command(random, base)]
            real.sendall(hiredis.pack_command(tuple(command)))
            reader = hiredis.Reader()
            while (said := reader.gets()) is False:
                reader.feed(real.recv(65_536))
            reader.feed(encode(simulated.call(number, number, command)))
            assert _plain(reader.gets(), command) == _plain(said, command), command


def test_the_simulated_redis_has_every_command_of_the_scripts() -> None:
    told = b"".join(script.text for script in _scripts.ALL)
    named = {part.split(b"'")[0] for part in told.split(b"call('")[1:]}
    assert named <= set(COMMANDS)


def _plain(reply: Any, command: list[bytes]) -> Any:
    if isinstance(reply, Exception):
        return str(reply).partition(" ")[0]  # its kind
    return sorted(reply) if command[0] in (b"SMEMBERS", b"HGETALL") else reply  # these are in no order
