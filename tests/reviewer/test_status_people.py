"""`fleet status` says what waits for a person, what is held back, and what passed at once."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from common.queue.scene_queue import Counts
from fleet.status import Snapshot, as_dict, goes_on, remarks, table

DONE = {"tasks": 9, "units": 9, "committed": 9, "accepted": 5, "tasks_accepted": 5}


def snapshot(workers: int = 1, live: dict[str, int] | None = None, **counters: int) -> Snapshot:
    now: Any = {"waiting": 0, "running": 0, "delayed": 0, "reviewing": 0} | (live or {})
    now["undecided"] = counters.pop("undecided", 0)
    return Snapshot({"code": Counts(**now, counters={**DONE, **counters})}, {"code": workers}, {})


def shown(of: Snapshot) -> dict[str, str]:
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(table(of))
    rows = (line.rsplit(maxsplit=1) for line in captured.get().splitlines() if line.strip())
    return {row[0].strip(): row[1] for row in rows if len(row) == 2}


def test_what_waits_for_people_is_a_row_a_number_and_a_remark() -> None:
    seen = snapshot(live={"waiting": 7}, undecided=2, held=3, accepted_first=4, accepted_retried=1)
    rows = shown(seen)
    assert (rows["waiting"], rows["waiting for people"], rows["held for their group"]) == (
        "7", "2", "3",
    )  # fmt: skip
    assert (rows["accepted"], rows["at the first try"], rows["after changes"]) == ("5", "4", "1")
    told = as_dict(seen)["code"]
    assert (told["waiting"], told["undecided"], told["held"]) == (7, 2, 3)
    assert (told["accepted_first"], told["accepted_retried"]) == (4, 1)
    line = "code: 2 tasks wait for a person: fleet approvals list"
    assert line in remarks(seen)
    assert seen.held_up(["code"]) == [line]
    assert seen.held_up(["web"]) == []
    assert "code: 1 task waits for a person: fleet approvals list" in remarks(snapshot(undecided=1))


def test_numbers_that_no_counter_has_yet_are_there_as_0() -> None:
    told = as_dict(snapshot())["code"]
    names = ("undecided", "held", "accepted_first", "accepted_retried")
    assert [told[name] for name in names] == [0] * 4
    assert not any("person" in remark for remark in remarks(snapshot()))


def test_workers_are_missed_only_where_there_is_work_for_them() -> None:
    def missed(**seen: Any) -> bool:
        return any("workers" in remark for remark in remarks(snapshot(workers=0, **seen)))

    assert not missed(undecided=4)  # all that is open is with people
    assert missed(undecided=3, live={"waiting": 1})
    assert missed(live={"delayed": 4})
    assert missed(held=1)


def test_who_waits_for_nobody_any_more_is_not_counted_as_waiting() -> None:
    """The counter has also those whose time is over, until somebody ends them."""
    late = snapshot(workers=0)
    late.scenes["code"].counters["with_people"] = 2
    assert shown(late)["waiting for people"] == "0"
    assert as_dict(late)["code"]["undecided"] == 0
    assert late.held_up(["code"]) == []
    assert any("workers" in remark for remark in remarks(late))


def test_there_is_work_while_somebody_must_be_told_that_time_is_up() -> None:
    """The reviewer ends those whose time is over; others that still wait change nothing in that."""

    def on(asked: int, undecided: int) -> bool:
        return goes_on(snapshot(undecided=undecided, with_people=asked).scenes["code"])

    assert on(asked=2, undecided=1)
    assert on(asked=1, undecided=0)
    assert not on(asked=2, undecided=2)


def test_what_came_to_no_verdict_is_told_as_what_happened() -> None:
    (line,) = remarks(snapshot(human=2))
    assert line == ("code: 2 came to no verdict: fleet review next shows those you have not seen")
