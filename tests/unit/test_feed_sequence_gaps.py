"""Which ids are missing: late is not lost, every missing id is reported once, memory is bounded."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cryptopulse.feed.sequence_gaps import (
    GRACE_NS,
    JUMP_MAX,
    NEVER_NS,
    OPEN_GAPS_MAX,
    UNKNOWN,
    IdGap,
    IdWatch,
    TradeIds,
)


def _seen(*trade_ids: int, now_ns: int = 0) -> TradeIds:
    ids = TradeIds()
    for trade_id in trade_ids:
        ids.seen(trade_id, now_ns)
    return ids


def _missing(holes: list[IdGap]) -> list[int]:
    return [i for hole in holes for i in range(hole.first_missing, hole.last_missing + 1)]


def test_nothing_below_the_first_trade_is_missing() -> None:
    ids = _seen(1000, 1001, 990)
    assert ids.due_ns == NEVER_NS
    assert ids.expired(GRACE_NS * 10) == []


def test_a_jump_is_a_hole_when_the_grace_is_over_and_not_before() -> None:
    ids = _seen(10, 14)
    assert ids.open_count == 3
    assert ids.expired(GRACE_NS - 1) == []
    assert ids.expired(GRACE_NS) == [IdGap(11, 13, "trade")]
    assert ids.expired(GRACE_NS * 9) == []
    assert ids.due_ns == NEVER_NS


def test_a_late_trade_splits_its_gap() -> None:
    ids = _seen(10, 16, 13)
    assert ids.expired(GRACE_NS) == [IdGap(11, 12, "trade"), IdGap(14, 15, "trade")]


def test_repeated_trades_are_counted_and_change_nothing() -> None:
    ids = _seen(10, 11, 11, 10, 13, 12, 12)
    assert ids.repeated == 3
    assert ids.due_ns == NEVER_NS


def test_a_trade_that_comes_after_its_hole_was_reported_counts_as_repeated() -> None:
    ids = _seen(10, 12)
    assert ids.expired(GRACE_NS) == [IdGap(11, 11, "trade")]
    ids.seen(11, GRACE_NS)
    assert ids.repeated == 1
    assert ids.expired(GRACE_NS * 9) == []


def test_a_heartbeat_ahead_of_the_trades_is_a_witness_after_the_grace() -> None:
    ids = _seen(10)
    ids.claimed(12, 0)
    assert ids.expired(GRACE_NS - 1) == []
    assert ids.expired(GRACE_NS) == [IdGap(11, 12, "heartbeat")]
    ids.seen(13, GRACE_NS)
    assert ids.due_ns == NEVER_NS


def test_a_heartbeat_that_overtook_its_trade_is_no_witness() -> None:
    ids = _seen(10)
    ids.claimed(11, 0)
    ids.seen(11, 1)
    assert ids.expired(GRACE_NS) == []


def test_a_heartbeat_with_trade_id_0_says_nothing() -> None:
    ids = TradeIds()
    ids.claimed(0, 0)
    assert ids.due_ns == NEVER_NS


def test_a_heartbeat_without_any_trade_is_where_the_record_begins() -> None:
    ids = TradeIds()
    ids.claimed(10, 0)
    assert ids.expired(GRACE_NS) == []
    ids.seen(12, GRACE_NS)
    assert ids.expired(GRACE_NS * 2) == [IdGap(11, 11, "trade")]


def test_a_trade_after_the_first_heartbeat_is_missing_although_none_was_seen_before() -> None:
    ids = TradeIds()
    ids.claimed(10, 0)
    ids.seen(12, 1)
    assert ids.expired(GRACE_NS + 1) == [IdGap(11, 11, "trade")]


def test_a_trade_that_could_not_be_kept_is_a_hole_of_its_own() -> None:
    ids = _seen(10)
    for trade_id in (11, 12, 13):
        ids.lost(trade_id, 0)
    ids.seen(14, 0)
    ids.lost(12, 0)
    assert ids.expired(GRACE_NS) == [IdGap(11, 13, "refused")]


def test_the_very_first_trade_can_be_lost_too() -> None:
    ids = TradeIds()
    ids.lost(10, 0)
    ids.seen(11, 0)
    assert ids.expired(GRACE_NS) == [IdGap(10, 10, "refused")]


def test_an_id_out_of_all_proportion_is_not_believed() -> None:
    ids = _seen(10)
    assert ids.believable(10 + JUMP_MAX)
    assert not ids.believable(11 + JUMP_MAX)
    ids.claimed(11 + JUMP_MAX, 0)
    assert ids.due_ns == NEVER_NS


def test_open_gaps_are_bounded_by_reporting_the_oldest_early() -> None:
    ids = _seen(*range(0, 2 * (OPEN_GAPS_MAX + 5), 2))
    early = ids.expired(0)
    assert _missing(early) == [1, 3, 5, 7]
    assert len(ids.expired(GRACE_NS)) == OPEN_GAPS_MAX


def test_the_record_begins_with_the_first_trade_or_behind_what_a_heartbeat_or_the_tables_name() -> None:
    assert (TradeIds().first, _seen(12).first, _seen(12, 10).first) == (UNKNOWN, 12, 12)
    ids = TradeIds()
    ids.claimed(10, 0)
    ids.seen(12, 1)
    assert ids.first == 11
    ids = TradeIds()
    ids.claimed(10, 0)
    ids.expired(GRACE_NS)
    assert ids.first == 11
    ids = TradeIds()
    ids.held_to(10)
    assert (ids.first, ids.highest) == (10, 10)
    ids = TradeIds()
    ids.lost(10, 0)
    assert ids.first == 10


def test_what_was_traded_after_that_which_the_tables_hold_is_missing() -> None:
    ids = TradeIds()
    ids.held_to(10)
    ids.seen(14, 0)
    assert ids.expired(GRACE_NS) == [IdGap(11, 13, "trade")]
    ids.held_to(12)
    assert ids.highest == 14


def test_a_copy_is_of_interest_only_up_to_the_highest_id_that_something_waits_for() -> None:
    ids = _seen(10, 14, 15)
    assert ids.unsettled == 13
    ids.seen(12, 1)
    assert ids.unsettled == 13
    ids.seen(13, 1)
    assert ids.unsettled == 11
    ids.wanted_to = 5
    assert ids.unsettled == 11
    ids.expired(GRACE_NS)
    assert ids.unsettled == 5
    ids.wanted_to = UNKNOWN
    assert ids.unsettled == UNKNOWN
    ids.lost(16, 0)
    ids.lost(17, 0)
    assert ids.unsettled == 17


def test_a_watch_says_when_it_has_something_to_report_and_says_it_once() -> None:
    watch = IdWatch(["A-USD", "B-USD"])
    for product, came in (("A-USD", (10, 12)), ("B-USD", (5, 9))):
        for trade_id in came:
            watch.ids[product].seen(trade_id, 7)
        watch.changed(product)
    assert (watch.due_ns, watch.ids_open) == (7 + GRACE_NS, 4)
    watch.ids["A-USD"].seen(11, 8)
    watch.changed("A-USD")
    assert watch.report(7 + GRACE_NS) == [("B-USD", IdGap(6, 8, "trade"))]
    assert watch.report(99 * GRACE_NS) == []
    assert (watch.holes, watch.ids_missing, watch.due_ns, watch.ids_open) == (1, 3, NEVER_NS, 0)


@st.composite
def _deliveries(draw: st.DrawFn) -> list[int]:
    """Ids 100…140 with some left out, some repeated, in any order."""
    present = draw(st.lists(st.integers(100, 140), min_size=1, max_size=60))
    return draw(st.permutations(present))


@given(_deliveries())
def test_every_missing_id_is_reported_once_whatever_the_order_and_repetition(delivered: list[int]) -> None:
    ids = _seen(*delivered)
    reported = _missing(ids.expired(GRACE_NS) + ids.expired(GRACE_NS * 5))
    wanted = set(range(delivered[0], max(delivered) + 1)) - set(delivered)
    assert reported == sorted(wanted)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(["seen", "claimed", "lost"]), st.integers(1, 60), st.integers(0, GRACE_NS // 2)),
        max_size=80,
    )
)
def test_reports_never_overlap_and_never_name_what_came_in_time(steps: list[tuple[str, int, int]]) -> None:
    ids = TradeIds()
    now_ns = 0
    seen_at: dict[int, int] = {}
    reported: list[int] = []
    for kind, trade_id, pause_ns in steps:
        now_ns += pause_ns
        holes = _missing(ids.expired(now_ns))
        assert not set(holes) & {i for i in holes if i in seen_at}
        reported += holes
        assert ids.due_ns > now_ns
        getattr(ids, kind)(trade_id, now_ns)
        if kind == "seen":
            seen_at.setdefault(trade_id, now_ns)
    reported += _missing(ids.expired(now_ns + 10 * GRACE_NS))
    assert len(reported) == len(set(reported))
    assert ids.due_ns == NEVER_NS
