"""The way from a failed attempt to an accepted one, with and without a person's word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.audit import read
from common.review import Review
from common.trajectory import Trajectory
from reviewer.hints import HINTS
from tests.e2e.fleet import attempts, counters, decisions, fleet, printing, process, wait_until
from tests.e2e.fleet import write_tasks as write
from tests.e2e.test_model_faults import RIGHT, WRONG, standin

CLEARER = "Print the number 42 and nothing else."


def suggests(field: str, to: Any, **more: Any) -> list[dict[str, Any]]:
    change = {"field": field, "to": to, "reason": "it would be clearer", "evidence": [1], **more}
    return [{"tool": "propose", "arguments": {"changes": [change]}}]


SCRIPT: dict[str, Any] = {
    # What it is told after its first failure is all it needs.
    "green": {"turns": WRONG, "variants": [{"if": HINTS["stdout"], "turns": RIGHT}]},
    # Advice does not help; a clearer description does.
    "yellow": {"turns": WRONG, "variants": [{"if": CLEARER, "turns": RIGHT}]},
    # It is right, and the check is wrong.
    "red": {"turns": RIGHT},
    "kept": {"turns": RIGHT},
    "@propose": {
        "turns": [{"tool": "propose", "arguments": {"changes": []}}],
        "variants": [
            {"if": "[yellow]", "turns": suggests("task.description", CLEARER)},
            # Whatever level it claims.
            {"if": "[red]", "turns": suggests(
                "task.checks", [{"type": "stdout", "expected": "42"}], level="green")},
        ],
    },
}  # fmt: skip


def tasks() -> list[dict[str, Any]]:
    strict = [{"type": "stdout", "expected": "43"}]
    more = {"max_iterations": 4}
    return [
        printing("green", **more),
        printing("yellow", description="Print it. [yellow]", **more),
        printing("red", description="Print 42. [red]", checks=strict, **more),
        printing("kept", description="Print 42. [red]", checks=strict, **more),
    ]


def waiting(output: Path) -> dict[str, dict[str, Any]]:
    """What waits for people, by task."""
    done = fleet("approvals", "list", "--json", "-o", output)
    assert done.returncode == 0, done.stderr
    return {row["task_id"]: row for row in json.loads(done.stdout)}


def history(output: Path, task: str) -> list[tuple[Trajectory, Review]]:
    return [(t, r) for t, r in attempts(output)[task] if r is not None]


def test_green_is_applied_yellow_is_chosen_and_red_stays_until_it_is_approved(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    write(tmp_path / "tasks.jsonl", tasks())
    with standin(tmp_path, SCRIPT) as settings:
        env = {**settings, "FLEET_PROPOSER": "custom"}
        up = ("up", tmp_path / "tasks.jsonl", "-o", out, "--concurrency", 4)
        with process("fleet", *up, log=tmp_path / "up.log", **env):
            asked_about = {"yellow": "waiting", "red": "waiting", "kept": "waiting"}
            wait_until(
                lambda: decisions(out) == {"green": "accepted", **asked_about},
                "advice was enough for one, three wait for a person", within=60,
            )  # fmt: skip
            counts = counters(out)["code"]
            assert (counts["undecided"], counts["unaccounted"]) == (3, 0)

            asked = waiting(out)
            yellow, red, kept = (asked[t]["approval_id"] for t in ("yellow", "red", "kept"))
            assert {asked[t]["level"] for t in ("red", "kept")} == {"red"}
            assert fleet("approvals", "approve", yellow, "-o", out).returncode == 1
            assert fleet("approvals", "choose", red, "--option", 1, "-o", out).returncode == 1
            shown = fleet("approvals", "show", red, "-o", out).stdout
            assert "43" in shown and "42" in shown

            chosen = fleet("approvals", "choose", yellow, "--option", 1, "-o", out)
            assert chosen.returncode == 0, chosen.stderr
            again = fleet("approvals", "choose", yellow, "--option", 1, "-o", out)
            assert (again.returncode, "already" in again.stdout) == (0, True)
            approved = fleet("approvals", "approve", red, "--why", "the check was wrong", "-o", out)
            assert approved.returncode == 0, approved.stderr
            wait_until(
                lambda: {decisions(out)[t] for t in ("yellow", "red")} == {"accepted"},
                "what people agreed to was done", within=60,
            )  # fmt: skip
            # Nobody approved it: it waits as it did.
            assert [w["approval_id"] for w in waiting(out).values()] == [kept]
            assert decisions(out)["kept"] == "waiting"
            assert fleet("approvals", "reject", kept, "-o", out).returncode == 0
            wait_until(lambda: decisions(out)["kept"] == "rejected", "nothing is left", within=30)

    greens = history(out, "green")
    assert [r.decision for _, r in greens] == ["iterate", "accepted"]
    assert greens[1][0].revision == 2
    assert {c.level for c in greens[1][0].assignment.changes} == {"green"}
    for task, level in (("yellow", "yellow"), ("red", "red")):
        steps = history(out, task)
        assert [r.decision for _, r in steps] == ["iterate", "waiting", "accepted"]
        [change] = [c for c in steps[-1][0].assignment.changes if c.level != "green"]
        assert (change.level, len(change.by)) == (level, 1)
        assert [
            c.level for t, _ in steps[:-1] for c in t.assignment.changes if c.level == level
        ] == []
        assert steps[0][1].first_try and not steps[-1][1].first_try
    # Refused, it went on with what needs nobody, and the check stayed what it was.
    kept_tries = [t.assignment.task.checks for t, _ in history(out, "kept")]
    assert len(kept_tries) > 2 and set(kept_tries) == {kept_tries[0]}
    assert decisions(out)["kept"] == "rejected"

    told = fleet("show", "red", "-o", out).stdout
    assert all(word in told for word in ("task.checks", "decided by", "accepted"))
    said = [row for row in read(out) if row.get("approval_id") == red]
    assert {row["why"] for row in said if row.get("why")} == {"the check was wrong"}


def test_a_run_that_only_waits_for_people_ends_and_goes_on_after_their_word(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    write(tmp_path / "tasks.jsonl", [tasks()[2]])
    with standin(tmp_path, SCRIPT) as settings:
        env = {**settings, "FLEET_PROPOSER": "custom", "FLEET_ASK_PEOPLE": "early"}
        up = ("up", tmp_path / "tasks.jsonl", "-o", out, "--until-done")
        first = fleet(*up, **env)
        assert first.returncode == 0, first.stderr
        assert "fleet approvals list" in first.stdout
        [asked] = waiting(out).values()  # no fleet is up: the queue is woken for this
        done = fleet("approvals", "approve", asked["approval_id"], "-o", out)
        assert done.returncode == 0, done.stderr
        assert fleet(*up, **env).returncode == 0
    assert [r.decision for _, r in history(out, "red")] == ["waiting", "accepted"]
