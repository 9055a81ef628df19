"""What may leave the store, and what never does."""

from __future__ import annotations

from common.failures import Failure, FailureKind
from common.store import Reviewed
from common.trajectory import Agent, Verdict
from exporters.export import Selection
from tests.exporters.attempts import attempt, review_of

EVERYTHING = Selection(embedded=True, unverified=True)


def test_an_agent_that_does_nothing_and_unverified_failures_never_leave() -> None:
    good = attempt()
    assert EVERYTHING.refuses(Reviewed(good, review_of(good))) is None

    nop = good.model_copy(update={"agent": Agent(kind="nop"), "verdict": Verdict(passed=None)})
    assert EVERYTHING.refuses(Reviewed(nop, review_of(good))) == "agent that does nothing"

    failure = Failure(kind=FailureKind.MODEL_ERROR, message="x")
    failed = good.model_copy(update={"failure": failure, "verdict": Verdict(passed=None)})
    assert EVERYTHING.refuses(Reviewed(failed, review_of(good))) == "not accepted"


def test_stand_ins_and_infrastructure_failures_never_leave() -> None:
    good = attempt()
    agent = good.agent.model_copy(update={"model_source": "standin"})
    standin = good.model_copy(update={"agent": agent})
    assert EVERYTHING.refuses(Reviewed(standin, review_of(good))) == "stand-in"
    world = good.environment.model_copy(update={"backend": "standin-phone"})
    standin = good.model_copy(update={"environment": world})
    assert EVERYTHING.refuses(Reviewed(standin, review_of(good))) == "stand-in"
    lost = Failure(kind=FailureKind.SANDBOX_LOST, message="x")
    broken = good.model_copy(update={"failure": lost})
    assert EVERYTHING.refuses(Reviewed(broken, review_of(good))) == "infrastructure failure"
