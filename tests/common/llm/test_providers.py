"""Which provider the settings choose, and what a call of it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.failures import ConfigurationError
from common.llm.client import connect
from common.llm.cost import cost, usage_of
from common.llm.providers import choose, registry
from common.llm.types import Capabilities
from common.settings import load
from tests.common.llm.conftest import config

KEYS = ("GEMINI_API_KEY", "DEEPSEEK_API_KEY", "OPENAI_API_KEY", "DASHSCOPE_API_KEY")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # away from a developer's .env
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"FLEET_{name}", raising=False)
    for name in ("BASE_URL", "API_KEY", "PROVIDER", "MODEL"):
        monkeypatch.delenv(f"FLEET_LLM_{name}", raising=False)
    for name in ("URL", "KEY"):
        monkeypatch.delenv(f"FLEET_EMBEDDED_{name}", raising=False)


def chosen(**settings: object) -> list[tuple[str, str]]:
    return [(one.name, one.model) for one in choose(load(**settings))]


def test_providers_are_chosen_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.setenv(name, "k")
    order = ["gemini", "deepseek", "openai", "dashscope"]
    assert [name for name, _ in chosen()] == order
    custom = chosen(llm_base_url="http://vllm:8000/v1", llm_model="Qwen/Qwen3-8B")
    assert [name for name, _ in custom] == [*order, "custom"]
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.setenv("FLEET_DEEPSEEK_API_KEY", "k")
    assert chosen()[0][0] == "deepseek"


def test_the_embedded_model_is_only_for_want_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [name for name, _ in chosen()] == ["embedded"]
    monkeypatch.setenv("OPENAI_API_KEY", "")  # set to nothing is not set
    assert [name for name, _ in chosen()] == ["embedded"]
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert [name for name, _ in chosen()] == ["openai"]
    assert [name for name, _ in chosen(llm_provider="embedded")] == ["embedded"]


def test_an_embedded_model_that_does_not_run_is_a_clear_error() -> None:
    with pytest.raises(ConfigurationError, match="fleet up"):
        connect(load())


def test_an_unknown_provider_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose(load(llm_provider="gemeni"))
    assert all(name in str(caught.value) for name in registry())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"llm_provider": "deepseek"}, "FLEET_DEEPSEEK_API_KEY"),
        ({"llm_provider": "custom"}, "FLEET_LLM_BASE_URL"),
        ({"llm_base_url": "http://vllm:8000/v1"}, "FLEET_LLM_MODEL"),
        ({"llm_base_url": "vllm:8000/v1", "llm_model": "x"}, "must look like"),
    ],
)
def test_what_is_missing_is_named(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        choose(load(**settings))


def test_a_named_model_is_asked_of_the_one_provider_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    monkeypatch.setenv("DEEPSEEK_API_KEY", "k")
    gemini, deepseek = (registry()[name].model for name in ("gemini", "deepseek"))
    models = dict(chosen(llm_model="deepseek-v4-pro"))
    assert models == {"gemini": gemini, "deepseek": "deepseek-v4-pro"}
    assert dict(chosen(llm_model="gemini-99")) == {"gemini": "gemini-99", "deepseek": deepseek}
    url = "http://vllm:8000/v1"
    models = dict(chosen(llm_model="Qwen/Qwen3-8B", llm_base_url=url))
    assert models == {"gemini": gemini, "deepseek": deepseek, "custom": "Qwen/Qwen3-8B"}
    forced = chosen(llm_model="x", llm_base_url=url, llm_provider="custom")
    assert forced == [("custom", "x")]


def test_an_unknown_model_of_a_custom_url_is_asked_for_native_tools() -> None:
    (one,) = choose(load(llm_base_url="http://vllm:8000/v1", llm_model="x"))
    assert one.capabilities.tool_mode == "native"
    assert one.capabilities_of("anything").tool_mode == "native"


def test_the_embedded_model_gets_few_calls_and_is_asked_for_code() -> None:
    (one,) = choose(load(embedded_url="http://127.0.0.1:1/v1"))
    assert (one.concurrency, one.source) == (2, "embedded")
    assert one.capabilities.tool_mode == "fenced"
    assert choose(load(llm_concurrency=1))[0].concurrency == 1


async def test_connect_gives_a_model_for_each_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-secret")
    models = connect(load(llm_base_url="http://127.0.0.1:1/v1", llm_model="Qwen/Qwen3-8B"))
    assert [model.provider for model in models] == ["deepseek", "custom"]
    assert all("sk-secret" not in repr(model) for model in models)
    for model in models:
        await model.close()


def test_known_prices_are_used_and_unknown_ones_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("DASHSCOPE_API_KEY", "k")
    openai, dashscope = choose(load())
    listed = cost(openai, "gpt-4.1-mini", 1_000_000, 1_000_000, 0)
    assert listed == pytest.approx(0.4 + 1.6)
    cheaper = cost(openai, "gpt-4.1-mini", 1_000_000, 1_000_000, 1_000_000)
    assert cheaper is not None
    assert cheaper < listed
    assert cost(openai, "gpt-of-next-year", 10, 10, 0) is None
    assert cost(dashscope, "qwen-plus", 10, 10, 0) is None
    (embedded,) = choose(load(llm_provider="embedded"))
    assert cost(embedded, embedded.model, 10, 10, 0) == 0.0


def test_our_own_price_comes_before_the_list() -> None:
    own = config("http://x/v1", capabilities=Capabilities(tool_mode="native", price=(2.0, 8.0)))
    assert cost(own, "some-model", 500_000, 250_000, 0) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("counted", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 30}}, 30),
        ({"prompt_cache_hit_tokens": 20, "prompt_cache_miss_tokens": 80}, 20),
        ({"prompt_tokens_details": None}, 0),
        ({"prompt_tokens_details": {"cached_tokens": 999}}, 100),
    ],
)
def test_cached_tokens_are_counted_as_each_provider_names_them(
    counted: dict[str, object], cached: int
) -> None:
    answer = {
        "choices": [{"message": {"content": "x"}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 5, **counted},
    }
    usage = usage_of(config("http://x/v1"), "m", {}, answer)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (100, 5, cached)
    assert not usage.estimated


@pytest.mark.parametrize("counted", [None, {}, {"prompt_tokens": "12"}, "none", [1]])
def test_a_usage_that_makes_no_sense_is_estimated(counted: object) -> None:
    answer = {"choices": [{"message": {"content": "x" * 400}}], "usage": counted}
    usage = usage_of(config("http://x/v1"), "m", {"messages": [{"content": "y" * 4000}]}, answer)
    assert usage.estimated
    assert 900 < usage.prompt_tokens < 1200
    assert usage.completion_tokens >= 100


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"llm_base_url": "http://me:pw@vllm:8000/v1"}, "holds a user or password"),
        ({"llm_base_url": "http://vllm:8000/v1", "llm_api_key": "a\nb"}, "holds a line break"),
    ],
)
def test_what_no_request_could_carry_is_refused_at_the_start(
    settings: dict[str, str], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason) as error:
        chosen(llm_model="m", **settings)
    assert "pw" not in str(error.value)
