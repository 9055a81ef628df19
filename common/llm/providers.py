"""Which providers of chat models there are, and which of them the settings choose."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

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
    provider of a model named by FLEET_LLM_MODEL goes before all. The embedded model is there only
    when nothing else is configured, or when FLEET_LLM_PROVIDER asks for it.
    Raises `ConfigurationError` for an unknown provider and for one that lacks its key or model.
    """
    known = registry()
    forced = settings.llm_provider
    if forced is not None:
        if forced not in known:
            raise ConfigurationError(
                f"FLEET_LLM_PROVIDER={forced!r} is not known; known: {', '.join(known)}"
            )
        names = [forced]
    else:
        names = [name for name in known if name != "embedded" and _is_configured(name, settings)]
        names = _owner_first(names, settings.llm_model) or ["embedded"]
    return [_configure(name, settings, first=name == names[0]) for name in names]


def _is_configured(name: str, settings: Settings) -> bool:
    if name == "custom":
        return settings.llm_base_url is not None
    return _key(name, settings) is not None


def _owner_first(names: list[str], model: str | None) -> list[str]:
    """Put the provider that knows ``model`` first; a model nobody knows is the custom URL's."""
    if model is None:
        return names
    owners = [name for name in names if model in registry()[name].models]
    owners = owners or [name for name in names if name == "custom"]
    return owners[:1] + [name for name in names if name not in owners[:1]]


def _configure(name: str, settings: Settings, *, first: bool) -> ProviderConfig:
    record = registry()[name]
    key = _key(name, settings)
    base_url = {"custom": settings.llm_base_url, "embedded": settings.embedded_url}.get(
        name, record.base_url
    )
    if name == "custom" and base_url is None:
        raise ConfigurationError("FLEET_LLM_PROVIDER=custom needs FLEET_LLM_BASE_URL")
    if key is None and name not in ("custom", "embedded"):
        raise ConfigurationError(f"FLEET_LLM_PROVIDER={name} needs {record.key_variable}")
    # The setting names one model, so it cannot mean the other providers as well.
    model = (settings.llm_model if first else None) or record.model
    if model is None:
        raise ConfigurationError(
            f"FLEET_LLM_BASE_URL is set, but not which model to ask for there: set FLEET_LLM_MODEL "
            f"(provider {name})"
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
    )


def _key(name: str, settings: Settings) -> SecretStr | None:
    """Return the key of a provider; an empty one (`GEMINI_API_KEY=`) is none."""
    key: SecretStr | None = getattr(settings, registry()[name].key)
    return key if key is not None and key.get_secret_value().strip() else None
