"""A position fits a file by its content, and a chunk is whole lines, whatever the file does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.tail import CHUNK_LINES, Line, Position, Rewritten, read

LIMIT = 1 << 20


def read_all(path: Path, *, limit: int = LIMIT, unended: bool = False) -> list[Line]:
    found: list[Line] = []
    chunk = read(path, Position(), max_line=limit, unended=unended)
    while chunk.lines:
        found += chunk.lines
        # Through text, as the queue keeps it.
        place = Position.parse(str(chunk.end))
        chunk = read(path, place, max_line=limit, unended=unended)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "f.jsonl"


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=30_000).map(lambda b: b.replace(b"\xef\xbb\xbf", b"x")),
    limit=st.sampled_from([1024, LIMIT]),
)
def test_every_byte_is_in_exactly_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, limit: int
) -> None:
    file = tmp_path_factory.mktemp("tail") / "f"
    file.write_bytes(content)
    expected = content.split(b"\n")
    for unended in (False, True):
        whole = expected if unended and expected[-1] else expected[:-1]
        found = read_all(file, limit=limit, unended=unended)
        assert [line.size for line in found] == [len(text) for text in whole]
        assert [line.data for line in found if line.size <= limit] == [
            text for text in whole if len(text) <= limit
        ]
        assert [line.number for line in found] == list(range(1, len(whole) + 1))
        assert all(content[n.offset : n.offset + len(n.data)] == n.data for n in found)


def test_the_first_line_counts_and_a_last_line_without_newline_waits(file: Path) -> None:
    file.write_bytes(b"one\ntwo\nthr")
    chunk = read(file, Position(), max_line=LIMIT)
    assert [line.data for line in chunk.lines] == [b"one", b"two"]
    assert chunk.lines[0] == Line(0, 1, b"one", 3)
    assert not read(file, chunk.end, max_line=LIMIT).lines
    file.write_bytes(b"one\ntwo\nthree\n")
    assert read(file, chunk.end, max_line=LIMIT).lines == (Line(8, 3, b"three", 5),)


def test_an_unended_line_taken_early_is_not_counted_twice(file: Path) -> None:
    file.write_bytes(b"one\ntwo")
    end = read(file, read(file, Position(), max_line=LIMIT).end, max_line=LIMIT, unended=True).end
    file.write_bytes(b"one\ntwo\nthree\n")
    rest = read(file, end, max_line=LIMIT).lines
    assert [(line.number, line.data) for line in rest] == [(2, b""), (3, b"three")]


@pytest.mark.parametrize(
    "change",
    [b"", b"on", b"xxx\ntwo\nthree\n", b"one\ntwX\nmore and more\n"],
    ids=["emptied", "truncated", "rewritten", "last line changed"],
)
def test_another_content_does_not_fit_the_position(file: Path, change: bytes) -> None:
    file.write_bytes(b"one\ntwo\n")
    end = read(file, Position(), max_line=LIMIT).end
    file.write_bytes(change)
    with pytest.raises(Rewritten):
        read(file, end, max_line=LIMIT)


def test_a_replacement_that_only_grew_fits(file: Path) -> None:
    file.write_bytes(b"one\ntwo\n")
    end = read(file, Position(), max_line=LIMIT).end
    new = file.with_suffix(".new")
    new.write_bytes(b"one\ntwo\nthree\n")
    new.rename(file)
    assert read(file, end, max_line=LIMIT).lines[0].data == b"three"


def test_a_chunk_knows_the_places_inside_it(file: Path) -> None:
    file.write_bytes(b"".join(b"line %d\n" % n for n in range(2000)))
    start = read(file, Position(), max_line=LIMIT).cut(100).end
    chunk = read(file, start, max_line=LIMIT)
    assert len(chunk.lines) == CHUNK_LINES
    inner = chunk.cut(7).end
    assert inner == Position(chunk.lines[7].offset, 107, inner.anchor)
    assert chunk.covers(start) and chunk.covers(inner)
    assert not chunk.covers(chunk.end)
    assert not chunk.covers(Position(inner.offset, inner.line, "0" * 16))
    assert read(file, inner, max_line=LIMIT).lines[0] == chunk.lines[7]


def test_the_start_of_a_reread_remembers_how_far_the_file_had_been_read() -> None:
    place = Position(500, 5, "0123456789abcdef").restarted(400)
    assert (place.offset, place.line, place.reread) == (0, 0, 500)
    on = place.after(Position(100, 1, "f" * 16))
    assert Position.parse(str(on)) == on == Position(100, 1, "f" * 16, reread=500)
    assert on.restarted(600).reread == 600
    assert str(on.after(Position(500, 5, "e" * 16))) == "500:5:" + "e" * 16


def test_a_recovery_looks_at_the_whole_file_and_silences_what_was_read() -> None:
    place = Position(300, 3, "0123456789abcdef").recovering(500)
    assert (place.offset, place.line, place.reread, place.recover) == (0, 0, 300, 500)
    on = place.after(Position(300, 3, "f" * 16))
    assert str(on) == "300:3:" + "f" * 16 + ":0:500"
    assert Position.parse(str(on)) == on == Position(300, 3, "f" * 16, recover=500)
    assert on.restarted(400) == Position(reread=400, recover=500)
    assert str(on.after(Position(500, 5, "e" * 16))) == "500:5:" + "e" * 16


@pytest.mark.parametrize("text", ["", "12", "1:2:3", "x:1:0123456789abcdef", "-1:0:" + "a" * 16])
def test_a_position_nobody_can_read_is_the_start(text: str) -> None:
    assert Position.parse(text) == Position()


def test_a_pipe_is_refused_and_does_not_hang(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(OSError, match="not a regular file"):
        read(file, Position(), max_line=LIMIT)


def test_a_line_of_any_length_is_passed_over_in_constant_memory(file: Path) -> None:
    with file.open("wb") as out:
        out.write(b"one\n")
        for _ in range(96):
            out.write(b"x" * (1 << 20))
        out.write(b"\nthree\n" + b"y" * (2 << 20))
    script = (
        "import resource, sys; from pathlib import Path; from tests.dispatcher.test_tail import *\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = read_all(Path(sys.argv[1]))\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print([(n.number, n.size, len(n.data)) for n in found], after - before < 24_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str([(1, 3, 3), (2, 96 << 20, 2048), (3, 5, 5)]) + " True"


def test_a_million_lines_are_read_in_constant_memory(file: Path) -> None:
    file.write_bytes(b"0123456789\n" * 1_000_000)
    script = (
        "import resource, sys; from pathlib import Path; from dispatcher.tail import *\n"
        "rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "place, count, before = Position(), 0, 0\n"
        "while (chunk := read(Path(sys.argv[1]), place, max_line=1 << 20)).lines:\n"
        "    place = chunk.end; count += len(chunk.lines); before = before or rss()\n"
        "print(count, place.line, rss() - before < 4_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1000000", "1000000", "True"]
