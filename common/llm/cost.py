"""What a model call cost: tokens as the provider counted them, dollars where a price is known."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from common.llm.providers import ProviderConfig
from common.trajectory import Usage

_CHARACTERS_PER_TOKEN = 4  # of English text and code, for answers that come without a count


def usage_of(config: ProviderConfig, model: str, asked: Any, answer: dict[str, Any]) -> Usage:
    """Return the usage of one answered request (``asked`` is its body)."""
    counted = answer.get("usage")
    prompt, completion = _count(counted, "prompt_tokens"), _count(counted, "completion_tokens")
    estimated = prompt is None or completion is None
    if prompt is None:
        prompt = _estimate([asked.get("messages"), asked.get("tools")])
    if completion is None:
        completion = _estimate(answer["choices"][0]["message"])
    details = counted.get("prompt_tokens_details") if isinstance(counted, dict) else None
    cached = _count(details, "cached_tokens")  # OpenAI, Gemini, DashScope, llama.cpp
    if cached is None:
        cached = _count(counted, "prompt_cache_hit_tokens")  # DeepSeek
    cached = min(cached or 0, prompt)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        calls=1,
        cost_usd=cost(config, model, prompt, completion, cached),
        estimated=estimated,
    )


def cost(
    config: ProviderConfig, model: str, prompt: int, completion: int, cached: int
) -> float | None:
    """Return US dollars; None where no price is known, which is not the same as free."""
    override = config.capabilities_of(model).price
    if override is not None:
        return (prompt * override[0] + completion * override[1]) / 1e6
    if config.record.prices is None or not _is_listed(config.record.prices, model):
        return None
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    usage = PricedUsage(input_tokens=prompt, cache_read_tokens=cached, output_tokens=completion)
    return float(calc_price(usage, model, provider_id=config.record.prices).total_price)


@cache
def _is_listed(provider: str, model: str) -> bool:
    """Say whether the price list knows a model; remembered, as a miss is slow to find out."""
    # Imported on first use: half a second that a process without priced calls need not spend.
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    try:
        calc_price(PricedUsage(input_tokens=1, output_tokens=1), model, provider_id=provider)
    except LookupError:
        return False
    return True


def _count(counted: Any, name: str) -> int | None:
    value = counted.get(name) if isinstance(counted, dict) else None
    return value if type(value) is int and value >= 0 else None


def _estimate(part: Any) -> int:
    return len(json.dumps(part, default=str)) // _CHARACTERS_PER_TOKEN
