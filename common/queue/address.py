"""Where the queue server is: reading FLEET_REDIS_URL, one server or a service behind Sentinels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.connection import parse_url as parse_url_async
from redis.backoff import NoBackoff
from redis.connection import parse_url as _untyped_parse_url
from redis.retry import Retry

from common.failures import ConfigurationError

_parse_url: Callable[[str], dict[str, Any]] = _untyped_parse_url
_Sentinel: Callable[..., Any] = redis.sentinel.Sentinel
_AsyncSentinel: Callable[..., Any] = redis.asyncio.sentinel.Sentinel
_SENTINEL = "+sentinel"
_SENTINEL_PORT = 26379
_ANY_HOST = "sentinel"
"""Stands where the host would be; the sentinels say where the master really is."""
_SENTINEL_TIMEOUT = 1.0
"""Seconds for one sentinel: it answers from memory, and the next one may live."""
_SCHEMES = "redis://, rediss://, unix://, redis+sentinel:// or rediss+sentinel://"


@dataclass(frozen=True)
class Address:
    """A queue server's address, taken apart. Its text is fit for messages: it has no password."""

    plain: str = field(repr=False)
    """What redis-py reads: a URL of one server; for a service, its options and credentials."""
    shown: str
    service: str = ""
    """Name of the service the sentinels watch; empty for one server."""
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.shown


def read(url: str) -> Address:
    """Take ``url`` apart. Raises `ConfigurationError`, which never repeats what it could not read.

    Forms: ``redis://[user:password@]host[:port][/db]`` (``rediss`` with TLS), ``unix://path``, and
    ``redis+sentinel://[user:password@]host[:26379][,host2[:port]…]/service[/db]``. User and
    password are the server's; the sentinels' own go into ``?sentinel_username=…&
    sentinel_password=…``. Other query options are redis-py's for a connection.
    """
    try:
        scheme = urlsplit(url).scheme
        if scheme.removesuffix(_SENTINEL) not in ("redis", "rediss", "unix"):
            raise ConfigurationError(f"FLEET_REDIS_URL must start with {_SCHEMES}")
        address = _service(url) if scheme.endswith(_SENTINEL) else _one_server(url)
        connect_blocking(address).connection_pool.make_connection()  # opens nothing
        return address
    except (ValueError, TypeError, UnicodeError):
        # The reason is left out on purpose: it quotes what may be half of a password.
        raise ConfigurationError(
            "FLEET_REDIS_URL cannot be read: give it as redis://[user:password@]host:6379/0 or "
            "redis+sentinel://[user:password@]host:26379,host2:26379/service/0; in user and "
            "password write / as %2F, @ as %40, : as %3A, # as %23 and ? as %3F; "
            "options after the ? are redis-py's"
        ) from None


def where(url: str) -> str:
    """Return the address in ``url`` without its password, for messages."""
    try:
        return str(read(url))
    except ConfigurationError:
        return "an address that cannot be read"


def _one_server(url: str) -> Address:
    parts = urlsplit(url)
    host = parts.hostname or parts.path
    host.encode("idna" if parts.hostname else "utf-8")
    shown = f"[{host}]" if ":" in host else host
    return Address(url, f"{shown}:{parts.port or 6379}" if parts.hostname else shown)


def _service(url: str) -> Address:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, _, database = unquote(parts.path.strip("/")).partition("/")
    sentinels = tuple(_host_and_port(host) for host in hosts.split(",") if host)
    if not sentinels or not service:
        raise ConfigurationError(
            "FLEET_REDIS_URL names sentinels but no service: "
            "redis+sentinel://host:26379,host2:26379/<service>[/db]"
        )
    if database and not database.isdigit():
        raise ValueError
    options, own = [], {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name.startswith("sentinel_"):
            own[name.removeprefix("sentinel_")] = value
        else:
            options.append((name, value))
    if own.keys() - {"username", "password"}:
        raise ValueError
    netloc = f"{credentials}@{_ANY_HOST}" if credentials else _ANY_HOST
    scheme = parts.scheme.removesuffix(_SENTINEL)
    plain = urlunsplit((scheme, netloc, f"/{database or 0}", urlencode(options), ""))
    listed = ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in sentinels)
    return Address(plain, f"{quote(service)} (sentinels {listed})", service, sentinels, own)


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError
    parts.hostname.encode("idna")
    return parts.hostname, parts.port or _SENTINEL_PORT


class _MasterPool(
    redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool
):
    """Connections to whoever is master now; who finds all of them in use waits for one."""


def connect(address: Address, **options: Any) -> redis.asyncio.Redis:
    """Return an asynchronous client with a bounded pool. Nothing is opened yet."""
    retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
    given: dict[str, Any] = {**parse_url_async(address.plain), **options, "retry": retry}
    if not address.service:
        return redis.asyncio.Redis.from_pool(redis.asyncio.BlockingConnectionPool(**given))
    tls = _tls(given)
    manager = _AsyncSentinel(
        list(address.sentinels),
        sentinel_kwargs=_for_sentinels(address, tls, given) | {"retry": retry},
    )
    client = manager.master_for(address.service, connection_pool_class=_MasterPool, **given)
    assert isinstance(client, redis.asyncio.Redis)
    return client


def connect_blocking(address: Address, **options: Any) -> redis.Redis:
    """Return a client for a thread. Nothing is opened yet."""
    retry = Retry(NoBackoff(), 0)
    given: dict[str, Any] = {**_parse_url(address.plain), **options, "retry": retry}
    if not address.service:
        return redis.Redis.from_pool(redis.ConnectionPool(**given))
    tls = _tls(given)
    manager = _Sentinel(
        list(address.sentinels),
        sentinel_kwargs=_for_sentinels(address, tls, given) | {"retry": retry},
    )
    client = manager.master_for(address.service, **given)
    assert isinstance(client, redis.Redis)
    return client


def _tls(given: dict[str, Any]) -> dict[str, Any]:
    """Take TLS and the stand-in host out of ``given``; return the options sentinels need too."""
    given.pop("host", None)
    given.pop("port", None)
    if given.pop("connection_class", None) is None:
        return {}
    given["ssl"] = True
    return {"ssl": True} | {k: v for k, v in given.items() if k.startswith("ssl_")}


def _for_sentinels(address: Address, tls: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    patience = min(_SENTINEL_TIMEOUT, given.get("socket_connect_timeout") or _SENTINEL_TIMEOUT)
    times = {"socket_timeout": patience, "socket_connect_timeout": patience}
    return tls | times | address.sentinel_options
