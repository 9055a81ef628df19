"""Counts model calls, for every process that makes some."""

from __future__ import annotations

from typing import Any

from common.llm.types import CallRecord
from common.metrics import Metrics


class CallCounter:
    """Shows one model call after the other as metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._known: dict[tuple[int, tuple[str, ...]], Any] = {}

    def __call__(self, call: CallRecord) -> None:
        metrics, one = self._metrics, self._series
        labels = ("chat", call.provider, call.model)
        one(metrics.call_seconds, *labels, call.error_type or "").observe(call.seconds)
        metrics.throttled.inc(call.throttled)
        for fault in call.faults:
            metrics.call_retries.labels(call.model, fault).inc()
        if call.usage is not None:
            tokens = metrics.call_tokens
            one(tokens, *labels, "input").observe(call.usage.prompt_tokens)
            one(tokens, *labels, "output").observe(call.usage.completion_tokens)
            one(metrics.cost, call.model, call.account).inc(call.usage.cost_usd or 0.0)
        if call.parse is not None:
            one(metrics.parses, call.parse).inc()

    def _series(self, metric: Any, *labels: str) -> Any:
        """Return one time series: looking it up in the library costs as much as counting."""
        key = (id(metric), labels)
        if key not in self._known:
            self._known[key] = metric.labels(*labels)
        return self._known[key]
