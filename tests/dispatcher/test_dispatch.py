"""What the dispatcher does with a file, seen in the queue and in rejected.jsonl."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.failures import ConfigurationError
from common.queue.scene_queue import SceneQueue
from common.task import Assignment
from dispatcher.readers import REJECTED
from dispatcher.tail import Position, anchor
from tests.dispatcher.desk import Desk, line, lines
from tests.helpers import eventually, task, units


def names(start: int, stop: int, prefix: str = "t") -> list[str]:
    return [f"{prefix}{n:05}" for n in range(start, stop)]


async def drain(desk: Desk, scene: str, count: int) -> list[str]:
    """Take and drop ``count`` entries, as workers would."""
    rows = await desk.server.client.xrange(f"tasks:{scene}", count=count)
    for entry, _ in rows:
        await desk.server.client.xdel(f"tasks:{scene}", entry)
    return [fields[b"id"].decode() for _, fields in rows]


async def test_every_line_arrives_once_and_in_order(desk: Desk) -> None:
    desk.append(lines(names(0, 1203)))
    await desk.once()
    assert await desk.ids() == names(0, 1203)
    assert desk.count("dispatched") == 1203
    assert not desk.rejected()
    await desk.once()
    assert len(await desk.ids()) == 1203


async def test_scenes_lanes_and_samples_go_where_they_belong(desk: Desk) -> None:
    desk.append(line("a", priority=9) + b"\n" + line("b", "web", samples=2, priority=1) + b"\n")
    await desk.once()
    [(_, first)] = await desk.server.client.xrange("{tasks:code}:hi")
    assert Assignment.model_validate_json(first[b"p"]).task.task_id == "a"
    rows = await desk.server.client.xrange("{tasks:web}:lo")
    assert [fields[b"u"] for _, fields in rows] == [b"r1-s0", b"r1-s1"]
    assert desk.count("dispatched") == 2


async def test_a_growing_file_is_followed_from_before_it_exists(desk: Desk) -> None:
    async with desk.following():
        desk.append(line("a"))
        await eventually(lambda: bool(desk.told) and desk.told[-1].size > 0, "file seen")
        assert await desk.ids() == []  # the line is not complete
        lag = desk.metrics.registry.get_sample_value("fleet_dispatcher_file_lag_bytes")
        assert lag == len(line("a"))
        desk.append(b"\n\n \r\n" + line("b") + b"\r\n" + line("c")[:20])
        await desk.arrived(["a", "b"])
        desk.append(line("c")[20:] + b"\n")
        await desk.arrived(["a", "b", "c"])
        state = await desk.done()
    assert (state["line"], state["offset"]) == (5, state["size"])
    assert desk.count("blank") == 2
    assert desk.health.draining


async def test_once_takes_a_last_line_without_newline_and_it_stays_taken(desk: Desk) -> None:
    desk.append(line("a") + b"\n" + line("b"))
    await desk.once()
    assert await desk.ids() == ["a", "b"]
    desk.append(b"\n" + line("c") + b"\n{\n")
    await desk.once()
    assert await desk.ids() == ["a", "b", "c"]
    assert [row["line"] for row in desk.rejected()] == [4]


async def test_byte_order_marks_are_no_part_of_a_line(desk: Desk) -> None:
    bom = b"\xef\xbb\xbf"
    desk.append(bom + line("a") + b"\r\n" + bom + line("b") + b"\n" + bom + b"\n")
    await desk.once()
    assert await desk.ids() == ["a", "b"]
    assert not desk.rejected()


async def test_several_files_and_one_given_twice(desk: Desk, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    desk.append(lines(names(0, 700)))
    other.write_bytes(lines(names(0, 600, "o"), "web"))
    (tmp_path / "link").symlink_to(other)
    async with desk.following(desk.file, other, tmp_path / "link"):
        await desk.arrived(names(0, 700))
        await desk.arrived(names(0, 600, "o"), "web")
        await desk.done()
        await desk.done(other)
    assert not desk.rejected()


async def test_all_bad_lines_are_reported_and_all_good_ones_between_run(desk: Desk) -> None:
    bad: list[tuple[bytes, str, str]] = [
        (b"{nope", "(line)", "not valid JSON at character 2"),
        (line("b1", "cod"), "task_type", "unknown scene 'cod'; did you mean 'code'?"),
        (line("b2", max_step=3), "max_step", "did you mean 'max_steps'?"),
        (line("b3", max_steps="x"), "max_steps", "valid integer"),
        (line("../../etc/x"), "task_id", "must be 1-128"),
        (line("b4", description="x" * (10 << 20)), "(line)", "bytes long, and at most 1,048,576"),
        (b'{"task_id":"b5"\0}', "(line)", "NUL byte at byte 16"),
        (line("b6").decode().encode("utf-16-le"), "(line)", "looks like UTF-16; save as UTF-8"),
        (line("good-0"), "task_id", "duplicate task_id"),
        (line("b7", timeout=0), "timeout", "greater than 0"),
        (line("b8", priority=11), "priority", "less than or equal to 10"),
        (b"[]", "(line)", "one JSON object"),
        (b'{"a":' * 5000, "(line)", "depth limit"),
        (line("b9", metadata={"x": 0}).replace(b"0", b"NaN"), "(line)", "JSON has no NaN"),
        (line("b10", seed=1).replace(b"1,", b"1" * 40 + b","), "(line)", ""),
        (b"\xff\xff", "(line)", "not UTF-8 at byte 1"),
    ]
    content, expected = b"", []
    for n, (data, field, reason) in enumerate(bad):
        content += line(f"good-{n}") + b"\n"
        expected.append((len(content), 2 * n + 2, field, reason, data))
        content += data + b"\n"
    desk.append(content + line("last") + b"\n")
    await desk.once()

    assert await desk.ids() == [f"good-{n}" for n in range(len(bad))] + ["last"]
    rows = sorted(desk.rejected(), key=lambda row: row["line"])
    assert len(rows) == len(bad)
    for row, (offset, number, field, reason, data) in zip(rows, expected, strict=True):
        assert (row["offset"], row["line"], row["field"]) == (offset, number, field)
        assert reason in row["reason"]
        assert row["text"] == data[:2000].decode(errors="replace")[:500]
        assert row["file"] == str(desk.file)
        assert row["at"].startswith("20")
    assert rows[4]["task_id"] == "../../etc/x"
    assert desk.count("rejected") == len(bad) - 1
    assert desk.count("duplicate") == 1

    before = desk.rejected()
    await desk.once()
    assert desk.rejected() == before


async def test_a_file_saved_as_utf_16_is_taken_once_it_is_saved_as_utf_8(desk: Desk) -> None:
    desk.append((line("一") + b"\n" + line("b") + b"\n").decode().encode("utf-16"))
    async with desk.following():
        await eventually(lambda: len(desk.rejected()) >= 2, "both lines rejected")
        assert {row["reason"] for row in desk.rejected()} == {"looks like UTF-16; save as UTF-8"}
        desk.file.write_bytes(line("一") + b"\n" + line("b") + b"\n")
        await desk.arrived(["一", "b"])


async def test_a_long_line_still_growing_holds_nothing_up(desk: Desk) -> None:
    desk.append(line("a") + b"\n" + b"x" * 5000)
    async with desk.following(max_line_bytes=1024):
        await desk.arrived(["a"])
        desk.append(b"x" * 300_000)
        desk.append(b"\n" + line("b") + b"\n")
        await desk.arrived(["a", "b"])
    [row] = desk.rejected()
    assert row["reason"].startswith("305,000 bytes long, and at most 1,024 are read")


async def test_an_editor_that_replaces_the_file_loses_and_repeats_nothing(desk: Desk) -> None:
    desk.append(lines(names(0, 50)) + b"{bad\n")
    async with desk.following():
        await desk.arrived(names(0, 50))
        await desk.done()
        # A new first line moves all others; the bad line is mended; two are added.
        new = desk.file.with_suffix(".swp")
        new.write_bytes(lines(["first" * 20, *names(0, 50), "mended", *names(50, 52)]))
        new.rename(desk.file)
        await desk.arrived([*names(0, 50), "first" * 20, "mended", *names(50, 52)])
        await desk.done()
        # Saved again with lines at the end only.
        new.write_bytes(desk.file.read_bytes() + lines(names(52, 60)))
        new.rename(desk.file)
        await desk.arrived([*names(0, 50), "first" * 20, "mended", *names(50, 60)])
        await desk.done()
    assert len(desk.rejected()) == 1  # lines read again are no duplicates
    assert desk.count("duplicate") == 0


async def test_a_replacement_reports_its_own_bad_lines(desk: Desk) -> None:
    desk.append(lines(names(0, 50)))
    async with desk.following():
        await desk.arrived(names(0, 50))
        new = desk.file.with_suffix(".swp")
        new.write_bytes(b"{new\n" + lines(names(0, 50)))
        new.rename(desk.file)
        await eventually(lambda: len(desk.rejected()) == 1, "the new bad line")
        await desk.done()
    assert desk.rejected()[0]["line"] == 1


async def test_a_truncated_file_is_read_from_its_start(desk: Desk) -> None:
    desk.append(lines(names(0, 50)))
    async with desk.following():
        await desk.arrived(names(0, 50))
        os.truncate(desk.file, 0)
        await eventually(lambda: desk.told[-1].size == 0 and desk.told[-1].done, "noticed")
        desk.append(lines(names(50, 60)))
        await desk.arrived(names(0, 60))
        desk.file.unlink()
        desk.append(lines(names(60, 70)))
        await desk.arrived(names(0, 70))


async def test_an_id_given_twice_is_reported_wherever_it_comes_again(desk: Desk) -> None:
    other = desk.folder / "other.jsonl"
    other.write_bytes(line("a", description="Another.") + b"\n")
    desk.append(lines(["a", "b", "a"]) + line("a", "web") + b"\n")
    await desk.once()
    await desk.once(other)
    assert await desk.ids() == ["a", "b"]
    rows = [(r["file"], r["line"], r["field"], r["reason"]) for r in desk.rejected()]
    assert rows == [
        (str(desk.file), 3, "task_id", "duplicate task_id"),
        (str(other), 1, "task_id", "duplicate task_id"),
    ]


async def test_a_reread_cut_short_still_knows_what_it_had_read(desk: Desk) -> None:
    """Restarted halfway through a rewritten file: known lines are not taken for duplicates."""
    desk.append(lines(names(0, 600)))
    await desk.once()
    content = lines(["x", *names(0, 600), "y"])
    desk.file.write_bytes(content)
    # As a dispatcher leaves it that ended after the first chunk of the second reading.
    half = content.splitlines(keepends=True)[:300]
    for scene, tasks in (("code", [units(task("x"))]), (REJECTED, [])):
        queue = SceneQueue(desk.server, scene)
        old = await queue.position(str(desk.file))
        end = Position.parse(old).restarted(len(content)).after(_place(b"".join(half)))
        done = await queue.publish(tasks, file=str(desk.file), expected=old, new=str(end))
        assert done.outcome == "published"
    await desk.once()
    assert set(await desk.ids()) == {*names(0, 600), "x", "y"}
    assert not desk.rejected()


def _place(before: bytes) -> Position:
    return Position(len(before), before.count(b"\n"), anchor(before))


async def test_a_full_scene_holds_up_no_other_and_catches_up(desk: Desk) -> None:
    both = zip(names(0, 60), names(0, 60, "w"), strict=True)
    desk.append(b"".join(line(c) + b"\n" + line(w, "web") + b"\n" for c, w in both))
    blocked = ("fleet_dispatcher_scene_blocked", {"scene": "code"})
    taken: list[str] = []
    async with desk.following(max_backlog=20):
        seen_web: list[str] = []

        async def all_of_web() -> bool:  # its workers are quick, those of `code` absent
            seen_web.extend(await drain(desk, "web", 10))
            assert len(await desk.ids("code")) <= 20
            return len(seen_web) >= 60

        await eventually(all_of_web, "all of web")
        assert seen_web == names(0, 60, "w")
        assert desk.metrics.registry.get_sample_value(*blocked) == 1
        assert not desk.told[-1].done

        async def caught_up() -> bool:
            taken.extend(await drain(desk, "code", 20))
            return len(taken) == 60

        await eventually(caught_up, "the rest of code")
        await desk.done()
        assert desk.metrics.registry.get_sample_value(*blocked) == 0
    assert taken == names(0, 60)
    assert desk.count("duplicate") == 0


async def test_lines_nobody_could_find_are_not_passed(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    obstacle = desk.output / "rejected.jsonl"
    obstacle.mkdir(parents=True)  # what a full disk or a missing permission also is: an OSError
    desk.append(lines(["a"]) + b"{bad\n" + lines(["b"]))
    async with desk.following():
        await eventually(lambda: "rejected.unwritable" in "".join(capfd.readouterr()), "an error")
        assert await SceneQueue(desk.server, "code").position(str(desk.file)) == ""
        obstacle.rmdir()
        await desk.arrived(["a", "b"])
    assert [row["line"] for row in desk.rejected()] == [2]
    assert capfd.readouterr().out.count("rejected.unwritable") == 0  # said once


async def test_a_disk_that_stays_full_does_not_keep_it_from_ending(desk: Desk) -> None:
    (desk.output / "rejected.jsonl").mkdir(parents=True)
    desk.append(b"{bad\n")
    async with desk.following():
        await eventually(lambda: desk.health.ready[0], "started")
    assert await SceneQueue(desk.server, REJECTED).position(str(desk.file)) == ""


async def test_an_emptied_server_gets_everything_again(desk: Desk) -> None:
    desk.append(lines(names(0, 30)))
    async with desk.following():
        await desk.arrived(names(0, 30))
        await desk.server.client.flushall()
        desk.append(lines(["new"]))
        await desk.arrived([*names(0, 30), "new"])


async def test_what_only_a_person_can_mend_ends_it(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a regular file"):
        await desk.once(tmp_path)
    with pytest.raises(ConfigurationError, match=r"cannot read .*tasks.jsonl: No such file"):
        await desk.once()


async def test_what_a_server_has_no_memory_for_at_once_goes_in_by_portions(desk: Desk) -> None:
    queue, memory = SceneQueue(desk.server, "code"), desk.server.client

    async def some() -> bool:
        return (await queue.counts())["tasks"] > 1

    async def all_of_them() -> bool:
        return (await queue.counts())["tasks"] == 5

    try:
        async with desk.following():
            desk.append(line("first") + b"\n")
            await desk.arrived(["first"])
            room = (await memory.info("memory"))["used_memory"] + 120_000
            await memory.config_set("maxmemory", room)
            # The call itself takes memory there: four lines would never fit, and nobody frees any.
            desk.append(b"".join(
                line(f"t{n}", metadata={"fill": "x" * 60_000}) + b"\n" for n in range(4)
            ))  # fmt: skip
            await eventually(some, "some of them are in")
            assert not await all_of_them()
            await memory.config_set("maxmemory", 0)
            await eventually(all_of_them, "the rest follows once there is room")
    finally:
        await memory.config_set("maxmemory", 0)
