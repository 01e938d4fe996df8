"""Who may take a lease, who keeps it, and what is left of it: each case by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorbot._ownership.lease import (
    AWAY,
    MOST_AWAY,
    WATCHED,
    Holder,
    InTheWay,
    Lease,
    Lost,
    Mode,
    renew,
    take,
    without,
)
from actorbot.errors import StoreError
from tests.unit.ownership.owners import LEASE, holder, lease

A_WHILE = WATCHED * LEASE


def taken(
    old: Lease, mode: Mode = "exclusive", *, now: float = 0.0, watched: float = 0.0, gone: tuple[str, ...] = ()
) -> Lease | InTheWay:
    mine = replace(holder(mode), epoch=0)
    return take(old, "me", mine, now, watched, is_gone=lambda name, _: name in gone)


def mine(outcome: object) -> Holder:
    assert isinstance(outcome, Lease)
    return outcome.holders["me"]


# --- taking it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_a_store_that_nobody_has_is_taken_at_once(mode: Mode) -> None:
    got = mine(taken(Lease.parse(None, "a store"), mode, now=100.0))

    assert (got.mode, got.epoch, got.since, got.until, got.claims) == (mode, 1, 100.0, 100.0 + LEASE, False)


def test_the_next_owner_has_the_next_epoch_though_the_last_one_gave_it_back() -> None:
    outcome = taken(without(lease(7, other=holder(epoch=7)), "other"))

    assert mine(outcome).epoch == 8
    assert not mine(outcome).claims


@pytest.mark.parametrize(
    ("theirs", "ours", "together"),
    [
        ("exclusive", "exclusive", False),
        ("exclusive", "shared", False),
        ("shared", "exclusive", False),
        ("shared", "shared", True),
    ],
)
@pytest.mark.parametrize("until", [LEASE, -1.0])
def test_only_those_who_share_have_a_store_together(theirs: Mode, ours: Mode, together: bool, until: float) -> None:
    outcome = taken(lease(other=holder(theirs, until=until)), ours)

    if together:
        assert isinstance(outcome, Lease)
        assert set(outcome.holders) == {"other", "me"}
        assert mine(outcome).epoch == 2
    else:
        assert isinstance(outcome, InTheWay)
        assert [each.process.pid for each in outcome.holders] == [4711]
        assert outcome.may_renew is (until > 0)


@pytest.mark.parametrize(
    ("until", "watched", "away"),
    [
        (LEASE, A_WHILE, False),  # it runs
        (-1.0, 0.0, False),  # the clock says that it ran out: it may have been set forward
        (-1.0, A_WHILE - 0.1, False),
        (-1.0, A_WHILE, True),  # who is alive would have renewed it
        (3600.0, LEASE - 0.1, False),  # the clock was set back
        (3600.0, LEASE, True),  # whatever the clock says: it was not renewed for so long
    ],
)
def test_an_owner_is_away_when_it_has_not_renewed_its_lease_by_the_clock_and_before_our_eyes(
    until: float, watched: float, away: bool
) -> None:
    outcome = taken(lease(other=holder(until=until)), now=0.0, watched=watched)

    assert isinstance(outcome, Lease) is away
    if isinstance(outcome, Lease):
        assert set(outcome.holders) == {"me"}
        assert set(outcome.away) == {"other"}
        assert mine(outcome).claims


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_an_owner_that_is_known_to_have_ended_is_in_nobodys_way(mode: Mode) -> None:
    outcome = taken(lease(other=holder(mode)), gone=("other",))

    assert isinstance(outcome, Lease)
    assert set(outcome.holders) == {"me"}
    assert not outcome.away  # it comes back no more
    assert mine(outcome).claims  # but what it has sent may still arrive


def test_one_of_several_who_share_keeps_an_exclusive_owner_out() -> None:
    old = lease(2, a=holder("shared", until=-1.0), b=holder("shared", epoch=2, pid=2))

    outcome = taken(old, watched=A_WHILE)
    assert isinstance(outcome, InTheWay)
    assert [each.process.pid for each in outcome.holders] == [2]


def test_who_is_away_may_write_late_so_all_claim_until_it_has_ended_or_a_day_is_over() -> None:
    old = lease(3, away={"a": holder(until=0.0), "b": holder(until=50.0)})

    assert mine(taken(old, now=AWAY - 1.0)).claims
    assert mine(taken(old, now=AWAY + 1.0)).claims  # because of b
    assert not mine(taken(old, now=AWAY + 51.0)).claims
    assert mine(taken(old, gone=("a",))).claims
    assert not mine(taken(old, gone=("a", "b"))).claims


def test_of_those_who_are_away_a_hundred_are_remembered_the_last() -> None:
    old = lease(3, away={f"{n}": holder() for n in range(MOST_AWAY)}, other=holder(until=-1.0))

    outcome = taken(old, watched=A_WHILE)
    assert isinstance(outcome, Lease)
    assert [*outcome.away] == [*(f"{n}" for n in range(1, MOST_AWAY)), "other"]


def test_one_who_shared_a_store_a_day_ago_keeps_nobody_out() -> None:
    old = lease(2, dead=holder("shared"), other=holder("shared", until=LEASE + AWAY + 5.0))

    outcome = taken(old, "shared", now=LEASE + AWAY)
    assert isinstance(outcome, Lease)
    assert set(outcome.holders) == {"other", "me"}


def test_of_those_who_shared_and_went_without_a_word_a_hundred_are_kept() -> None:
    ended = {f"{n}": holder("shared", until=float(-n)) for n in range(1, MOST_AWAY + 3)}

    outcome = taken(lease(200, **ended, other=holder("shared")), "shared")
    assert isinstance(outcome, Lease)
    assert set(outcome.away) == {f"{MOST_AWAY + 1}", f"{MOST_AWAY + 2}"}
    assert len(outcome.holders) == MOST_AWAY + 2


def test_a_second_manager_of_a_store_object_has_the_lease_of_the_first() -> None:
    old = lease(5, me=replace(holder(epoch=5), claims=True))

    for mode in ("exclusive", "shared"):
        outcome = taken(old, mode, now=1.0)  # type: ignore[arg-type]
        assert isinstance(outcome, Lease)
        assert (mine(outcome).epoch, mine(outcome).mode, mine(outcome).claims) == (5, "exclusive", True)
        assert mine(outcome).until == 1.0 + LEASE


def test_a_second_manager_that_will_not_share_makes_the_lease_exclusive_once_nobody_else_has_it() -> None:
    ours = holder("shared", epoch=5)
    outcome = taken(lease(6, me=ours, other=holder("shared", epoch=6, pid=2)))
    assert isinstance(outcome, InTheWay)
    assert [each.process.pid for each in outcome.holders] == [2]

    outcome = taken(lease(6, me=ours))
    assert isinstance(outcome, Lease)
    assert (mine(outcome).mode, mine(outcome).epoch, outcome.epoch) == ("exclusive", 5, 6)
    renewed = renew(outcome, "me", ours, 1.0)  # by the first manager, which knows of nothing
    assert mine(renewed).mode == "exclusive"


# --- keeping it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("until", [LEASE, -100.0])
@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_who_finds_itself_there_renews_the_lease_also_if_it_had_run_out(mode: Mode, until: float) -> None:
    ours = replace(holder(mode, epoch=3, until=until), claims=True)

    outcome = renew(lease(9, me=ours), "me", ours, 50.0)
    assert isinstance(outcome, Lease)
    assert outcome.epoch == 9
    assert mine(outcome) == replace(ours, until=50.0 + LEASE)


def test_after_its_server_has_lost_the_lease_an_owner_has_it_under_its_old_epoch() -> None:
    ours = holder(epoch=7)

    for old in (Lease.parse(None, "a store"), lease(6), lease(3)):
        outcome = renew(old, "me", ours, 50.0)
        assert isinstance(outcome, Lease)
        assert outcome.epoch == 7
        assert mine(outcome) == replace(ours, until=50.0 + LEASE)


def test_an_owner_puts_itself_over_one_of_before_that_its_server_has_gone_back_to() -> None:
    old = lease(6, away={"me": holder(), "a": holder()}, other=holder(epoch=6))

    outcome = renew(old, "me", holder(epoch=7), 0.0)
    assert isinstance(outcome, Lease)
    assert (set(outcome.holders), set(outcome.away)) == ({"me"}, {"a", "other"})


@pytest.mark.parametrize(
    ("old", "ours", "pid"),
    [
        (lease(8, other=holder(epoch=8)), holder(epoch=7), 4711),
        (lease(7, other=holder(epoch=7)), holder(epoch=7), 4711),  # its server had gone back in time
        (lease(8, other=holder("shared", epoch=8)), holder(epoch=7), 4711),
        (lease(8, other=holder(epoch=8)), holder("shared", epoch=7), 4711),
        (lease(1, other=holder(epoch=1, until=99.0)), holder(epoch=7), 4711),  # its server had lost the epochs
        (lease(8), holder(epoch=7), None),  # and has given it back since
        (lease(7), holder(epoch=7), None),  # the same, after its server had gone back in time
        (lease(9, me=holder(epoch=9)), holder(epoch=7), None),  # another manager of this process, after others
        (
            lease(9, a=holder("shared", epoch=8, pid=1), b=holder("shared", epoch=9, pid=2)),
            holder(epoch=7),
            2,
        ),
    ],
)
def test_whoever_has_had_the_store_meanwhile_is_who_it_was_lost_to(old: Lease, ours: Holder, pid: int | None) -> None:
    outcome = renew(old, "me", ours, 0.0)

    assert isinstance(outcome, Lost)
    assert (outcome.holder.process.pid if outcome.holder else None) == pid


def test_who_shares_a_store_joins_the_others_again() -> None:
    others = lease(9, away={"me": holder("shared", epoch=7)}, other=holder("shared", epoch=9))

    for old in (others, lease(9)):  # the second: after an exclusive owner, whose writes it reads anyway
        outcome = renew(old, "me", holder("shared", epoch=7), 0.0)
        assert isinstance(outcome, Lease)
        assert "me" in outcome.holders
        assert "me" not in outcome.away
        assert outcome.epoch == 9


# --- giving it back -------------------------------------------------------------------------------


def test_what_is_given_back_is_free_for_all_and_the_epochs_go_on() -> None:
    assert without(lease(7, me=holder(epoch=7)), "me") == lease(7)
    assert without(lease(9, me=holder("shared", epoch=7), b=holder("shared", epoch=9)), "me") == lease(
        9, b=holder("shared", epoch=9)
    )


def test_who_was_taken_over_says_with_it_that_it_writes_no_more() -> None:
    other = holder(epoch=8)

    assert without(lease(8, away={"me": holder(epoch=7), "a": holder()}, other=other), "me") == lease(
        8, away={"a": holder()}, other=other
    )


# --- its text -------------------------------------------------------------------------------------


def test_a_lease_is_read_as_it_was_written() -> None:
    written = Lease(7, {"a": holder("shared", epoch=7)}, {"b": replace(holder(until=1.5), claims=True)})

    assert Lease.parse(written.to_text(), "a store") == written


def good() -> Any:
    return json.loads(lease(1, a=holder()).to_text())


def changed(**fields: Any) -> str:
    data = good()
    data["holders"]["a"].update(fields)
    return json.dumps(data)


def of_process(**fields: Any) -> str:
    data = good()
    data["holders"]["a"]["process"].update(fields)
    return json.dumps(data)


WRONG = [
    "",
    "hello",
    "[]",
    '"exclusive"',
    "7",
    "null",
    "NaN",
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"format": ' + "[" * 500 + "]" * 500 + "}",
    "{}",
    '{"format": 1}',
    json.dumps(good() | {"format": "1"}),
    json.dumps(good() | {"format": True}),
    json.dumps(good() | {"format": 1.0}),
    json.dumps(good() | {"format": 10**400}),
    '{"format": ' + "9" * 5_000 + "}",
    *(json.dumps(good() | {"epoch": epoch}) for epoch in (-1, 1.5, "7", None, float("nan"), float("inf"), 10**30)),
    *(json.dumps(good() | {"holders": holders}) for holders in (None, 7, [], "a", [["a", {}]], {"a": None}, {"a": []})),
    *(json.dumps(good() | {"away": away}) for away in (None, 7, [1], {"a": 7}, {"a": {}})),
    json.dumps({name: value for name, value in good().items() if name != "away"}),
    *(changed(mode=mode) for mode in ("", "none", None, 7, ["shared"], {})),
    *(changed(epoch=epoch) for epoch in (0, -1, "1", 1.0, True, None, 10**30)),
    *(changed(until=until) for until in ("1", None, float("nan"), float("inf"), -float("inf"), 10**400, [], True)),
    *(changed(since=since) for since in ("1", None, float("nan"))),
    *(changed(lease=seconds) for seconds in (0, -10.0, "10", None, float("nan"), float("inf"), 10**400)),
    *(changed(claims=claims) for claims in (None, 1, "no")),
    changed(another=1),
    *(changed(process=process) for process in (None, [], "4711", {}, {"pid": 1})),
    *(of_process(pid=pid) for pid in (0, -1, "1", 1.0, True, None, 2**31, 10**400)),
    *(of_process(host=host) for host in (None, 7, [], "a\nb", "\x1b[2J", "\udc80")),
    *(of_process(program=program) for program in (None, {}, "\x00")),
    *(of_process(**{name: [1]}) for name in ("started", "namespace", "kernel")),
    of_process(another=1),
]


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_no_lease_is_said_to_be_none(text: str) -> None:
    with pytest.raises(StoreError, match=r"^a store: the lease that says who owns it cannot be read.*remove it$"):
        Lease.parse(text, "a store")


def test_a_lease_of_another_release_is_said_to_be_that() -> None:
    with pytest.raises(StoreError, match=r"another release of actorbot \(format 2\)"):
        Lease.parse(json.dumps(good() | {"format": 2, "epoch": "seven"}), "a store")


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(JSON, st.data())
def test_whatever_somebody_writes_into_a_lease_it_is_read_or_refused(value: Any, data: Any) -> None:
    written = good()
    place = data.draw(
        st.sampled_from(
            [written, written["holders"], written["holders"]["a"], written["holders"]["a"]["process"], written["away"]]
        )
    )
    place[data.draw(st.sampled_from([*place, "more"]))] = value
    try:
        read = Lease.parse(json.dumps(written), "a store")
    except StoreError:
        return
    for each in (*read.holders.values(), *read.away.values()):
        assert 0 < each.process.pid < 2**31  # or a look whether it is there would signal a group
        assert each.say(0.0)
    assert take(read, "me", holder(), 0.0, LEASE, is_gone=lambda _, other: not str(other.process))
    assert renew(read, "me", holder(), 0.0)
    assert Lease.parse(without(read, "a").to_text(), "a store")
