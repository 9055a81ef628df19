"""Models named by an operator: judges, and those that suggest changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.failures import ConfigurationError
from common.llm.client import connect
from common.llm.providers import named, registry
from common.settings import load

KEYS = ("GEMINI_API_KEY", "DEEPSEEK_API_KEY", "OPENAI_API_KEY", "DASHSCOPE_API_KEY")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # away from a developer's .env
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"FLEET_{name}", raising=False)
    monkeypatch.setenv("DEEPSEEK_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_KEY", "k")


def found(names: str, **settings: object) -> list[tuple[str, str]]:
    return [(one.name, one.model) for one in named(load(**settings), names)]


def test_auto_is_every_configured_provider_and_off_is_none() -> None:
    acting = [("deepseek", "deepseek-flash"), ("openai", "gpt-5.4-mini")]
    assert found("auto") == acting
    assert found("off") == []
    # Which of them acts is no matter for who judges.
    assert found("auto", llm_provider="openai") == acting
    assert found("auto", llm_provider="embedded") == acting
    chosen = found("auto", llm_provider="openai", llm_model="gpt-5.5")
    assert chosen == [("deepseek", "deepseek-flash"), ("openai", "gpt-5.5")]


def test_auto_takes_a_custom_url_if_it_acts() -> None:
    url = "http://vllm:8000/v1"
    acting = found("auto", llm_base_url=url, llm_model="org/x")
    assert ("custom", "org/x") in acting
    others = found("auto", llm_base_url=url, llm_provider="deepseek")
    assert [name for name, _ in others] == ["deepseek", "openai"]


def test_names_keep_their_order_and_may_choose_a_model() -> None:
    assert found("openai:gpt-5.5, deepseek") == [
        ("openai", "gpt-5.5"), ("deepseek", "deepseek-flash"),
    ]  # fmt: skip
    assert found("openai:gpt-5.5,openai,openai:gpt-5.5") == [
        ("openai", "gpt-5.5"), ("openai", "gpt-5.4-mini"),
    ]  # fmt: skip
    url = "http://vllm:8000/v1"
    custom = found("custom,custom:qwen3:8b", llm_base_url=url, llm_model="org/x")
    assert custom == [("custom", "org/x"), ("custom", "qwen3:8b")]


def test_a_provider_that_acts_with_another_model_judges_with_it_too() -> None:
    assert found("deepseek", llm_model="deepseek-v4-pro") == [("deepseek", "deepseek-v4-pro")]


def test_the_embedded_model_judges_only_if_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [name for name, _ in found("embedded")] == ["embedded"]
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="finds no model provider"):
        found("auto")


def test_an_unknown_provider_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError) as caught:
        found("deepseek,opnai:gpt-5.5")
    assert all(name in str(caught.value) for name in ("opnai:gpt-5.5", *registry()))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("gemini", "FLEET_GEMINI_API_KEY"),
        ("custom:x", "FLEET_LLM_BASE_URL"),
        (" , ", "no model is named"),
    ],
)
def test_what_is_missing_is_named(names: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        found(names)


async def test_what_is_named_is_connected_instead_of_what_acts() -> None:
    settings = load()
    models = connect(settings, configs=named(settings, "openai:gpt-5.5"))
    assert [(one.provider, one.model) for one in models] == [("openai", "gpt-5.5")]
    for one in models:
        await one.close()
