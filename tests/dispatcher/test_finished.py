"""Which decisions in a store are those on a task, and which on another of its name."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from common.task import Task
from dispatcher.finished import Finished
from tests.dispatcher.desk import line
from tests.dispatcher.test_flush import decide

OLD, NEW = 1_700_000_000_000, 1_800_000_000_000


def finished(output: Path, data: bytes) -> bool:
    return Task.model_validate(orjson.loads(data)) in Finished(output)


def test_a_decision_on_another_task_of_the_name_is_none_on_this_one(tmp_path: Path) -> None:
    decide(tmp_path, line("a", description="Another."), entry=OLD)
    decide(tmp_path, line("a"), "iterate", entry=NEW)
    assert not finished(tmp_path, line("a"))


def test_a_later_revision_of_another_task_of_the_name_is_none_of_this_one(tmp_path: Path) -> None:
    decide(tmp_path, line("a", description="Another."), "iterate", entry=OLD)
    decide(tmp_path, line("a", description="Another.", max_steps=20), revision=2, entry=OLD + 1)
    decide(tmp_path, line("a"), "iterate", entry=NEW)
    assert not finished(tmp_path, line("a"))


def test_samples_of_two_tasks_do_not_add_up(tmp_path: Path) -> None:
    two = line("a", samples=2)
    decide(tmp_path, two, sample=0, entry=NEW)
    decide(tmp_path, line("a", samples=2, description="Another."), sample=1, entry=OLD)
    assert not finished(tmp_path, two)
    decide(tmp_path, two, "iterate", sample=1, entry=NEW)
    assert not finished(tmp_path, two)


def test_a_first_revision_that_was_never_decided_tells_whose_sample_it_is(tmp_path: Path) -> None:
    first = decide(tmp_path, line("a", description="Another."), "iterate", entry=OLD)
    first.with_suffix(".review.json").unlink()
    decide(tmp_path, line("a", description="Another.", max_steps=20), revision=2, entry=OLD + 1)
    decide(tmp_path, line("a"), "iterate", entry=NEW)
    assert not finished(tmp_path, line("a"))


def test_a_sample_whose_first_revision_cannot_be_read_runs_again(tmp_path: Path) -> None:
    first = decide(tmp_path, line("a"), "iterate", entry=OLD)
    decide(tmp_path, line("a", max_steps=20), revision=2, entry=NEW)
    assert finished(tmp_path, line("a"))
    first.write_bytes(b"{")
    assert not finished(tmp_path, line("a"))


@pytest.mark.parametrize("decision", ["accepted", "rejected", "human"])
def test_the_end_of_a_later_revision_is_the_end_of_its_sample(
    tmp_path: Path, decision: str
) -> None:
    task = line("a", samples=2)
    decide(tmp_path, task, sample=0)
    decide(tmp_path, task, "iterate", sample=1, entry=OLD)
    assert not finished(tmp_path, task)
    decide(tmp_path, line("a", samples=2, max_steps=20), decision, 1, revision=2, entry=NEW)
    assert finished(tmp_path, task)


def test_tasks_of_one_name_in_two_scenes_do_not_know_each_other(tmp_path: Path) -> None:
    decide(tmp_path, line("a"), entry=OLD)
    decide(tmp_path, line("a", "web"), "iterate", entry=OLD + 1)
    assert finished(tmp_path, line("a"))
    assert not finished(tmp_path, line("a", "web"))
    decide(tmp_path, line("a", "web", max_steps=20), revision=2, entry=NEW)
    assert finished(tmp_path, line("a"))
    assert finished(tmp_path, line("a", "web"))


def test_what_waited_for_people_is_not_at_its_end(tmp_path: Path) -> None:
    """The wait is gone with the queue: the task has to be tried and asked about again."""
    decide(tmp_path, line("a"), "waiting", entry=OLD)
    assert not finished(tmp_path, line("a"))
    # Somebody had agreed to a change since, and its revision was under way.
    decide(tmp_path, line("a", max_steps=20), "iterate", revision=2, entry=OLD + 1)
    assert not finished(tmp_path, line("a"))
    decide(tmp_path, line("a", max_steps=20), "accepted", revision=3, entry=OLD + 2)
    assert finished(tmp_path, line("a"))
