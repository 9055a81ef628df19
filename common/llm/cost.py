"""What a model call cost: tokens as the provider counted them, dollars where a price is known."""

from __future__ import annotations

import json
import math
import re
from functools import cache, lru_cache
from typing import Any

from common.llm.providers import ProviderConfig
from common.quota.terms import NANO, UNPRICED
from common.trajectory import Usage

_CHARACTERS_PER_TOKEN = 4  # of English text and code, for answers that come without a count

_BYTES_PER_TOKEN = 2  # at least: English has 4, code 3, Chinese 3 (in UTF-8), bare digits 1 to 3
_IMAGE = re.compile(rb'"data:[^"]{256,}"')
_TOKENS_PER_IMAGE = 4000  # a large screenshot: OpenAI 1,100 to 2,800, Gemini up to 2,600
_MOST_TOKENS = 1 << 40
"""What is counted above that, for one request, is no count."""
_LONGEST_ANSWER = 4096
"""Tokens reserved for an answer of which nobody said how long it may be."""


def estimate(
    config: ProviderConfig, model: str, body: bytes, asked: dict[str, Any]
) -> tuple[int, int]:
    """Return the tokens and nano-USD a request may take, on the safe side; to be reserved.

    ``body`` is ``asked`` as it goes out. `UNPRICED` instead of dollars where no price is known.
    """
    size = len(body)
    if b'"data:' in body:
        images = [found.end() - found.start() for found in _IMAGE.finditer(body)]
        size += len(images) * _TOKENS_PER_IMAGE * _BYTES_PER_TOKEN - sum(images)
    prompt = _roughly(size // _BYTES_PER_TOKEN + 16)
    known = config.capabilities_of(model)
    limit = asked.get(known.max_tokens_field) or asked.get("max_tokens")
    answer = limit if type(limit) is int and limit > 0 else min(_LONGEST_ANSWER, known.max_context)
    return prompt + answer, _nano(config.record.prices, known.price, model, prompt, answer)


def _roughly(tokens: int) -> int:
    """Round up by at most an eighth: few different sizes, so that prices can be remembered."""
    grain = 1 << max(0, tokens.bit_length() - 4)
    return -(-tokens // grain) * grain


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
    return _cost(config.record.prices, override, model, prompt, completion, cached)


def is_free(config: ProviderConfig, model: str) -> bool:
    """Say whether calls are known to cost no dollars."""
    return cost(config, model, 1000, 1000, 0) == 0


def _cost(
    prices: str | None,
    override: tuple[float, float] | None,
    model: str,
    prompt: int,
    completion: int,
    cached: int,
) -> float | None:
    if override is not None:
        return (prompt * override[0] + completion * override[1]) / 1e6
    if prices is None or not _is_listed(prices, model):
        return None
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    usage = PricedUsage(input_tokens=prompt, cache_read_tokens=cached, output_tokens=completion)
    return float(calc_price(usage, model, provider_id=prices).total_price)


@lru_cache(maxsize=4096)
def _nano(
    prices: str | None,
    override: tuple[float, float] | None,
    model: str,
    prompt: int,
    answer: int,
) -> int:
    """Remembered: a look into the price list takes 0.2 ms."""
    dollars = _cost(prices, override, model, prompt, answer, 0)
    return UNPRICED if dollars is None else nano(dollars)


def nano(dollars: float | None) -> int:
    """Return whole nano-USD, rounded up; nothing where no price is known."""
    return 0 if dollars is None else math.ceil(dollars * NANO - 1e-6)


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
    return value if type(value) is int and 0 <= value < _MOST_TOKENS else None


def _estimate(part: Any) -> int:
    return len(json.dumps(part, default=str)) // _CHARACTERS_PER_TOKEN
