"""Which providers of chat models there are, and which of them the settings choose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import Field, SecretStr

from common.failures import ConfigurationError
from common.llm.types import Capabilities, Source
from common.model import Contract
from common.settings import Settings


class ProviderRecord(Contract):
    """One entry of providers.yaml."""

    base_url: str | None = None
    key: str
    model: str | None = None
    prices: str | None = None
    concurrency: int | None = Field(default=None, ge=1)
    rpm: int = Field(default=0, ge=0)
    tpm: int = Field(default=0, ge=0)
    defaults: Capabilities
    models: dict[str, Capabilities] = Field(default_factory=dict)

    @property
    def key_variable(self) -> str:
        return "FLEET_" + self.key.upper()


class ProviderConfig(Contract):
    """One provider as the settings configure it: all that a client needs to know."""

    name: str
    base_url: str | None
    """Null for an embedded model that has not been started yet."""
    api_key: SecretStr | None
    model: str
    record: ProviderRecord
    source: Source
    concurrency: int
    """Calls in flight per process."""
    rate_limit_budget: float
    """Seconds one call may wait for rate limits."""
    rpm: int = 0
    """Requests a minute of the whole fleet; 0: no limit known."""
    tpm: int = 0
    """Tokens a minute of the whole fleet; 0: no limit known."""

    @property
    def capabilities(self) -> Capabilities:
        return self.capabilities_of(self.model)

    def capabilities_of(self, model: str) -> Capabilities:
        """Return what is known of ``model``; the provider's defaults where nothing is."""
        return self.record.models.get(model, self.record.defaults)


@cache
def registry() -> dict[str, ProviderRecord]:
    """Return every known provider, in the order in which they are chosen."""
    text = Path(__file__).with_name("providers.yaml").read_text("utf-8")
    return {name: _record(entry) for name, entry in yaml.safe_load(text).items()}


def _record(entry: dict[str, Any]) -> ProviderRecord:
    models = {
        name: {**entry["defaults"], **known} for name, known in entry.get("models", {}).items()
    }
    return ProviderRecord.model_validate({**entry, "models": models})


def choose(settings: Settings) -> list[ProviderConfig]:
    """Return the configured providers, the one to use first.

    The order is that of providers.yaml: Gemini, DeepSeek, OpenAI, DashScope, a custom URL. The
    embedded model is there only when nothing else is configured. FLEET_LLM_PROVIDER forces one.
    Raises `ConfigurationError` for an unknown provider and for one that lacks its key or model.
    """
    known = registry()
    if settings.llm_provider is None:
        names = [name for name in known if name != "embedded" and _is_configured(name, settings)]
        names = names or ["embedded"]
    elif settings.llm_provider in known:
        names = [settings.llm_provider]
    else:
        raise ConfigurationError(
            f"FLEET_LLM_PROVIDER={settings.llm_provider!r} is not known; known: {', '.join(known)}"
        )
    owner = _owner(names, settings.llm_model)
    return [_configure(name, settings, settings.llm_model if name == owner else None)
            for name in names]  # fmt: skip


def named(settings: Settings, names: str) -> list[ProviderConfig]:
    """Return the models that ``names`` asks for, in its order and each once.

    `off`: none. `auto`: every provider with a key, whichever acts, and a custom URL if it acts.
    Else providers with commas between, each with a model of its own where one follows a colon:
    `deepseek,openai:gpt-5-mini`. The embedded model is there only if it is named. Raises
    `ConfigurationError` for what is unknown or lacks its key.
    """
    if names == "off":
        return []
    acting = choose(settings)
    if names == "auto":
        found = _with_keys(settings, {one.name: one for one in acting})
        if not found:
            raise ConfigurationError(
                "'auto' finds no model provider: set the key of one (say FLEET_DEEPSEEK_API_KEY), "
                "or name the small embedded model: 'embedded'"
            )
        return found
    models = {one.name: one.model for one in acting}
    items = [item.strip() for item in names.split(",") if item.strip()]
    if not items:
        raise ConfigurationError(f"no model is named in {names!r}; write 'off', 'auto' or names")
    configs = [_named(item, settings, models) for item in items]
    return list({(one.name, one.model): one for one in configs}.values())


def _with_keys(settings: Settings, acting: Mapping[str, ProviderConfig]) -> list[ProviderConfig]:
    """Return every provider that could be asked, in the order of providers.yaml."""
    found = []
    for name in registry():
        if name == "embedded" or not _is_configured(name, settings):
            continue
        if name in acting:
            found.append(acting[name])
        elif name != "custom":  # which model is served there, only its acting would tell
            found.append(_configure(name, settings, None))
    return found


def _named(item: str, settings: Settings, models: Mapping[str, str]) -> ProviderConfig:
    """Return what one name stands for; ``models``: those that act, by provider."""
    name, _, model = (part.strip() for part in item.partition(":"))
    if name not in registry():
        raise ConfigurationError(
            f"no model provider {name!r} (in {item!r}); known: {', '.join(registry())}"
        )
    if name != "embedded" and not _is_configured(name, settings):
        variable = "FLEET_LLM_BASE_URL" if name == "custom" else registry()[name].key_variable
        raise ConfigurationError(f"the model {item!r} needs {variable}")
    if not model:
        model = models.get(name) or (settings.llm_model if name == "custom" else None) or ""
    return _configure(name, settings, model or None)


def _is_configured(name: str, settings: Settings) -> bool:
    if name == "custom":
        return settings.llm_base_url is not None
    return _key(name, settings) is not None


def _owner(names: list[str], model: str | None) -> str:
    """Return whose model FLEET_LLM_MODEL names: it is one model, and so of one provider."""
    for name in names:
        if model in registry()[name].models:
            return name
    return "custom" if "custom" in names else names[0]


def _configure(name: str, settings: Settings, model: str | None) -> ProviderConfig:
    record = registry()[name]
    if name == "custom" and settings.llm_price is not None:
        priced = record.defaults.model_copy(update={"price": settings.llm_price})
        record = record.model_copy(update={"defaults": priced})
    key = _key(name, settings)
    base_url = {"custom": settings.llm_base_url, "embedded": settings.embedded_url}.get(
        name, record.base_url
    )
    model = model or record.model
    if name == "custom" and base_url is None:
        raise ConfigurationError("FLEET_LLM_PROVIDER=custom needs FLEET_LLM_BASE_URL")
    if base_url is not None and not re.match(r"https?://[^/?#]", base_url):
        raise ConfigurationError(f"the URL of provider {name} must look like http://host:8000/v1")
    if base_url is not None and "@" in urlsplit(base_url).netloc:
        raise ConfigurationError(
            f"the URL of provider {name} holds a user or password: put the key into "
            f"{record.key_variable} instead"
        )
    if key is not None and not key.get_secret_value().strip().isprintable():
        raise ConfigurationError(f"{record.key_variable} holds a line break or control character")
    if key is None and name not in ("custom", "embedded"):
        raise ConfigurationError(f"FLEET_LLM_PROVIDER={name} needs {record.key_variable}")
    if model is None:
        raise ConfigurationError(
            "FLEET_LLM_BASE_URL is set, but not which model to ask for there: set FLEET_LLM_MODEL "
            "to one it serves, or FLEET_LLM_PROVIDER to use another provider"
        )
    return ProviderConfig(
        name=name,
        base_url=base_url,
        api_key=key,
        model=model,
        record=record,
        source="embedded" if name == "embedded" else "api",
        concurrency=min(settings.llm_concurrency, record.concurrency or settings.llm_concurrency),
        rate_limit_budget=settings.llm_rate_limit_budget,
        rpm=settings.llm_rpm or record.rpm,
        tpm=settings.llm_tpm or record.tpm,
    )


def _key(name: str, settings: Settings) -> SecretStr | None:
    """Return the key of a provider; an empty one (`GEMINI_API_KEY=`) is none."""
    key: SecretStr | None = getattr(settings, registry()[name].key)
    return key if key is not None and key.get_secret_value().strip() else None
