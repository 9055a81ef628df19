"""Every metric of the fleet: names, labels and buckets live here and nowhere else.

Label values come from closed sets only: never an id, a URL or text a model wrote. The model-call
names follow the OpenTelemetry GenAI conventions, dots written as underscores.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from common import __version__

_ATTEMPT_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_STEP_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_WAIT_SECONDS = (0.01, 0.1, 1, 5, 15, 60, 300, 900, 3600, 14_400)
_CREATE_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# Both bucket lists are the GenAI convention's own.
_CALL_SECONDS = tuple(0.01 * 2**n for n in range(14))
_CALL_TOKENS = tuple(4**n for n in range(14))


class Metrics:
    """The metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a quarter of all series, and nobody reads them
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(name, what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, what, labels, buckets=buckets, registry=registry)

        gauge("fleet_build_info", "Version of this process.", "version").labels(__version__).set(1)

        # Dispatcher
        self.lines = counter(
            "fleet_dispatcher_lines", "Lines of tasks files, by what became of them.", "result"
        )  # result: dispatched | duplicate | rejected | blank
        self.dispatched = counter("fleet_tasks_dispatched", "Tasks queued.", "scene")
        self.file_lag = gauge("fleet_dispatcher_file_lag_bytes", "Bytes not yet dispatched.")
        self.backpressure = gauge(
            "fleet_dispatcher_scene_blocked", "1 while a scene's backlog is full.", "scene"
        )

        # Worker
        self.attempts = counter(
            "fleet_attempts", "Attempts that ended.", "scene", "outcome", "error_type"
        )  # outcome: passed | failed | unverified | retried | dead | lost | released | cancelled
        self.attempt_seconds = histogram(
            "fleet_attempt_duration_seconds", "One attempt.", _ATTEMPT_SECONDS, "scene", "outcome"
        )
        self.queue_wait = histogram(
            "fleet_task_queue_wait_seconds", "From queued to taken.", _WAIT_SECONDS, "scene"
        )
        self.in_progress = gauge("fleet_attempts_in_progress", "Attempts running now.", "scene")
        self.slots = gauge("fleet_worker_slots", "Attempts this process can run at once.", "scene")
        self.steps = counter("fleet_steps", "Tool calls.", "scene", "action", "outcome")
        self.step_seconds = histogram(
            "fleet_step_duration_seconds", "One tool call.", _STEP_SECONDS, "scene"
        )
        self.claimed = counter(
            "fleet_entries_claimed", "Entries taken over from silent consumers.", "scene"
        )
        self.dead_letters = counter(
            "fleet_dead_letters", "Entries this process dead-lettered.", "scene", "reason"
        )
        self.loop_success = gauge(
            "fleet_loop_last_success_timestamp_seconds", "Last good turn of a loop.", "loop"
        )

        # Model calls
        call = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
        self.call_seconds = histogram(
            "gen_ai_client_operation_duration_seconds", "One model call.", _CALL_SECONDS,
            *call, "error_type",
        )  # fmt: skip
        self.call_tokens = histogram(
            "gen_ai_client_token_usage", "Tokens of one model call.", _CALL_TOKENS,
            *call, "gen_ai_token_type",
        )  # fmt: skip
        self.cost = counter(
            "fleet_llm_cost_usd", "US dollars spent on models.", "gen_ai_request_model", "scene"
        )
        self.call_retries = counter(
            "fleet_llm_retries", "Model calls repeated.", "gen_ai_request_model", "reason"
        )
        self.throttled = counter(
            "fleet_llm_throttle_wait_seconds", "Seconds spent waiting for rate limits."
        )
        self.parses = counter("fleet_llm_parses", "How actions were read from answers.", "parse")
        self.replayed = counter(
            "fleet_llm_replayed", "Model answers replayed instead of asked for again.", "scene"
        )
        self.llm_limit = gauge(
            "fleet_llm_concurrency_limit", "Calls the fleet may have in flight.", "provider"
        )
        self.llm_in_flight = gauge(
            "fleet_llm_in_flight", "Calls the fleet has in flight, as last heard.", "provider"
        )
        # scope: run | scene:<scene>
        self.budget_spent_usd = gauge("fleet_budget_spent_usd", "US dollars spent.", "scope")
        self.budget_limit_usd = gauge(
            "fleet_budget_limit_usd", "US dollars that may be spent; +Inf: no limit.", "scope"
        )
        self.budget_spent_tokens = gauge("fleet_budget_spent_tokens", "Tokens spent.", "scope")

        # Sandboxes
        self.sandbox_start = histogram(
            "fleet_sandbox_create_duration_seconds", "Start of one sandbox.", _CREATE_SECONDS,
            "backend",
        )  # fmt: skip
        self.sandbox_failures = counter(
            "fleet_sandbox_failures", "Sandboxes that gave way.", "backend", "phase", "error_type"
        )
        self.sandboxes = gauge("fleet_sandboxes_active", "Sandboxes open now.", "backend")
        self.sandboxes_idle = gauge(
            "fleet_sandboxes_idle", "Sandboxes kept ready for the next episodes.", "backend"
        )
        self.reaped = counter("fleet_sandboxes_reaped", "Left-overs ended.", "backend")

        # Reviewer. tries: first | retried (those have seen hints and changes)
        self.reviews = counter(
            "fleet_reviews", "Reviews written.", "scene", "decision", "level", "tries"
        )
        self.score = histogram(
            "fleet_review_score_ratio", "Review scores, 1 is best.",
            tuple(n / 10 for n in range(1, 11)), "scene", "tries",
        )  # fmt: skip
        self.iterations = counter(
            "fleet_iterations_enqueued", "Revisions queued by reviews.", "scene", "level"
        )
        self.approvals_asked = counter(
            "fleet_approvals_asked", "Changes put to people.", "scene", "level"
        )
        self.undecided = gauge(
            "fleet_units_undecided", "Units of work that wait for people.", "scene"
        )
        self.judge_answers = counter(
            "fleet_judge_answers", "Answers of judges to one question.", "result"
        )  # result: vote | unknown | invalid
        self.suggestions = counter(
            "fleet_suggestions", "Changes a model suggested, by what became of them.", "result"
        )  # result: proposal | unreadable | unfounded | unfit | leak
        self.judge_kappa = gauge(
            "fleet_judge_kappa_ratio", "Cohen's kappa between judge and verifier.",
            "scene", "judge",
        )  # fmt: skip
        self.judge_accuracy = gauge(
            "fleet_judge_balanced_accuracy_ratio", "Of a judge against the verifier.",
            "scene", "judge",
        )  # fmt: skip
        self.swept = counter(
            "fleet_attempts_swept", "Files of attempts that had lost their lease.", "scene"
        )
        self.accepted = counter(
            "fleet_trajectories_accepted", "Attempts accepted.", "scene", "tries"
        )
