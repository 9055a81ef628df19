"""What people say of attempts reaches the datasets, and keeps out what they say failed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.review import Label, Review
from common.store import Reviewed, Store
from common.trajectory import Trajectory, Verdict
from exporters.export import Exported, Selection, export
from exporters.labels import accepted_by, people_say
from tests.common.stored import FIRST, made
from tests.exporters.attempts import review_of

Said = Literal["pass", "fail", "unsure"]
UNVERIFIED = Verdict(passed=None)
EOF = "EOF while parsing an object at line 1 column 1"


def label(by: str, verdict: Said, attempt_id: str = FIRST, **fields: Any) -> Label:
    return Label(task_id="t", attempt_id=attempt_id, by=by, verdict=verdict, at=1.0, **fields)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "output")


def keep(store: Store, attempt_id: str = FIRST, **fields: Any) -> tuple[Trajectory, Review]:
    """Write an attempt and its review; without a verdict, a person has to look."""
    trajectory = made("t", attempt_id, revision=int(attempt_id[1]), **fields)
    review = review_of(trajectory)
    if trajectory.verdict.passed is None:
        review = review.model_copy(update={"decision": "human", "score": None})
    store.write_attempt(trajectory)
    store.write_review(review)
    return trajectory, review


def exported(store: Store, fmt: str = "sft", **selection: Any) -> tuple[Exported, list[Any]]:
    file = store.root / f"{fmt}.jsonl"
    done = export(store, fmt, file, Selection(**selection))
    return done, [json.loads(line) for line in file.read_text().splitlines()]


def test_labels_first_tries_and_who_accepted_reach_the_rows(store: Store) -> None:
    keep(store)
    retried = FIRST.replace("r1-", "r2-")
    keep(store, retried)
    sure = label("ana@lab", "pass", score=90, note="neat")
    unsure = label("bo@lab", "unsure", failure_type="other").model_copy(update={"at": 2.0})
    for said in (unsure, sure):
        store.write_label(said)
    first, again = (row["metadata"] for row in exported(store)[1])
    assert first["labels"] == [
        {"by": "ana@lab", "verdict": "pass", "score": 90, "failure_type": None},
        {"by": "bo@lab", "verdict": "unsure", "score": None, "failure_type": "other"},
    ]
    assert (first["first_try"], first["accepted_by"]) == (True, "verifier")
    assert (again["first_try"], again["accepted_by"], again["labels"]) == (False, "verifier", [])

    raw, _ = exported(store, "raw")[1]
    assert [Label.model_validate(said) for said in raw["labels"]] == [sure, unsure]


def test_what_people_say_failed_stays_behind_whatever_accepted_it(store: Store) -> None:
    keep(store)
    store.write_label(label("ana", "fail"))
    store.write_label(label("bo", "pass"))  # a tie
    for selection in ({}, {"unverified": True}):
        assert exported(store, **selection)[0].left_out == {"a person says it failed": 1}
    store.write_label(label("cy", "pass"))
    assert exported(store)[0].rows == 1


def test_what_nothing_verified_leaves_only_when_asked_for_and_says_who_accepted_it(
    store: Store,
) -> None:
    by_people, by_judges, by_nobody = (FIRST.replace("s0", f"s{n}") for n in range(3))
    for attempt_id in (by_people, by_nobody):
        keep(store, attempt_id, verdict=UNVERIFIED)
    store.write_label(label("ana", "pass", by_people))
    trajectory = made("t", by_judges, revision=1, verdict=UNVERIFIED)
    store.write_attempt(trajectory)
    store.write_review(review_of(trajectory).model_copy(update={"accepted_by": "judges"}))

    done, _ = exported(store)
    assert done.left_out == {
        "unverified, accepted by people (--include-unverified)": 1,
        "unverified, accepted by judges (--include-unverified)": 1,
        "unverified (--include-unverified)": 1,
    }
    _, rows = exported(store, unverified=True)
    assert [row["metadata"]["accepted_by"] for row in rows] == ["people", "judges", None]


def test_a_damaged_label_costs_its_attempt_only(store: Store) -> None:
    other = FIRST.replace("s0", "s1")
    keep(store)
    keep(store, other)
    store.write_label(label("ana", "pass"))
    (file,) = store.root.rglob("*.label.*.json")
    file.write_text("{")
    done, rows = exported(store)
    assert done.left_out == Counter({"damaged label": 1})
    assert done.damaged == [f"{file} is not a label: Invalid JSON: {EOF}"]
    assert [row["metadata"]["attempt_id"] for row in rows] == [other]


@given(st.lists(st.sampled_from(["pass", "fail", "unsure"]), max_size=6))
def test_no_number_of_people_makes_up_for_a_failed_check(words: list[Said]) -> None:
    labels = [label(f"p{n}", word) for n, word in enumerate(words)]
    failed = made(verdict=Verdict(passed=False, reward=0.0))
    for decision in ("rejected", "human", "waiting", "iterate"):
        review = review_of(failed).model_copy(update={"decision": decision})
        refused = Selection(unverified=True, embedded=True).refuses(
            Reviewed(failed, review), labels
        )
        assert refused in ("not accepted", "a person says it failed")
        assert accepted_by(review, labels) is None
    passes, fails = words.count("pass"), words.count("fail")
    assert (people_say(labels) == "pass") == (passes > fails)
    assert (people_say(labels) is None) == (passes == fails == 0)
