from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorbot import FlushPolicy, Retry
from actorbot.errors import ConfigError

DAY = 86_400.0


def seconds(least=0.0):
    return st.floats(least, DAY, exclude_min=not least) | st.integers(max(1, math.ceil(least)), int(DAY))


@st.composite
def retries(draw):
    base = draw(seconds(0.001))
    return Retry(attempts=draw(st.integers(1, 1_000)), base=base, cap=draw(st.floats(base, DAY)))


BATCHES = {"batch_size": st.integers(1, 10_000), "store_deadline": seconds(), "retry": retries()}
BEHIND = {
    "max_delay": seconds(),
    "max_events": st.integers(1, 1_000_000),
    "max_dirty_bytes": st.integers(64 * 1024, 1024**4),
    "when_full": st.sampled_from(["wait", "reject"]),
}
PATHS = st.text(st.sampled_from("/x.,='\" \n\\%:~"), min_size=1) | st.text(
    st.characters(exclude_characters="\0"), min_size=1
)
JOURNAL = {"path": PATHS, "sync": st.sampled_from(["full", "normal"])}
POLICIES = (
    st.builds(FlushPolicy.write_through, **BATCHES)
    | st.builds(FlushPolicy.write_behind, **BEHIND, **BATCHES)
    | st.builds(FlushPolicy.journaled, **JOURNAL, **BEHIND, **BATCHES)
)


# --- choosing one -------------------------------------------------------------------------------


def test_write_behind_loses_at_most_a_second_or_a_hundred_events_unless_told_otherwise():
    policy = FlushPolicy.write_behind()

    assert (policy.mode, policy.max_delay, policy.max_events) == ("write-behind", 1.0, 100)


def test_a_policy_cannot_change_under_a_running_bot():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FlushPolicy.write_behind().max_delay = 2.0


def test_a_knob_that_write_through_does_not_have_is_refused_rather_than_ignored():
    with pytest.raises(TypeError):
        FlushPolicy.write_through(max_delay=0.5)
    with pytest.raises(ConfigError) as caught:
        FlushPolicy(mode="write-through", max_delay=0.5)

    assert (caught.value.field, caught.value.value) == ("max_delay", 0.5)


def test_only_a_journaled_policy_has_a_path():
    with pytest.raises(ConfigError) as caught:
        FlushPolicy(mode="write-behind", path="/var/lib/bot/journal")

    assert caught.value.field == "path"


@pytest.mark.parametrize("path", ["", None, 7, "a\0b", b"journal"])
def test_a_journal_needs_a_path(path):
    with pytest.raises(ConfigError) as caught:
        FlushPolicy.journaled(path)

    assert caught.value.field == "path"


@pytest.mark.parametrize("make", [FlushPolicy.write_behind, lambda **knobs: FlushPolicy(mode="write-behind", **knobs)])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, bad) for name in ("max_delay", "store_deadline") for bad in (0, -1.0, DAY * 1.01, 10**400)],
        *[(name, bad) for name in ("max_delay", "store_deadline") for bad in (math.nan, math.inf, "1", None, True)],
        *[(name, bad) for name in ("max_events", "batch_size") for bad in (0, -1, 1_000_001, 1.0, math.nan, "9", None)],
        *[(name, True) for name in ("max_events", "batch_size", "max_dirty_bytes")],
        *[("max_dirty_bytes", bad) for bad in (64 * 1024 - 1, 1024**4 + 1, 1e6)],
        *[("when_full", bad) for bad in ("drop", "WAIT", "", None, True, ["wait"])],
        *[("retry", bad) for bad in (None, 5, {"attempts": 5})],
    ],
    ids=repr,
)
def test_a_value_out_of_range_is_refused_and_named(make, field, value):
    with pytest.raises(ConfigError) as caught:
        make(**{field: value})

    assert caught.value.field == field
    assert caught.value.value is value
    assert repr(value) in str(caught.value)


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="write-through or write-behind or journaled"):
        FlushPolicy(mode="write-around")


# --- retrying -----------------------------------------------------------------------------------


def test_pauses_double_from_the_base_to_the_cap_and_stay_there():
    retry = Retry(base=0.1, cap=0.5)

    assert [retry.delay(attempt) for attempt in (1, 2, 3, 4, 5, 100_000)] == [0.1, 0.2, 0.4, 0.5, 0.5, 0.5]


@given(retries())
def test_every_retry_reaches_its_cap_and_never_passes_it(retry):
    assert retry.delay(1) == retry.base
    assert retry.delay(10**6) == retry.cap


@pytest.mark.parametrize(
    ("field", "knobs"),
    [
        ("retry.attempts", {"attempts": 0}),
        ("retry.attempts", {"attempts": 2.0}),
        ("retry.attempts", {"attempts": True}),
        ("retry.base", {"base": 0}),
        ("retry.base", {"base": math.nan}),
        ("retry.base", {"base": "0.1"}),
        ("retry.cap", {"cap": math.inf}),
        ("retry.cap", {"base": 10.0, "cap": 5.0}),
    ],
    ids=repr,
)
def test_a_retry_out_of_range_is_refused_and_named(field, knobs):
    with pytest.raises(ConfigError) as caught:
        Retry(**knobs)

    assert caught.value.field == field


# --- as text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("write-through", FlushPolicy.write_through()),
        ("write-behind", FlushPolicy.write_behind()),
        (
            "write-behind:max_delay=0.5,max_events=10,when_full=reject",
            FlushPolicy.write_behind(max_delay=0.5, max_events=10, when_full="reject"),
        ),
        (
            "write-through:retry.attempts=3,retry.cap=60,batch_size=7",
            FlushPolicy.write_through(retry=Retry(attempts=3, cap=60.0), batch_size=7),
        ),
        ("journaled:path=/var/lib/bot/journal", FlushPolicy.journaled("/var/lib/bot/journal")),
        (
            "journaled:path=bot.journal,sync=normal,max_delay=2",
            FlushPolicy.journaled(Path("bot.journal"), sync="normal", max_delay=2.0),
        ),
        ('journaled:path="a,b.db",sync=normal', FlushPolicy.journaled("a,b.db", sync="normal")),
        ("journaled: path = ' a,b ' , max_events = '5'", FlushPolicy.journaled(" a,b ", max_events=5)),
        ('journaled:path="say ""hi"", twice"', FlushPolicy.journaled('say "hi", twice')),
        (" write-behind : max_delay = 2 \n", FlushPolicy.write_behind(max_delay=2.0)),
    ],
)
def test_a_policy_is_read_from_text(text, policy):
    assert FlushPolicy.parse(text) == policy


@given(POLICIES)
def test_the_text_of_a_policy_reads_back_as_the_same_policy(policy):
    assert FlushPolicy.parse(str(policy)) == policy


def test_the_text_of_a_policy_names_only_what_was_chosen():
    assert str(FlushPolicy.write_behind()) == "write-behind"
    assert str(FlushPolicy.write_behind(max_delay=0.5)) == "write-behind:max_delay=0.5"
    assert str(FlushPolicy.journaled("/var/lib/a b=c")) == "journaled:path=/var/lib/a b=c"


@pytest.mark.parametrize(
    ("text", "field", "hint"),
    [
        ("", "flush", "write-through or write-behind or journaled"),
        ("write_behind", "flush", "write-through or write-behind or journaled"),
        ("Write-Behind", "flush", "write-through or write-behind or journaled"),
        ("journaled:/var/bot", "flush", "name=value"),
        ("journaled", "path", "the path"),
        ("journaled:path=/var/bot,sync=often", "sync", "full or normal"),
        ("write-behind:path=/var/bot", "path", "max_delay, max_events"),
        ("write-behind:", "flush", "name=value"),
        ("write-behind:max_delay=1,", "flush", "name=value"),
        ("write-behind:max_delay", "flush", "name=value"),
        ("write-behind:max_dely=1", "max_dely", "max_delay, max_events"),
        ("write-behind:retry=3", "retry", "retry.attempts, retry.base, retry.cap"),
        ("write-behind:mode=write-through", "mode", "max_delay, max_events"),
        ("write-through:max_delay=1", "max_delay", "batch_size, store_deadline"),
        ("write-behind:max_delay=1,max_delay=1", "max_delay", "second"),
        ("write-behind:max_delay=", "max_delay", "seconds"),
        ("write-behind:max_delay=soon", "max_delay", "seconds"),
        ("write-behind:max_delay=nan", "max_delay", "seconds"),
        ("write-behind:max_delay=1:2", "max_delay", "seconds"),
        ("write-behind:max_events=1.5", "max_events", "whole number"),
        ("write-behind:when_full=1", "when_full", "wait or reject"),
        ("write-behind:retry.attempts=0", "retry.attempts", "whole number"),
        (None, "flush", "text"),
        (FlushPolicy.write_behind(), "flush", "text"),
    ],
    ids=repr,
)
def test_text_that_is_no_policy_is_refused_with_what_would_be(text, field, hint):
    with pytest.raises(ConfigError) as caught:
        FlushPolicy.parse(text)

    assert caught.value.field == field
    assert hint in caught.value.expected


@given(st.text() | st.from_regex(r"write-(behind|through):([a-z_.]+=[\w.]+,?)*"))
def test_any_other_text_is_refused_the_same_way(text):
    try:
        policy = FlushPolicy.parse(text)
    except ConfigError:
        return
    assert FlushPolicy.parse(str(policy)) == policy
