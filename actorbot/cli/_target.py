"""`module:function`: the author's function that makes a shard, and what can be wrong with it."""

from __future__ import annotations

import inspect
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import click

from actorbot.cli._life import NotStartedError
from actorbot.cluster import Shard
from actorbot.errors import ActorbotError

__all__ = ["make_shard"]

EXAMPLE = "write it as module:function, such as bot:make_shard for the function make_shard of bot.py"


def make_shard(target: str) -> Shard:
    """Import the module of *target* from the current directory, and have its function make a shard.

    Raises: NotStartedError. The traceback of an error in the author's code goes to stderr.
    """
    module, colon, name = target.partition(":")
    names = [name, *module.split(".")]
    if not colon or module.endswith(".py") or not all(map(str.isidentifier, names)):
        raise NotStartedError(f"{target!r} names no function: {_say_how(target)}")
    factory = _find(_imported(module), name)
    if isinstance(factory, Shard):
        raise NotStartedError(f"{target} is a Shard; name a function that makes it, since each process needs its own")
    if not callable(factory):
        raise NotStartedError(f"{target} is no function, but {_kind(factory)}")
    if inspect.iscoroutinefunction(factory):
        raise NotStartedError(f"{target} is an `async def`: make the shard in a `def`; nothing is awaited for that")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise NotStartedError(f"{target} is called without arguments: {error}") from error
    except ValueError:  # nothing is known of its arguments
        pass
    try:
        shard = factory()
    except ActorbotError as error:
        raise NotStartedError(f"{target}: {error}") from error
    except Exception as error:
        raise _failed(f"{target} has failed", error) from error
    if not isinstance(shard, Shard):
        forgotten = "; is a `return` missing?" if shard is None else ""
        raise NotStartedError(f"{target} returned no actorbot.cluster.Shard, but {_kind(shard)}{forgotten}")
    return shard


def _say_how(target: str) -> str:
    path, _, name = target.partition(":")
    if path.endswith(".py"):
        dotted = ".".join(Path(path).with_suffix("").parts)
        return f"write {dotted.lstrip('./')}:{name or 'make_shard'}, with dots and without .py"
    return EXAMPLE


def _imported(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise NotStartedError(f"there is no module {error.name!r} in {here}, nor is one installed") from error
        raise _failed(f"{name} cannot be imported", error) from error
    except ActorbotError as error:
        raise NotStartedError(f"{name} cannot be imported: {error}") from error
    except Exception as error:
        raise _failed(f"{name} cannot be imported", error) from error


def _find(module: ModuleType, name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        near = get_close_matches(name, vars(module), n=1)
        hint = f"; do you mean {near[0]}?" if near else ""
        where = getattr(module, "__file__", None) or "which has no file"
        raise NotStartedError(f"the module {module.__name__} ({where}) has no {name!r}{hint}") from None


def _failed(what: str, error: Exception) -> NotStartedError:
    """Print the traceback of the author's code, and return what is said of it."""
    frames = _after_ours(error.__traceback__)
    click.echo("".join(traceback.format_exception(type(error), error, frames)), err=True, nl=False)
    return NotStartedError(f"{what}: {type(error).__name__}: {error}")


def _after_ours(frames: TracebackType | None) -> TracebackType | None:
    """Leave out this file's own frames, and those of the import."""
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] in (
        "actorbot",
        "importlib",
    ):
        frames = frames.tb_next
    return frames


def _kind(value: object) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
