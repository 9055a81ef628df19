"""What a lease ends with."""

from __future__ import annotations

from common.failures import Failure, FailureKind
from workers.outcome import retry_of


def test_a_provider_cannot_park_a_task_for_a_year() -> None:
    said = Failure(kind=FailureKind.RATE_LIMITED, message="429", retry_after=31_536_000.0)
    retry = retry_of(said, base=2.0)
    assert 3600 <= retry.delay <= 4500
    assert not retry.counted  # waiting for somebody else's limit uses up no retries
    assert len({retry_of(said, base=2.0).delay for _ in range(50)}) > 1  # not all at once then


def test_what_infrastructure_broke_is_a_counted_retry_with_a_spread_delay() -> None:
    lost = Failure(kind=FailureKind.SANDBOX_LOST, message="gone")
    retries = [retry_of(lost, base=2.0) for _ in range(50)]
    assert all(1.0 <= retry.delay <= 2.0 and retry.counted for retry in retries)
    assert len({retry.delay for retry in retries}) > 1
