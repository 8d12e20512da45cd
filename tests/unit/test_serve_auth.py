"""Who may come in, without I/O: tokens, sessions, guesses, names and origins, and where a login leads."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from cryptopulse.serve.http import auth
from cryptopulse.serve.http.auth import (
    SESSION_S,
    FailureLimit,
    TokenAuth,
    is_allowed_host,
    is_allowed_origin,
    parse_ip,
    server_names,
    visitor_key,
)
from cryptopulse.settings.serve import ServeSettings
from support_serve import TOKEN

NAMES = server_names(ServeSettings(host="10.0.0.5", token=SecretStr(TOKEN), allowed_hosts=["Trades.example.org"]))


def test_only_the_token_is_known() -> None:
    access = TokenAuth(TOKEN)
    assert access.is_token(TOKEN)
    assert not any(access.is_token(other) for other in ("", TOKEN[:-1], TOKEN + " ", TOKEN.upper(), "é" * 20))


def test_a_session_is_good_for_a_week_also_after_a_restart_and_does_not_give_the_token_away() -> None:
    cookie = TokenAuth(TOKEN).new_session(1000)
    assert TOKEN not in cookie
    again = TokenAuth(TOKEN)
    assert again.is_session(cookie, 1000 + SESSION_S - 1)
    assert not again.is_session(cookie, 1000 + SESSION_S)
    assert not TokenAuth("another token, as long").is_session(cookie, 1001)
    assert cookie != TokenAuth(TOKEN).new_session(1000)


def test_a_logout_at_one_of_two_servers_holds_at_the_other_and_none_takes_the_others_away(tmp_path: Path) -> None:
    """As it was: each had read the file when it started, and wrote over it what it knew itself."""
    ended = tmp_path / "state" / "ended"
    one, other = TokenAuth(TOKEN, ended), TokenAuth(TOKEN, ended)
    first, second, third = (one.new_session(1000) for _ in range(3))
    one.end_session(first, 1001)
    other.end_session(second, 1001)
    for access in (one, other, TokenAuth(TOKEN, ended)):
        assert [access.is_session(cookie, 1002) for cookie in (first, second, third)] == [False, False, True]


def test_sessions_that_were_ended_are_forgotten_when_they_would_be_over_anyway(tmp_path: Path) -> None:
    access = TokenAuth(TOKEN, tmp_path)
    (tmp_path / "not ours").touch()
    for moment in (1000, 2000, 2000 + SESSION_S):
        access.end_session(access.new_session(moment), moment)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(access._revoked) == 1


def test_where_no_ended_session_can_be_kept_it_is_ended_for_this_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    access = TokenAuth(TOKEN, tmp_path / "file" / "ended")
    cookie = access.new_session(1000)
    access.end_session(cookie, 1001)
    assert not access.is_session(cookie, 1002)


def test_a_session_that_was_changed_is_none() -> None:
    access = TokenAuth(TOKEN)
    until, salt, signature = access.new_session(1000).split(".")
    changed = [f"{int(until) + 1}.{salt}.{signature}", f"{until}.{'0' * 32}.{signature}", f"{until}.{salt}.{'0' * 64}"]
    assert not any(access.is_session(cookie, 1001) for cookie in [*changed, "", "a.b.c", TOKEN])


def test_two_servers_on_one_machine_have_cookies_of_different_names() -> None:
    assert TokenAuth(TOKEN).cookie_name != TokenAuth("another token, as long").cookie_name


def test_wrong_tokens_are_slowed_down_by_address_and_a_scraper_with_an_old_one_is_not() -> None:
    guesses = FailureLimit()
    for _ in range(10):
        assert guesses.wait_s("192.0.2.1", 0) == 0
        guesses.failed("192.0.2.1", 0)
    assert guesses.wait_s("192.0.2.1", 0) == pytest.approx(6)
    assert guesses.wait_s("192.0.2.2", 0) == 0
    assert guesses.wait_s("192.0.2.1", 6) == 0
    for moment in range(0, 10_000, 15):
        assert guesses.wait_s("192.0.2.3", moment) == 0
        guesses.failed("192.0.2.3", moment)


def test_guessing_for_an_hour_tries_some_hundred_tokens_at_most() -> None:
    guesses, tried = FailureLimit(), 0
    for tenth in range(36_000):
        if not guesses.wait_s("192.0.2.1", tenth / 10):
            guesses.failed("192.0.2.1", tenth / 10)
            tried += 1
    assert tried <= 620


def test_one_visitor_has_many_addresses_of_ipv6_and_is_counted_once() -> None:
    assert visitor_key("2001:db8::1") == visitor_key("2001:db8::ffff")
    assert visitor_key("2001:db8::1") != visitor_key("2001:db8:0:1::1")
    assert visitor_key("::ffff:192.0.2.1") == visitor_key("192.0.2.1")
    assert visitor_key("fe80::1%eth0") == visitor_key("fe80::2")


def test_what_is_too_long_for_an_address_takes_no_memory() -> None:
    known = auth._parse_ip.cache_info().currsize
    assert parse_ip("1" * 32_768) is None
    assert auth._parse_ip.cache_info().currsize == known


def test_guesses_of_ever_new_addresses_take_bounded_memory() -> None:
    guesses = FailureLimit()
    for number in range(20_000):
        guesses.failed(f"10.0.{number // 256}.{number % 256}", 0)
    assert len(guesses._buckets) <= 4096


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8050", "127.0.0.1:8050", "[::1]:8050", "10.0.0.5", "trades.example.org", "192.0.2.7:80"],
)
def test_names_of_ours_and_numbers_are_hosts_of_ours(host: str) -> None:
    assert is_allowed_host(host, NAMES)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "a@localhost",
        "localhost/x",
        "[::1",
        ":80",
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert not is_allowed_host(host, NAMES)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8050", "localhost:8050"),
        ("http://127.0.0.1:8050", "127.0.0.1:8050"),
        ("https://trades.example.org", "trades.example.org"),
        ("https://trades.example.org", "127.0.0.1:8050"),
        ("http://[::1]:8050", "[::1]:8050"),
    ],
)
def test_pages_of_ours_are_known_by_their_origin(origin: str, host: str) -> None:
    assert is_allowed_origin(origin, host, NAMES)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("null", "localhost:8050"),
        ("", "localhost:8050"),
        ("http://evil.example", "localhost:8050"),
        ("http://localhost:3000", "localhost:8050"),
        ("http://127.0.0.1:8050", "localhost:8050"),
        ("file://", "localhost:8050"),
        ("http://192.0.2.9", "localhost:8050"),
        ("http://localhost:99999", "localhost:8050"),
    ],
)
def test_pages_of_others_are_not_ours(origin: str, host: str) -> None:
    assert not is_allowed_origin(origin, host, NAMES)


@pytest.mark.parametrize(
    "path", ["", "//evil.example", "/\\evil.example", "https://evil.example", "/\t/evil.example", "x"]
)
def test_a_login_leads_nowhere_else(path: str) -> None:
    assert auth.local_path(path) == "/"


def test_a_login_leads_back_to_where_it_began() -> None:
    assert auth.local_path("/product/BTC-USD?grain=1m") == "/product/BTC-USD?grain=1m"
    assert auth.parse_form(b"token=a%26b&next=%2Falerts") == ("a&b", "/alerts")


def test_the_form_writes_nothing_of_a_visitor_into_its_page() -> None:
    page = auth.login_page('/"><script>alert(1)</script>', "<b>").decode()
    assert "<script" not in page
    assert "<b>" not in page
