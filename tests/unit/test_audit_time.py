"""An audit of some hours: which ids it is about, where ids are not in the order of time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryptopulse.audit.id_set import IdSet
from cryptopulse.audit.ids import SilverIds
from cryptopulse.audit.ledger import Account, accounts_of
from cryptopulse.audit.scope import AuditScope


def ids_of(numbers: list[int]) -> IdSet:
    return IdSet.of((number, number) for number in numbers)


def audited(times: dict[int, int], start: int | None, end: int | None) -> list[Account]:
    """The accounts of an audit from `start` to `end`; `times`: when the held trades were made, by id."""
    held = SilverIds(
        all=ids_of(list(times)),
        earlier=ids_of([number for number, time in times.items() if start is not None and time < start]),
        later=ids_of([number for number, time in times.items() if end is not None and time >= end]),
    )
    return accounts_of(AuditScope(from_us=start, to_us=end), {"BTC-USD": held}, {}, {}, {}, {})


@given(st.dictionaries(st.integers(1, 40), st.integers(0, 9), min_size=1), st.integers(0, 10))
def test_every_hole_belongs_to_some_part_of_the_time(times: dict[int, int], border: int) -> None:
    (whole,) = audited(times, None, None)
    parts = [*audited(times, None, border), *audited(times, border, None)]
    assert not whole.missing - IdSet.of(span for part in parts for span in part.missing)


@given(st.dictionaries(st.integers(1, 40), st.integers(0, 9), min_size=1), st.integers(0, 9), st.integers(1, 9))
def test_every_trade_of_the_time_is_audited(times: dict[int, int], start: int, length: int) -> None:
    inside = [number for number, time in times.items() if start <= time < start + length]
    accounts = audited(times, start, start + length)
    for number in inside:
        assert accounts[0].first <= number <= accounts[0].last


def test_where_ids_are_in_the_order_of_time_the_holes_of_other_hours_stay_out() -> None:
    times = {number: number // 10 for number in range(1, 100) if number % 10 != 5}
    (account,) = audited(times, 3, 5)
    assert (account.first, account.last, list(account.missing)) == (30, 49, [(35, 35), (45, 45)])
