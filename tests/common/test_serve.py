"""What a process tells Prometheus and whoever restarts it."""

from __future__ import annotations

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from common.metrics import Metrics
from common.serve import Health, serving
from tests.helpers import eventually


async def get(port: int, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, await answer.text()


async def test_metrics_health_and_readiness_on_one_port() -> None:
    metrics, health, there = Metrics(), Health(stale=0.2), True

    async def ping() -> bool:
        return there

    metrics.attempts.labels("code", "passed", "").inc()
    async with serving(metrics, health, host="127.0.0.1", port=0, ping=ping) as port:
        status, text = await get(port, "/metrics")
        assert status == 200
        families = {f.name: f for f in text_string_to_metric_families(text)}
        assert families["fleet_attempts"].samples[0].labels["outcome"] == "passed"
        assert "fleet_build_info" in families
        assert "process_cpu_seconds" in families
        assert not any(sample.name.endswith("_created") for f in families.values()
                       for sample in f.samples)  # fmt: skip
        assert (await get(port, "/healthz"))[0] == 200
        assert await get(port, "/readyz") == (200, "ok\n")

        there = False
        assert (await get(port, "/readyz"))[0] == 503
        there = True
        health.draining = True
        assert await get(port, "/readyz") == (503, "draining\n")
        health.draining = False

        async def hanging() -> bool:
            return "silent" in (await get(port, "/readyz"))[1]

        await eventually(hanging, "a main loop that does not come round is noticed")
        health.turn()
        assert (await get(port, "/readyz"))[0] == 200


def test_every_metric_of_ours_is_named_by_the_convention_and_explained() -> None:
    families = [
        family
        for family in Metrics().registry.collect()
        if not family.name.startswith(("process_", "python_"))
    ]
    assert families
    for family in families:
        assert family.name.startswith(("fleet_", "gen_ai_client_")), family.name
        assert family.documentation.endswith("."), family.name
