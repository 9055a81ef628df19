"""The scripts against a model: any order of events by several consumers, on real servers.

Hypothesis makes up the orders and shrinks the ones that fail. After every step the whole scene is
read back: each unit is where the model says and nowhere else, every counter is equal.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from common.queue.embedded import EmbeddedServer
from tests.common.queue.machine import Scene


def _against(url: str, *, examples: int, steps: int, number: int) -> None:
    machine = seed(number)(type("Scene", (Scene,), {"url": url}))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), print_blob=True,
            phases=(Phase.generate, Phase.shrink),
        ),
    )  # fmt: skip


def test_any_order_of_events_leaves_the_scene_as_the_model_says(valkey: EmbeddedServer) -> None:
    _against(valkey.url, examples=30, steps=40, number=1)


def test_any_order_of_events_on_redis_7(debian_redis: EmbeddedServer) -> None:
    _against(debian_redis.url, examples=10, steps=40, number=2)


@pytest.mark.chaos
def test_a_thousand_long_orders_of_events(valkey: EmbeddedServer) -> None:
    number = int(os.environ.get("FLEET_CHAOS_SEED") or 20)
    print(f"FLEET_CHAOS_SEED={number}")
    _against(valkey.url, examples=1000, steps=80, number=number)
