"""Recordings as people have them: read exactly, or refused by the number of the line."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from cryptopulse import recording
from cryptopulse.errors import ConfigurationError
from cryptopulse.recording import read_recording
from cryptopulse.replay import partition_key

PLAIN = b'{"type":"match","trade_id":1,"product_id":"BTC-USD"}'
WRAPPED = b'{"recv":1786309548.123456,"raw":"{\\"type\\":\\"match\\",\\"trade_id\\":2}"}'
FOUND = [(None, PLAIN), (1786309548123456000, b'{"type":"match","trade_id":2}')]


def written(folder: Path, content: bytes, name: str = "recording.jsonl") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def test_plain_and_timed_lines_give_the_bytes_as_received(tmp_path: Path) -> None:
    file = tmp_path / "recording.jsonl"
    odd = '{"é" : "\\u00e9\\/",   "n":1.0}'
    timed = json.dumps({"recv": 1786309548.6290078, "raw": odd})
    file.write_bytes(f"{odd}\n\n{timed}\r\n".encode() + b'{"raw":"not { json"}\n' + odd.encode())
    assert list(read_recording(file)) == [
        (None, odd.encode()),
        (1786309548629008000, odd.encode()),  # to the nearest microsecond
        (None, b"not { json"),
        (None, odd.encode()),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        '{"type":"mat',
        "[1]",
        '{"recv":"yesterday","raw":"x"}',
        '{"recv":1.0}',
        '{"recv":1786309548629,"raw":"x"}',
        '{"recv":1786309548629007800,"raw":"x"}',
        '{"recv":-1,"raw":"x"}',
        "\\x00",
        '{"raw":7}',
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "recording.jsonl"
    file.write_text(f'{{"type":"match"}}\n{wrong}\n')
    with pytest.raises(ConfigurationError, match="line 2"):
        list(read_recording(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        list(read_recording(tmp_path / "nowhere"))


def zstandard(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0size"
TWO = (
    b'{"channel":"market_trades","events":[{"trades":[{"product_id":"A-USD","trade_id":"1"},'
    b'{"product_id":"B-USD","trade_id":"1"}]}]}'
)
LINES = PLAIN + b"\n" + WRAPPED + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.removesuffix(b"\n"),
        LINES.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + LINES,
        b"\n \t\r\n" + LINES.replace(b"\n", b"\n\n\r\n"),
        gzip.compress(LINES),
        gzip.compress(PLAIN + b"\n") + gzip.compress(WRAPPED + b"\n"),
        gzip.compress(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
        zstandard(LINES),
        zstandard(PLAIN + b"\n") + zstandard(WRAPPED + b"\n"),
        zstandard(LINES[:30]) + SKIPPED + zstandard(LINES[30:]),
        SKIPPED + zstandard(PLAIN + b"\n") + SKIPPED + zstandard(WRAPPED + b"\n"),
        gzip.compress(LINES[:30]) + gzip.compress(b"") + gzip.compress(LINES[30:]) + b"\0" * 512,
    ],
    ids=[
        *("lines", "no-end", "crlf", "bom", "empty", "gzip", "gzips", "gzip-bom-crlf", "zstd", "zstds"),
        *("zstd-within-a-line", "pzstd", "gzip-padded"),
    ],
)
def test_the_same_messages_come_out_of_every_way_to_keep_them(tmp_path: Path, content: bytes) -> None:
    file = written(tmp_path, content)
    assert list(read_recording(file)) == FOUND
    code = "from cryptopulse.recording import *\nprint(list(read_recording(STANDARD_INPUT)))"
    with file.open("rb") as opened:
        piped = subprocess.run([sys.executable, "-c", code], stdin=opened, capture_output=True, text=True, check=True)
    assert piped.stdout.strip() == repr(FOUND)


def test_a_pipe_is_read_as_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[gzip.compress(LINES)])
    writer.start()
    assert list(read_recording(tmp_path / "pipe")) == FOUND
    writer.join()


def test_an_empty_recording_holds_nothing(tmp_path: Path) -> None:
    for content in (b"", b"\n", gzip.compress(b""), b"\xef\xbb\xbf"):
        assert list(read_recording(written(tmp_path, content))) == []


@pytest.mark.parametrize("torn", [PLAIN[:-1], WRAPPED[:20], WRAPPED[:8], b"{", b'{"raw":"\xe2\x82', b"\0\0\0\0"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path, torn: bytes, is_packed: bool) -> None:
    file = written(tmp_path, gzip.compress(LINES + torn) if is_packed else LINES + torn)
    with capture_logs() as lines:
        assert list(read_recording(file)) == FOUND
    events = [(line["event"], line["line"], line["bytes"]) for line in lines]
    assert events == [("truncated_line_skipped", 3, len(torn))]


def test_a_message_is_torn_wherever_it_was_cut(tmp_path: Path) -> None:
    whole = (
        '{"type":"match","ok":true,"no":null,"x":-1.5e-8,"list":[1,{"ü":"\\u20ac\\n€\U0001f600"}], "raw":"a"}'.encode()
    )
    for size in range(1, len(whole)):
        with capture_logs() as lines:
            assert list(read_recording(written(tmp_path, LINES + whole[:size]))) == FOUND, whole[:size]
        assert [line["bytes"] for line in lines] == [size]


@pytest.mark.parametrize(
    "wrong",
    [b'{"recv":1.0}', b'{"raw":7}', b"[1]", b"12", b'"a"', b"null", b"hello world", PLAIN + PLAIN, WRAPPED + b"x",
     b'{"recv":-1e-9,"raw":"a"}'],
)  # fmt: skip
def test_a_last_line_that_is_whole_and_wrong_is_no_torn_one(tmp_path: Path, wrong: bytes) -> None:
    with pytest.raises(ConfigurationError, match="line 3"):
        list(read_recording(written(tmp_path, LINES + wrong)))


def test_what_never_was_a_recording_is_no_torn_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="line 1"):
        list(read_recording(written(tmp_path, b"\x89PNG")))


@pytest.mark.parametrize(
    "wrong", [b'{"a":1}{"a":2}', b'{"a":1} {"raw":"x"}', WRAPPED + WRAPPED, b'{"raw":\n"x"}', b'{"a":1}\0', b"\xff"]
)
def test_a_line_is_one_message(tmp_path: Path, wrong: bytes) -> None:
    for before in (b"", LINES, WRAPPED + b"\n"):
        number = before.count(b"\n") + 1
        with pytest.raises(ConfigurationError, match=f"line {number} "):
            list(read_recording(written(tmp_path, before + wrong + b"\n" + LINES)))


@pytest.mark.parametrize(
    "cut",
    [
        gzip.compress(LINES * 50)[:-3],
        gzip.compress(LINES)[:15],
        gzip.compress(LINES) + gzip.compress(LINES)[:5],
        gzip.compress(LINES) + gzip.compress(LINES)[:-1],
        zstandard(LINES * 50)[:-3],
        zstandard(LINES)[:4],
        zstandard(LINES) + zstandard(LINES)[:2],
        zstandard(LINES) + zstandard(LINES)[:-1],
    ],
    ids=["gzip", "gzip-begin", "gzips-begin", "gzips", "zstd", "zstd-begin", "zstds-begin", "zstds"],
)
def test_a_compressed_file_that_was_cut_off_is_refused(tmp_path: Path, cut: bytes) -> None:
    file = written(tmp_path, cut)
    with pytest.raises(ConfigurationError, match=f"Recording {file} can't be read.*Fetch it again, or take what is"):
        list(read_recording(file))


def test_what_is_whole_of_a_compressed_file_comes_through_a_pipe_as_the_refusal_says(tmp_path: Path) -> None:
    file = written(tmp_path, gzip.compress(LINES + b'{"type":"' + os.urandom(4000).hex().encode())[:3000])
    lines = subprocess.run(["gzip", "-dc", str(file)], capture_output=True, check=False).stdout
    assert list(read_recording(written(tmp_path, lines, "whole"))) == FOUND


@pytest.mark.parametrize(
    "damaged",
    [
        gzip.compress(LINES)[:-8] + b"\0" * 8,
        gzip.compress(LINES) + b"garbage",
        zstandard(LINES) + b"garbage",
        gzip.compress(LINES)[:12] + b"\xff" * 40,
    ],
    ids=["checksum", "after-gzip", "after-zstd", "within"],
)
def test_a_compressed_file_that_is_damaged_is_refused(tmp_path: Path, damaged: bytes) -> None:
    file = written(tmp_path, damaged)
    with pytest.raises(ConfigurationError, match=f"Recording {file} can't be read"):
        list(read_recording(file))


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "LINE_BYTES_MAX", 1_000_000)
    with pytest.raises(ConfigurationError, match="line 2 is not a recorded message: it is too long"):
        list(read_recording(written(tmp_path, PLAIN + b"\n" + b" " * 3_000_000)))


@given(
    st.lists(st.sampled_from([PLAIN, WRAPPED, b"", b'{"recv":0,"raw":""}', b'{"raw":"\\u20ac"}']), max_size=12),
    st.integers(1, 200),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_where_a_file_is_cut_into_blocks_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], block_bytes: int, end: bytes
) -> None:
    file = written(tmp_path_factory.mktemp("blocks"), end.join(lines))
    whole = list(read_recording(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "_CHUNK_BYTES", block_bytes)
        assert list(read_recording(file)) == whole
    assert len(whole) == sum(line != b"" for line in lines)


@given(st.integers(0, 4_294_967_295), st.integers(0, 999_999))
def test_six_decimals_of_a_second_are_kept_exactly(
    tmp_path_factory: pytest.TempPathFactory, second: int, micros: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "exact.jsonl"
    file.write_text(f'{{"recv":{second}.{micros:06},"raw":"x"}}\n')
    assert list(read_recording(file)) == [((second * 1_000_000 + micros) * 1000, b"x")]


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (PLAIN, "BTC-USD"),
        (b'{"type":"subscriptions","channels":[]}', ""),
        (b'{"channel":"market_trades","events":[{"trades":[{"product_id":"A-USD","trade_id":"1"}]}]}', "A-USD"),
        (TWO, ""),
        (b'{"channel":"heartbeats"}', ""),
        (b"[]", ""),
        (b"{", ""),
        (b'{"product_id":"\xff"}', ""),
        (b'{"product_id":7}', ""),
    ],
)
def test_the_key_of_a_message_is_its_one_product(body: bytes, key: str) -> None:
    assert partition_key(body) == key
