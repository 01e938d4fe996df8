"""What a Redis or Valkey server says of itself, judged: will it do, and may it lose sessions?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from actorbot.stores._finding import Finding

__all__ = ["judge_server"]

OLDEST: Final = (6, 2)  # the first with SET … PXAT
FULL: Final = 0.9  # of its memory limit


def judge_server(facts: Mapping[str, str], *, in_cluster: bool) -> Iterator[Finding]:
    """Judge the *facts* of `INFO` and `CONFIG GET`, as far as they could be asked; each text goes on from the server's name."""
    if "redis_version" in facts:
        yield _version(facts)
    if "role" in facts:
        yield _role(facts, in_cluster)
    if "aof_enabled" in facts and "save" in facts:
        yield _persistence(facts)
    if "maxmemory_policy" in facts:
        yield _eviction(facts["maxmemory_policy"])
    if "maxmemory" in facts:
        yield _memory(int(facts["maxmemory"]), int(facts.get("used_memory", 0)))


def _version(facts: Mapping[str, str]) -> Finding:
    spoken = facts["redis_version"]  # Valkey names the Redis that it stands for
    if tuple(int(part) for part in spoken.split(".")[:2]) < OLDEST:
        return Finding("version", "failure", f"runs Redis {spoken}; 6.2 is the oldest that will do")
    valkey = facts.get("valkey_version")
    return Finding("version", "ok", f"runs Valkey {valkey}" if valkey else f"runs Redis {spoken}")


def _role(facts: Mapping[str, str], in_cluster: bool) -> Finding:
    if in_cluster:
        return Finding("role", "ok", f"is a {'replica' if facts['role'] == 'slave' else 'primary'} in a cluster")
    if facts["role"] == "slave":
        primary = f"{facts.get('master_host')}:{facts.get('master_port')}"
        return Finding("role", "failure", f"is a replica, which takes no writes; name its primary, {primary}")
    return Finding("role", "ok", f"is a primary with {facts.get('connected_slaves', '0')} replicas")


def _persistence(facts: Mapping[str, str]) -> Finding:
    if facts["aof_enabled"] != "0":
        sync = facts.get("appendfsync", "unknown")
        return Finding("persistence", "ok", f"logs each write (appendonly yes, appendfsync {sync})")
    loses = (
        "what came since its last snapshot when it crashes"
        if facts["save"]
        else "all sessions when it ends: its persistence is off"
    )
    return Finding("persistence", "warning", f"loses {loses}; set appendonly to yes")


def _eviction(policy: str) -> Finding:
    if policy == "noeviction":
        return Finding("eviction", "ok", "evicts nothing (maxmemory-policy noeviction)")
    text = f"may evict sessions when its memory is full (maxmemory-policy {policy}); set it to noeviction"
    return Finding("eviction", "warning", text)


def _memory(limit: int, used: int) -> Finding:
    if not limit:
        return Finding("memory", "ok", f"uses {used / 2**20:.1f} MiB, without a limit of its own (maxmemory 0)")
    text = f"uses {used / 2**20:.1f} of {limit / 2**20:.1f} MiB (maxmemory)"
    if used < FULL * limit:
        return Finding("memory", "ok", text)
    return Finding("memory", "warning", f"{text}; give it more before it refuses writes")
