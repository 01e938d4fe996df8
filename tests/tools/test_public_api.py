"""What may be imported, and that it is documented: the names that a minor version does not take
away.
"""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from importlib.resources import files
from types import ModuleType
from typing import Any

import pytest

import actorbot
from actorbot import cluster, errors, stores, testing

NAMES = [
    "DUPLICATE", "ONE_YEAR", "Bot", "ConsoleBot", "Context", "Event", "FileSessionStore", "FlushPolicy", "MemorySessionStore",
    "Receipt", "Retry", "Session", "SessionManager", "SessionStore", "ShutdownReport", "errors", "store_from_url",
]  # fmt: skip


def test_the_package_exports_these_names_and_no_others() -> None:
    assert actorbot.__all__ == sorted(NAMES, key=lambda name: (not name.isupper(), name))


@pytest.mark.parametrize("module", [actorbot, cluster, errors, stores, testing], ids=lambda module: module.__name__)
def test_every_exported_name_can_be_imported_and_is_documented(module: ModuleType) -> None:
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert value.__doc__, name
            assert not value.__doc__.startswith(f"{name}("), f"{name} has only the docstring that dataclass makes"


@pytest.mark.parametrize(
    "kind",
    [kind for name in NAMES if inspect.isclass(kind := getattr(actorbot, name))]
    + [getattr(cluster, name) for name in cluster.__all__],
    ids=lambda k: k.__name__,
)
def test_every_public_method_is_documented(kind: type[Any]) -> None:
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    for name, value in inspect.getmembers(kind):
        if name.startswith("_") or name in fields or not (inspect.isroutine(value) or isinstance(value, property)):
            continue
        assert inspect.getdoc(value), f"{kind.__name__}.{name}"


def test_every_error_is_an_actorbot_error_and_the_tree_has_one_root() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    defined = [kind for kind in vars(errors).values() if inspect.isclass(kind) and kind.__module__ == errors.__name__]

    assert errors.__all__ == sorted(errors.__all__, key=lambda name: (name != "ActorbotError", name))
    assert all(issubclass(kind, errors.ActorbotError) for kind in kinds)
    assert {kind for kind in defined if kind not in kinds} == {errors.TurnError}  # what turns' errors have in common


@pytest.mark.parametrize(
    ("manager", "receipt"),
    [(actorbot.SessionManager, actorbot.Receipt), (cluster.Cluster, cluster.ClusterReceipt)],
    ids=lambda kind: kind.__name__,
)
def test_every_verb_has_a_twin_for_threads(manager: type[Any], receipt: type[Any]) -> None:
    for verb in ("start", "close", "dispatch", "submit", "turn", "flush", "peek", "destroy", "members"):
        if not hasattr(manager, verb):
            continue
        asked = set(inspect.signature(getattr(manager, verb)).parameters)
        assert asked <= set(inspect.signature(getattr(manager, f"{verb}_sync")).parameters), verb
    for verb in ("result", "durable"):
        assert (
            inspect.signature(getattr(receipt, verb)).parameters
            == inspect.signature(getattr(receipt, f"{verb}_sync")).parameters
        )


def test_a_cluster_has_the_verbs_of_a_manager_with_the_same_arguments() -> None:
    for verb in ("dispatch", "submit", "peek", "destroy", "dispatch_sync", "submit_sync", "peek_sync", "destroy_sync"):
        of_manager, of_cluster = (
            inspect.signature(getattr(kind, verb)).parameters for kind in (actorbot.SessionManager, cluster.Cluster)
        )
        shared = {name: (each.kind, each.default) for name, each in of_cluster.items() if name in of_manager}
        assert shared == {name: (each.kind, each.default) for name, each in of_manager.items()}, verb


@pytest.mark.parametrize("driver", ["redis", "hiredis"])
def test_without_the_driver_only_a_cluster_says_what_to_install(driver: str) -> None:
    code = f"import sys; sys.modules[{driver!r}] = None; import actorbot; from actorbot.ext import webhooks, asgi\n"
    run = [sys.executable, "-W", "error", "-c"]
    done = subprocess.run([*run, code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")

    done = subprocess.run(
        [*run, code + "import actorbot.cluster"], capture_output=True, text=True, timeout=30, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: actorbot.cluster needs redis-py: pip install '.[redis]' in a clone of actorbot"


def test_the_package_says_that_it_is_typed() -> None:
    assert files("actorbot").joinpath("py.typed").is_file()


def test_importing_the_package_says_nothing_and_starts_nothing() -> None:
    code = "from actorbot import *; import threading; print(threading.active_count(), SessionManager.__name__)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=30, check=True
    )

    assert (done.stdout, done.stderr) == ("1 SessionManager\n", "")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.InvalidSessionIdError("it is empty"), "telegram:42"),
        (errors.NotEncodableError("session['cart'][2]", "is a cycle"), "JSON-like values"),
        (errors.SessionTooLargeError("session['cart']", "is too deep", limit=64), "Keep less"),
        (errors.CorruptSessionError("file", "ann", "it is truncated"), "destroy()"),
        (errors.OverloadedError("the bound is reached", retry_after=0.5), "try again in 0.5 s"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_says_what_to_do(error: errors.ActorbotError, says: str) -> None:
    assert says in str(error)
