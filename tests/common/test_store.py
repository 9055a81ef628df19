"""What lies in the store is whole, stays where it belongs, and is found again in one order."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from common.store import Damaged, Store, StoreError
from common.trajectory import Blob
from tests.common.stored import FIRST, everything_in, keep, made
from tests.exporters.attempts import review_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "output")


def test_files_of_attempts_that_lost_their_lease_are_swept_and_no_others(store: Store) -> None:
    committed = "r1-s0-1700000000000-0-d3-cccccccc"
    lost = ["r1-s0-1700000000000-0-d1-aaaaaaaa", "r1-s0-1700000000000-0-d2-bbbbbbbb"]
    kept = [
        committed,
        "r1-s0-1690000000000-0-d1-aaaaaaaa",  # broken by infrastructure before: evidence
        "r1-s1-1700000000000-0-d1-aaaaaaaa",  # another sample
        "r2-s0-1700000000000-0-d1-aaaaaaaa",  # another revision
    ]
    for attempt_id in (*lost, *kept):
        store.write_attempt(made("t", attempt_id))
    store.write_review(review_of(made("t", committed)))
    half = store.root / "trajectories" / "t" / ".x.json.abc.tmp"
    half.touch()
    assert store.sweep("t", committed, scene="code") == lost
    assert sorted(store.attempts_of("t")) == sorted(kept)
    assert half.exists()  # somebody may be writing it
    theirs, ours = (half.with_name(f".{a}.json.abc.tmp") for a in (lost[0], committed))
    for one in (theirs, ours):
        one.touch()
    assert store.sweep("t", committed, scene="code") == []
    assert not theirs.exists()  # whoever writes it has lost, and nobody would come back to it
    assert (half.exists(), ours.exists()) == (True, True)
    os.utime(half, (0, 0))
    assert store.sweep("t", committed, scene="code") == []
    assert not half.exists()


def test_a_sweep_that_fails_costs_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lost, committed = FIRST, FIRST.replace("-d1-", "-d2-")
    for attempt_id in (lost, committed):
        store.write_attempt(made("t", attempt_id))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with capture_logs() as logs:
        assert store.sweep("t", committed, scene="code") == []
        assert store.sweep("elsewhere", committed, scene="code") == []
    assert [line["event"] for line in logs] == ["store.unswept"]
    assert store.attempts_of("t") == [lost, committed]


# -- written once, whole, durable -----------------------------------------------------------------


def test_what_was_written_is_read_back_and_lies_where_users_look(store: Store) -> None:
    trajectory = made("任务-1", final_result="é\0\n")
    digest = store.write_attempt(trajectory)
    assert store.read_attempt("任务-1", FIRST) == trajectory
    assert everything_in(store.root) == {f"trajectories/任务-1/{FIRST}.json"}
    file = store.root / "trajectories/任务-1" / f"{FIRST}.json"
    assert digest == subprocess.run(
        ["sha256sum", "-z", file], capture_output=True, text=True, check=True
    ).stdout.split(" ", 1)[0]  # fmt: skip

    assert store.read_review("任务-1", FIRST) is None
    review = review_of(trajectory)
    store.write_review(review)
    assert store.read_review("任务-1", FIRST) == review


WRITER = """
import sys
from itertools import count
from pathlib import Path
from common.store import Store
from common.trajectory import Trajectory

store = Store(Path(sys.argv[1]))
template = Trajectory.model_validate_json(sys.stdin.buffer.read())
for n in count():
    body = {"final_result": str(n % 10) * 2_000_000}
    store.write_attempt(template.model_copy(update=body))
    store.write_attempt(template.model_copy(update={**body, "attempt_id": f"r1-s0-{n}-0-d1-bb"}))
    store.put_blob(str(n).encode() * 100_000, media_type="text/plain", ext="txt")
    if n == 1:
        print("writing", flush=True)
"""


@contextlib.contextmanager
def writing(store: Store) -> Iterator[None]:
    """A process that writes without end; killed on leaving, whatever it is doing."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, store.root],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdin.write(made().model_dump_json(by_alias=True).encode())
        writer.stdin.close()
        assert writer.stdout.readline() == b"writing\n"
        yield
    finally:
        writer.kill()
        writer.wait()
        if writer.stdout is not None:
            writer.stdout.close()


def test_a_writer_killed_at_any_instant_leaves_nothing_half_written(store: Store) -> None:
    folder = store.root / "trajectories/t"
    for moment in range(3):
        with writing(store):
            for _ in range(5 * moment + 1):  # what is visible is whole while it is being replaced
                assert len(store.read_attempt("t", FIRST).final_result) == 2_000_000
        for attempt_id in store.attempts_of("t"):
            said = store.read_attempt("t", attempt_id).final_result
            assert said == said[0] * 2_000_000
        visible = [file.name for file in folder.iterdir() if file.name[0] != "."]
        assert sorted(visible) == sorted(f"{name}.json" for name in store.attempts_of("t"))
        for blob in store.root.glob("blobs/*/[!.]*"):
            assert len(blob.read_bytes()) % 100_000 == 0
        for file in folder.iterdir():
            file.unlink()


def test_a_name_appears_only_once_its_bytes_are_on_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.attempt_path("t", FIRST)
    synced: list[tuple[str, bool]] = []

    def fsync(fd: int) -> None:
        kind = "folder" if Path(f"/proc/self/fd/{fd}").is_dir() else "file"
        synced.append((kind, path.exists()))
        real(fd)

    real = os.fsync
    monkeypatch.setattr(os, "fsync", fsync)
    store.write_attempt(made())
    assert synced == [("file", False), ("folder", True)]


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_attempt(made(final_result="old"))
    before = everything_in(store.root)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="disk is full"):
        store.write_attempt(made(final_result="new"))
    assert store.read_attempt("t", FIRST).final_result == "old"
    assert everything_in(store.root) == before


def test_threads_that_write_the_same_names_do_not_disturb_each_other(store: Store) -> None:
    errors: list[Exception] = []

    def write(n: int) -> None:
        try:
            for _ in range(10):
                store.write_attempt(made(final_result=str(n)))
                store.put_blob(b"same", media_type="text/plain", ext="txt")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.read_attempt("t", FIRST).final_result in ("0", "1", "2", "3")
    assert len(everything_in(store.root)) == 2


def test_the_attempt_of_a_lost_lease_is_removed_and_only_that(store: Store) -> None:
    other = FIRST.replace("-d1-", "-d2-")
    keep(store)
    store.write_attempt(made(attempt_id=other))
    store.discard_attempt("t", other)
    store.discard_attempt("t", other)
    assert store.attempts_of("t") == [FIRST]


# -- blobs ----------------------------------------------------------------------------------------


def test_the_same_bytes_are_kept_once(store: Store) -> None:
    first = store.put_blob(b"\x89PNG" * 9, media_type="image/png", ext="png")
    file = store.blob_path(first)
    inode = file.stat().st_ino
    assert store.put_blob(b"\x89PNG" * 9, media_type="image/png", ext="png") == first
    assert file.stat().st_ino == inode
    assert everything_in(store.root) == {f"blobs/{first.sha256[:2]}/{first.sha256}.png"}
    assert (first.bytes, file.read_bytes()) == (36, b"\x89PNG" * 9)

    other = store.put_blob(b"", media_type="text/plain", ext="txt")
    assert store.blob_path(other).read_bytes() == b""


@pytest.mark.parametrize("ext", ["../x", "a/b", "", ".", "PNG", "txt\n"])
def test_a_blob_has_no_extension_that_leads_elsewhere(store: Store, ext: str) -> None:
    with pytest.raises(ValueError, match="ext"):
        store.put_blob(b"x", media_type="text/plain", ext=ext)
    assert not store.root.exists()


def test_a_missing_blob_is_nowhere_until_it_is_put(store: Store) -> None:
    blob = Blob(sha256="ab" * 32, media_type="text/plain", bytes=1, ext="txt")
    assert store.blob_path(blob) == store.root / "blobs" / "ab" / f"{'ab' * 32}.txt"
    assert not store.blob_path(blob).exists()


# -- names ----------------------------------------------------------------------------------------

NAMES = st.lists(
    st.sampled_from(["..", "/", ".", "\0", "etc", "\\", "~", "é", " ", "-", "x" * 300]), max_size=4
).map("".join) | st.text(max_size=8)


@given(NAMES, NAMES)
def test_no_name_leads_out_of_the_store(task_id: str, attempt_id: str) -> None:
    store = Store(Path("/nowhere/output"))
    for path_of in (store.attempt_path, store.review_path):
        try:
            path = path_of(task_id, attempt_id)
        except StoreError:
            continue
        inside = Path(os.path.normpath(path)).relative_to("/nowhere/output/trajectories")
        assert len(inside.parts) == 2


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/x", "a/b", "a\0b"])
def test_a_bad_name_is_refused_before_anything_is_touched(store: Store, name: str) -> None:
    for touch in (
        lambda: store.write_attempt(made(task_id=name)),
        lambda: store.read_attempt(name, FIRST),
        lambda: store.read_review(name, FIRST),
        lambda: store.discard_attempt(name, FIRST),
        lambda: store.attempts_of(name),
    ):
        with pytest.raises(StoreError, match="not a file name"):
            touch()
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["x" * 128, "务" * 66, "a:b", "-rf", "con"])
def test_every_id_a_task_may_have_is_a_folder(store: Store, name: str) -> None:
    keep(store, name)
    assert [r.trajectory.task_id for r in store.reviewed()] == [name]
    assert store.tasks() == [name]


# -- reading --------------------------------------------------------------------------------------


def test_attempts_come_oldest_first_by_number_and_not_by_letter(store: Store) -> None:
    ids = [
        "r1-s0-1700000000000-0-d1-ff",
        "r1-s0-1700000000000-0-d2-aa",  # the same work after its first owner died
        "r1-s0-1700000000000-0-d10-cc",
        "r1-s0-1700000000000-2-d1-cc",
        "r1-s0-1700000000000-10-d1-aa",
        "r1-s0-1700000000001-0-d1-aa",
        "r1-s2-1600000000000-0-d1-aa",
        "r1-s10-1600000000000-0-d1-aa",
        "r2-s0-1500000000000-0-d1-aa",
        "r9-s0-1500000000000-0-d1-aa",
        "r10-s0-1400000000000-0-d1-aa",
    ]
    for name in sorted(ids, key=lambda n: n[::-1]):
        store.write_attempt(made(attempt_id=name))
    assert store.attempts_of("t") == ids
    assert store.attempts_of("unknown") == []


def test_reviewed_attempts_come_in_one_order_and_only_those(store: Store) -> None:
    second = "r2-s0-1600000000000-0-d1-aa"
    for task_id in ("b", "a", "ä"):
        for attempt_id in (second, FIRST):
            keep(store, task_id, attempt_id)
    store.write_attempt(made("a", "r3-s0-1700000000000-0-d1-aa"))  # not reviewed yet
    found = [(r.trajectory.task_id, r.trajectory.attempt_id) for r in store.reviewed()]
    assert found == [(task_id, one) for task_id in ("a", "b", "ä") for one in (FIRST, second)]
    assert all(r.review.attempt_id == r.trajectory.attempt_id for r in store.reviewed())


def damage(store: Store) -> Iterator[tuple[str, bytes | None]]:
    """Yield ways in which a file in a task's folder may be no good."""
    whole = store.attempt_path("good", FIRST).read_bytes()
    yield f"{FIRST}.json", b""
    yield f"{FIRST}.json", whole[: len(whole) // 2]
    yield f"{FIRST}.json", b"[]"
    yield f"{FIRST}.json", b"\xff\xfe\0"
    yield f"{FIRST}.json", json.dumps({**json.loads(whole), "surprise": 1}).encode()
    yield f"{FIRST}.json", None  # reviewed, and then deleted
    yield f"{FIRST}.review.json", b'{"score": 100}'
    yield f"{FIRST}.review.json", b""


@pytest.mark.parametrize("which", range(8))
def test_a_damaged_file_costs_itself_only_and_is_named_in_the_log(store: Store, which: int) -> None:
    for task_id in ("bad", "good", "zz"):
        keep(store, task_id)
    name, data = list(damage(store))[which]
    file = store.root / "trajectories/bad" / name
    file.write_bytes(data) if data is not None else file.unlink()
    with capture_logs() as logs:
        found = [r.trajectory.task_id for r in store.reviewed()]
    assert found == ["good", "zz"]
    if data is not None:
        [line] = logs
        assert (line["event"], line["log_level"]) == ("store.damaged", "error")
        assert str(file) in line["error"]


@pytest.mark.parametrize(
    "name", ["notes.json", "r1-s0.json", "rx-s0-1-0-d1-aa.json", "a-b-c-d.json"]
)
def test_a_file_somebody_else_put_there_disturbs_nothing(store: Store, name: str) -> None:
    keep(store)
    (store.root / "trajectories/t" / name).write_text("{}")
    (store.root / "trajectories/t/notes.txt").write_text("mine")
    (store.root / "trajectories/README.md").write_text("mine")
    assert [r.trajectory.attempt_id for r in store.reviewed()] == [FIRST]
    assert store.attempts_of("t") == [FIRST]


@pytest.mark.parametrize(("data", "reason"), [(None, "No such file"), (b"{", "not a trajectory")])
def test_an_attempt_that_cannot_be_read_says_which(
    store: Store, data: bytes | None, reason: str
) -> None:
    path = store.attempt_path("t", FIRST)
    if data is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    with pytest.raises(StoreError, match=reason) as refused:
        store.read_attempt("t", FIRST)
    assert str(path) in str(refused.value)


def test_an_empty_store_holds_nothing(store: Store) -> None:
    assert (store.tasks(), list(store.reviewed())) == ([], [])


def test_what_is_wrong_with_a_file_is_said_without_what_is_in_it(store: Store) -> None:
    keep(store)
    path = store.attempt_path("t", FIRST)
    wrong = {name: ["SECRET"] for name in ("task_id", "attempt_id", "revision", "sample", "steps")}
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **wrong}))
    with pytest.raises(Damaged) as damaged:
        store.read_attempt("t", FIRST)
    told = str(damaged.value)
    assert told.startswith(f"{path} is not a trajectory: ")
    assert told.count("; ") == 3 and "more" in told.rpartition("; ")[2]
    assert not [word for word in ("SECRET", "pydantic", "https:", "\n") if word in told]
