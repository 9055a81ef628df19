"""Logs are JSON without secrets, and a wrong setting is named by its variable."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import SecretStr

from common import logs
from common.failures import ConfigurationError
from common.settings import load

Lines = Callable[[], list[dict[str, Any]]]


@contextlib.contextmanager
def logging_to(level: str) -> Iterator[Lines]:
    """Set logging up as a process of the fleet does; gives what was written, read as JSON."""
    buffer = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", io.TextIOWrapper(buffer))
        logs.configure(level, service="worker", worker_id="w1")
        sys.stderr.detach()  # type: ignore[attr-defined]  # so that only logging writes here
    try:
        yield lambda: [json.loads(line) for line in buffer.getvalue().splitlines()]
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


@pytest.fixture
def written() -> Iterator[Lines]:
    with logging_to("info") as lines:
        yield lines


# -- logs -----------------------------------------------------------------------------------------


def test_a_line_says_when_who_and_what(written: Lines) -> None:
    logs.logger("worker").info("attempt.started", task_id="任务", deliveries=1, ratio=0.5, why=None)
    logs.logger("worker").debug("not.shown")
    [line] = written()
    assert line.pop("ts").endswith("Z")
    assert line == {
        "event": "attempt.started", "level": "info", "service": "worker", "worker_id": "w1",
        "part": "worker", "task_id": "任务", "deliveries": 1, "ratio": 0.5, "why": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "key",
    ["api_key", "apikey", "llm_api_key", "GEMINI_API_KEY", "x-api-key", "Authorization",
     "password", "redis_password", "client_secret", "access_token"],
)  # fmt: skip
def test_a_value_is_left_out_when_its_key_says_that_it_is_secret(written: Lines, key: str) -> None:
    log = logs.logger("x")
    log.info("e", **{key: "swordfish"})
    log.info("e", headers={key: "swordfish"}, calls=[{"sent": {key: ["swordfish"]}}])
    lines = written()
    assert lines[0][key] == "[redacted]"
    assert lines[1]["headers"] == {key: "[redacted]"}
    assert "swordfish" not in json.dumps(lines)


SECRETS = [
    "sk-abcdefgh12345678",
    "sk-proj-abc_DEF-123",
    "AIza" + "SyA-1234567890abcdefghijklmnopqrstu",
    "Bearer eyJhbGciOi.J9/x+y",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_key_is_left_out_wherever_it_stands(written: Lines, secret: str) -> None:
    log = logs.logger("x")
    log.info(
        f"said {secret}", a=secret, b=f"key={secret}, and more", c=[secret], d={"e": (secret,)}
    )
    log.info("e", error=ValueError(f"bad key {secret}"))
    try:
        raise RuntimeError(f"refused: {secret}") from ValueError(secret)
    except RuntimeError:
        log.exception("e")
    text = json.dumps(written())
    assert secret not in text
    assert "key=[redacted], and more" in text
    assert "refused: [redacted]" in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter2@host:6379/0", "redis[redacted]host:6379/0"),
        ("rediss://user:hunter2@host", "rediss[redacted]host"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("https://api.x.com/v1?a=b@c", "https://api.x.com/v1?a=b@c"),
    ],
)
def test_passwords_in_urls_are_left_out_and_hosts_stay(
    written: Lines, url: str, shown: str
) -> None:
    logs.logger("x").info("e", url=url)
    [line] = written()
    assert line["url"] == shown


@pytest.mark.parametrize(
    "text",
    ["task-0123456789abcdef", "risk-assessment-2024", "disk-almost-full", "r1-s0-1700-0-d1-ab",
     "sk-", "prompt_tokens", "output/trajectories/task-0123456789abcdef/x.json"],
)  # fmt: skip
def test_ids_and_words_that_only_resemble_a_key_stay_readable(written: Lines, text: str) -> None:
    logs.logger("x").info(text, task_id=text, prompt_tokens=7)
    [line] = written()
    assert (line["event"], line["task_id"], line["prompt_tokens"]) == (text, text, 7)


def test_an_exception_comes_with_its_place_and_without_local_variables(written: Lines) -> None:
    def fails(prompt: str) -> None:
        harmless_name = prompt
        raise KeyError(len(harmless_name))

    try:
        fails("swordfish")
    except KeyError:
        logs.logger("x").exception("attempt.bug")
    [line] = written()
    [exception] = line["exception"]
    assert exception["exc_type"] == "KeyError"
    assert [frame["name"] for frame in exception["frames"]][-1] == "fails"
    assert "swordfish" not in json.dumps(line)
    assert "harmless_name" not in json.dumps(line)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)


@examples(max_examples=60, deadline=None)
@given(event=st.text(), value=ANYTHING)
def test_whatever_is_logged_is_one_line_of_json(event: str, value: Any) -> None:
    with logging_to("INFO") as written:
        logs.logger("x").info(event, value=value)
    [line] = written()
    assert (line["level"], line["service"]) == ("info", "worker")


@pytest.mark.parametrize(
    "value", ["\ud800", 2**70, -(2**70), {1: 2}, Path("/x"), {3}, float("inf")]
)
def test_no_value_can_make_logging_fail(written: Lines, value: Any) -> None:
    logs.logger("x").info("e", value=value)
    assert [line["event"] for line in written()] == ["e"]


def test_an_unknown_level_is_info() -> None:
    with logging_to("chatty") as written:
        logs.logger("x").debug("hidden")
        logs.logger("x").info("shown")
    assert [line["event"] for line in written()] == ["shown"]


# -- settings -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the person who runs the tests, and no `.env` of theirs."""
    for name in list(os.environ):
        if name.startswith("FLEET_") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_nothing_needs_to_be_set() -> None:
    said = load()
    assert (said.redis_url, said.output, said.concurrency) == (None, Path("output"), 8)
    assert said.agent == "llm"
    assert said.sandbox == "nsjail"
    assert said.host


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("FLEET_CONCURRENCY", "many", "valid integer"),
        ("FLEET_CONCURRENCY", "0", "greater than or equal to 1"),
        ("FLEET_LEASE", "-1", "greater than 0"),
        ("FLEET_LEASE", "30s", "valid number"),
        ("FLEET_METRICS_PORT", "70000", "less than or equal to 65535"),
        ("FLEET_AGENT", "robot", "'llm', 'oracle' or 'nop'"),
        ("FLEET_STEP_TIMEOUT", "", "valid number"),
    ],
)
@pytest.mark.parametrize("where", ["environment", ".env"])
def test_a_wrong_setting_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, where: str, name: str, value: str, reason: str
) -> None:
    if where == ".env":
        Path(".env").write_text(f"{name}={value}\n")
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        load()
    assert f"{name}: " in str(refused.value)
    assert reason in str(refused.value)


@pytest.mark.parametrize("price", ["[-1, 2]", "[NaN, 2]", "[1, Infinity]"])
def test_a_price_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, price: str) -> None:
    monkeypatch.setenv("FLEET_LLM_PRICE", price)
    with pytest.raises(ConfigurationError, match="FLEET_LLM_PRICE"):
        load()


def test_all_wrong_settings_are_named_at_once_and_their_values_are_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLEET_LEASE", "swordfish")
    monkeypatch.setenv("FLEET_MAX_RETRIES", "swordfish")
    with pytest.raises(ConfigurationError, match=r"FLEET_LEASE: .*FLEET_MAX_RETRIES: ") as refused:
        load()
    assert "swordfish" not in str(refused.value)


def test_the_env_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(
        "# ours\nFLEET_LEASE=7\nexport FLEET_OUTPUT='some where'\nFLEET_CONCURRENCY=2\n"
        "GEMINI_API_KEY=sk-from-file\nUNRELATED=1\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("FLEET_CONCURRENCY", "3")
    said = load()
    assert (said.lease, said.output, said.concurrency) == (7.0, Path("some where"), 3)
    assert said.gemini_api_key == SecretStr("sk-from-file")


def test_what_a_process_is_told_wins_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_OUTPUT", "elsewhere")
    assert load(output=Path("here"), redis_url=None).output == Path("here")
    assert load(output=None).output == Path("elsewhere")


@pytest.mark.parametrize("provider", ["gemini", "deepseek", "openai", "dashscope"])
def test_a_key_is_found_by_our_name_and_by_the_providers(
    monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    field, variable = f"{provider}_api_key", f"{provider.upper()}_API_KEY"
    assert getattr(load(), field) is None
    monkeypatch.setenv(variable, "theirs")
    assert getattr(load(), field).get_secret_value() == "theirs"
    monkeypatch.setenv(f"FLEET_{variable}", "ours")
    assert getattr(load(), field).get_secret_value() == "ours"


def test_settings_do_not_show_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "FLEET_LLM_API_KEY", "FLEET_EMBEDDED_KEY"):
        monkeypatch.setenv(name, "swordfish")
    said = load()
    assert "swordfish" not in f"{said!r} {said} {said.model_dump()} {said.model_dump_json()}"


def test_a_setting_that_should_be_json_and_is_not_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLEET_API_TOKENS", "secret-as-it-is")
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert "FLEET_API_TOKENS: must be JSON" in str(caught.value)
    assert "secret-as-it-is" not in str(caught.value)


@pytest.mark.parametrize("name", ["API_TOKENS", "JUDGES", "PROPOSER", "RUBRICS"])
def test_an_empty_setting_is_one_that_is_not_set(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"FLEET_{name}", "")
    empty = getattr(load(), name.lower())
    monkeypatch.delenv(f"FLEET_{name}")
    assert empty == getattr(load(), name.lower())


@pytest.mark.parametrize("value", ["inf", "nan", "0", "1e300"])
def test_a_wait_for_people_has_an_end(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FLEET_APPROVAL_TTL", value)
    with pytest.raises(ConfigurationError, match="FLEET_APPROVAL_TTL"):
        load()
