"""What can go wrong with one request to a model, and what follows: try again, wait, or give up.

Again: connection trouble, 408, 409, 425, 5xx, and a 200 that is no chat completion. Wait: 429.
Give up: 400 and 422 (this request), 401, 402, 403, 404 (this configuration).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import orjson

from common.llm.http import Answer
from common.llm.providers import ProviderConfig
from common.llm.types import ModelMisconfigured, ModelRefused

LABELS = (
    "rate_limited", "http_4xx", "http_5xx", "connection", "timeout", "broken_json",
    "wrong_content_type", "no_choices", "no_finish_reason",
)  # fmt: skip
"""Every label of a fault: a closed set, for metrics."""

_RETRYABLE = {408, 409, 425}
_FINISH_OF_A_FAULT = {"error", "insufficient_system_resource"}  # OpenRouter, DeepSeek
_KEY_LIKE = re.compile(r"\b(?:sk-|AIza)[\w*\-]{6,}")
_NUMBER = re.compile(r"\s*\d+(?:\.\d+)?\s*")
_LONGEST_WAIT = 86_400.0  # seconds: more is a mistake, and nobody waits for it
_RETRY_DELAY = re.compile(r'"retryDelay":\s*"(\d+(?:\.\d+)?)s"')  # Gemini says it in the body
# Some providers answer 400 where others answer 401 or 404.
_REALLY_THE_KEY = re.compile(r"api[ _]key (?:not valid|invalid|expired)|API_KEY_INVALID", re.I)
_REALLY_THE_MODEL = re.compile(r"model[ _]not[ _](?:exist|found)|model_not_found", re.I)


class Transient(Exception):
    """This request failed, the next may not."""

    def __init__(
        self,
        label: str,
        message: str,
        retry_after: float | None = None,
        *,
        unsent: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.label = label
        self.retry_after = retry_after
        self.unsent = unsent
        """There was no connection to send it over: it cost nothing."""
        self.status = status
        """Of HTTP, where that is what failed."""


class Limited(Transient):
    """429: the provider asks to be left alone for a while."""


def read_body(answer: Answer) -> dict[str, Any]:
    """Return a chat completion that can be trusted to have a message and a finish reason.

    Raises `Transient` for a 200 that is something else: servers and proxies under load do that.
    """
    kind = answer.headers.get("content-type", "").split(";")[0].strip().lower()
    if not kind.endswith("json"):
        raise Transient("wrong_content_type", f"answered {kind or 'no content type'}, not JSON")
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise Transient("broken_json", f"answered broken JSON ({error})") from None
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        detail = error_text(body)
        raise Transient("no_choices", "answered without choices" + (detail and f": {detail}"))
    choice = choices[0]
    if not isinstance(choice.get("message"), dict):
        raise Transient("no_choices", "answered a choice without a message")
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason in _FINISH_OF_A_FAULT:
        raise Transient("no_finish_reason", f"stopped before the end (finish_reason {reason})")
    result: dict[str, Any] = body
    return result


def of_status(config: ProviderConfig, model: str, answer: Answer) -> Exception:
    """Return what an HTTP error means. Never shows the key, even where the server repeats it."""
    status = answer.status
    detail = scrub(error_text(_json(answer)), config)
    said = f" It said: {detail}" if detail else ""
    if status == 429:
        if "insufficient_quota" in detail or '"insufficient_quota"' in answer.text:
            return ModelMisconfigured(
                f"{config.name}: the account's quota is used up (429): see to its billing, or set "
                f"{config.record.key_variable} to another key.{said}"
            )
        after = retry_after(answer)
        return Limited("rate_limited", f"asked to slow down (429).{said}", after, status=status)
    if status in _RETRYABLE or status >= 500:
        label = "http_5xx" if status >= 500 else "http_4xx"
        return Transient(label, f"HTTP {status}.{said}", retry_after(answer), status=status)
    if status == 401 or (status == 400 and _REALLY_THE_KEY.search(detail)):
        advice = f"the key was not accepted ({status}): check {config.record.key_variable}."
    elif status == 402:
        advice = f"no credit left (402): top up the account of {config.record.key_variable}."
    elif status == 403:
        advice = f"this key may not use {model} (403): check {config.record.key_variable}"
        advice += " and FLEET_LLM_MODEL."
    elif status in (404, 405, 410) or (status == 400 and _REALLY_THE_MODEL.search(detail)):
        advice = f"nothing there serves {model} ({status}, {where(config)}): check FLEET_LLM_MODEL"
        advice += " and FLEET_LLM_BASE_URL." if config.name == "custom" else "."
    elif status < 400:
        advice = f"{where(config)} answers with a redirect ({status}): check FLEET_LLM_BASE_URL."
    else:
        return ModelRefused(f"{config.name} refused the request (HTTP {status}).{said}")
    error = ModelMisconfigured(f"{config.name}: {advice}{said}")
    error.about_model = "FLEET_LLM_MODEL" in advice
    return error


def retry_after(answer: Answer) -> float | None:
    """Return the seconds the server asks us to wait, a day at most, however it says so."""
    asked = _asked(answer)
    return None if asked is None else min(max(0.0, asked), _LONGEST_WAIT)


def _asked(answer: Answer) -> float | None:
    headers: Mapping[str, str] = answer.headers
    milliseconds, seconds = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    if _NUMBER.fullmatch(seconds):
        return float(seconds)
    if seconds:
        try:
            return parsedate_to_datetime(seconds).timestamp() - time.time()
        except (ValueError, OverflowError):  # no date, or one of a year or zone there is not
            return None
    found = _RETRY_DELAY.search(answer.text) if answer.status == 429 else None
    return float(found.group(1)) if found else None


def error_text(body: Any) -> str:
    """Return what an error body says, whichever way the provider nests it."""
    if isinstance(body, list) and body:  # Gemini
        body = body[0]
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            said = [inner.get(name) for name in ("message", "code", "detail") if inner.get(name)]
            return " ".join(str(part) for part in said)
        return str(inner) if inner else ""
    return body if isinstance(body, str) else ""


def scrub(text: str, config: ProviderConfig) -> str:
    """Remove the key and anything that looks like one, and shorten for a message."""
    key = config.api_key.get_secret_value().strip() if config.api_key else ""
    if len(key) >= 8:  # a placeholder such as "none" would take ordinary words with it
        text = text.replace(key, "***")
    text = _KEY_LIKE.sub("***", " ".join(text.split()))
    return text if len(text) <= 400 else text[:400] + "…"


def where(config: ProviderConfig) -> str:
    """Name the server without what may be secret in a URL: user, password, query."""
    parts = urlsplit(config.base_url or "")
    host = parts.hostname or "?"
    return f"{host}:{parts.port}" if parts.port else host


def _json(answer: Answer) -> Any:
    try:
        return orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return answer.text[:400] if "html" not in answer.headers.get("content-type", "") else ""
