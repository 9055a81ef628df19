"""What a reviewer process is wired to: budgets, the fleet's limits, and its metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import orjson

from common.audit import read
from common.metrics import Metrics
from common.queue.committer import Committer, Done
from common.queue.connection import Server
from common.queue.control import Who
from common.queue.scene_queue import SceneQueue
from common.quota.budgets import BudgetWatch, read_budgets, set_budget
from common.review import Judgement, JudgeReport, Proposal, Review
from common.store import Store
from common.task import Assignment
from common.trajectory import Trajectory, Verdict
from reviewer.counsel import Counsel
from reviewer.judge.calibration import Calibration, Calibrations
from reviewer.judge.prompt import PROMPT_SHA256
from reviewer.rubric import Rubric, rubric_for
from tests.e2e.fleet import process
from tests.exporters.attempts import attempt
from tests.helpers import eventually, task, units
from tests.reviewer.endings import FAILED, PASSED, step
from tests.reviewer.running import reviewing
from tests.standin import Script, Standin, Turn

CHECKED = {"checks": [{"type": "stdout", "expected": "1"}]}


async def committed(server: Server, store: Store, names: Sequence[str], verdict: Verdict) -> None:
    """Leave an attempt at each task, as a worker does."""
    queue = SceneQueue(server, "code", consumer="w")
    await queue.publish([units(task(name, **CHECKED)) for name in names])
    committer = Committer(queue)
    for lease in await queue.take(len(names)):
        made = attempt(
            task_id=lease.task_id, attempt_id=lease.attempt_id, revision=1, verdict=verdict,
            assignment=Assignment.model_validate_json(lease.payload),
            steps=(step(1), step(2, argument=1)),
        )  # fmt: skip
        event = {"attempt_id": lease.attempt_id, "sha256": store.write_attempt(made)}
        await committer.commit(lease, Done(orjson.dumps(event)))


async def review_of(store: Store, name: str) -> Review:
    """Return the review of a task's attempt, once it is there."""
    found: list[Review] = []

    def there() -> bool:
        [attempt_id] = store.attempts_of(name)
        review = store.read_review(name, attempt_id)
        found[:] = [review] if review is not None else []
        return bool(found)

    await eventually(there, f"{name} is reviewed", within=40)
    return found[0]


async def test_nothing_is_sent_back_that_no_budget_could_pay_for(
    server: Server, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    await committed(server, store, ["t"], FAILED)
    await set_budget(server, Who("ana"), tokens=0)
    watch = BudgetWatch(server)
    await watch.start()
    try:
        async with reviewing(server, tmp_path, watch=watch):
            said = await review_of(store, "t")
    finally:
        await watch.close()
    assert said.decision == "rejected"
    assert "no other attempt can be paid for" in said.reason
    assert [line["decision"] for line in read(tmp_path)] == ["rejected"], "copied as it ended"


class Suggesting(Counsel):
    """Suggests another wording for everything."""

    silent = False

    async def suggestions(self, trajectory: Trajectory) -> tuple[Proposal, ...]:
        now = trajectory.assignment.task.description
        return (
            Proposal(field="task.description", before=now, after="Print the digit 1.",
                     reason="clearer", evidence=(1,), by="m"),
        )  # fmt: skip


def calibration(judge: str, kappa: float | None) -> Calibration:
    return Calibration.model_validate(
        {
            "scene": "code", "judge": judge, "source": "api", "votes": 3, "n": 12,
            "rubric_sha256": rubric_for("code").sha256, "prompt_sha256": PROMPT_SHA256,
            "balanced_accuracy": 0.8, "kappa": kappa, "auc": 0.9, "unknown": 0, "invalid": 0,
            "confusion": {}, "at": 1.0,
        }
    )  # fmt: skip


async def test_what_judges_are_worth_and_what_waits_for_people_is_published(
    server: Server, tmp_path: Path
) -> None:
    store, metrics = Store(tmp_path), Metrics()
    for judge, kappa in (("p:good", 0.7), ("p:undefined", None)):
        Calibrations(tmp_path).write(calibration(judge, kappa))
    await committed(server, store, ["passed"], PASSED)
    await committed(server, store, ["failed"], FAILED)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"scene": "code", **labels})

    async with reviewing(server, tmp_path, metrics, counsel=Suggesting()):
        assert (await review_of(store, "failed")).decision == "waiting"
        assert (await review_of(store, "passed")).decision == "accepted"
        await eventually(
            lambda: value("fleet_approvals_asked_total", level="yellow") == 1, "it was asked"
        )
    # Another one finds what waits when it starts.
    async with reviewing(server, tmp_path, metrics):
        await eventually(lambda: value("fleet_units_undecided") == 1, "one waits for people")
    assert value("fleet_judge_kappa_ratio", judge="p:good") == 0.7
    assert value("fleet_judge_balanced_accuracy_ratio", judge="p:good") == 0.8
    unknown = value("fleet_judge_kappa_ratio", judge="p:undefined")
    assert unknown is not None and math.isnan(unknown)
    assert value("fleet_trajectories_accepted_total", tries="first") == 1
    reviewed = {"decision": "waiting", "level": "yellow", "tries": "first"}
    assert value("fleet_reviews_total", **reviewed) == 1


async def test_a_judges_calls_are_counted_and_bounded_by_the_fleet(
    server: Server, tmp_path: Path
) -> None:
    store, script = Store(tmp_path / "out"), Script()
    graded = {"reason": "It shows.", "evidence": [1], "score": 4, "unknown": False}
    script.add("@grade", Turn(tool="grade", arguments=graded))
    async with Standin(script) as standin:
        env = {
            "FLEET_REDIS_URL": server.url, "FLEET_OUTPUT": store.root, "FLEET_JUDGES": "custom",
            "FLEET_LLM_BASE_URL": standin.url, "FLEET_LLM_MODEL": "standin-1",
        }  # fmt: skip
        with process("reviewer", "code", log=tmp_path / "log", **env):
            await committed(server, store, ["paid"], PASSED)
            paid = await review_of(store, "paid")
            assert paid.judge is not None and paid.judge.missing is None
            calls = len(standin.of("@grade"))
            assert calls == paid.judge.usage.calls > 0

            async def counted() -> bool:
                return (await read_budgets(server))["scene:code"].calls == calls

            await eventually(counted, "the scene's budget knows of each call")
            await set_budget(server, Who("ana"), scene="code", tokens=1)
            await committed(server, store, ["unpaid"], PASSED)
            unpaid = await review_of(store, "unpaid")
    assert unpaid.judge is not None and unpaid.judge.missing is not None
    assert "budget" in unpaid.judge.missing
    assert unpaid.second_look is not None
    assert len(standin.of("@grade")) == calls


class Agreeing(Counsel):
    """Two judges that like everything."""

    silent = False

    async def report(self, trajectory: Trajectory, rubric: Rubric) -> JudgeReport:
        said = (
            Judgement(criterion="outcome", model=name, median=5.0, spread=0.0)
            for name in ("p:good", "q:fine")
        )
        return JudgeReport(judgements=tuple(said))


async def test_judges_that_agree_accept_nothing_until_they_were_measured(
    server: Server, tmp_path: Path
) -> None:
    store, known = Store(tmp_path), Calibrations(tmp_path)
    for name, expected in (("before", "human"), ("after", "accepted")):
        await committed(server, store, [name], Verdict(passed=None))
        async with reviewing(server, tmp_path, counsel=Agreeing(calibrations=known)):
            assert (await review_of(store, name)).decision == expected
        for judge in ("p:good", "q:fine"):
            known.write(calibration(judge, 0.7))


async def test_what_nobody_decided_in_time_goes_on_without_them(
    server: Server, tmp_path: Path
) -> None:
    store, metrics = Store(tmp_path), Metrics()
    await committed(server, store, ["failed"], FAILED)
    async with reviewing(server, tmp_path, counsel=Suggesting(), ttl=0.01):
        assert (await review_of(store, "failed")).decision == "waiting"
    async with reviewing(server, tmp_path, metrics):
        await eventually(
            lambda: any(line.get("state") == "expired" for line in read(tmp_path)), "it is over"
        )
