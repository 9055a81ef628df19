"""What only a server of somebody else's can get wrong: seen from inside, beside the usual."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from common.failures import ConfigurationError
from workers.sandboxes import probe
from workers.sandboxes.agent_sandbox import AgentSandbox

LIMITS = probe.LIMITS

ADVICE = (
    "see docs/sandboxes/opensandbox.md for the settings of the server that close each of these; "
    "its Docker runtime limits no disk space at all"
)

LOOK = """
import concurrent.futures, http.client, json, os, socket
EXECD = 44772
QUESTION = b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\7example\\3org\\0\\0\\1\\0\\1"
def resolves(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.settimeout(2)
        try:
            asked.sendto(QUESTION, (server, 53))
            answer = asked.recv(512)
        except OSError:
            return False
    return answer[3] & 15 == 0 and answer[6:8] != b"\\0\\0"
def answers(host, port):
    try:
        socket.create_connection((host, port), 2).close()
    except ConnectionRefusedError:
        return True  # somebody was there to refuse
    except OSError:
        return False
    return True
def obeys(host):
    asked = http.client.HTTPConnection(host, EXECD, timeout=2)
    try:
        asked.request("POST", "/command", json.dumps({"command": "true"}))
        return asked.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
def lines_of(path):
    try:
        with open(path) as lines:
            return [line.split() for line in lines if line.strip()]
    except OSError:
        return []
def own_addresses():
    lines = lines_of("/proc/net/fib_trie")
    local = ["/32", "host", "LOCAL"]
    ours = {last[-1] for last, line in zip(lines, lines[1:]) if line[:3] == local}
    return sorted(address for address in ours if not address.startswith("127."))
def address(text, more=0):
    number = int.from_bytes(bytes.fromhex(text), "little") + more
    return socket.inet_ntoa(number.to_bytes(4, "big"))
def environment():
    with open("/proc/self/environ") as variables:
        return sorted({each.partition("=")[0] for each in variables.read().split("\\0") if each})
routes = lines_of("/proc/net/route")[1:]
# Of each network there is, its first address mostly is the host's, whether a route says so or not.
gateways = {address(route[2]) for route in routes if route[2] != "00000000"}
gateways |= {address(route[1], 1) for route in routes if route[1] != "00000000"}
gateways -= {*own_addresses()}
servers = [line[1] for line in lines_of("/etc/resolv.conf") if line[0] == "nameserver"]
trials = [("outside", host, port) for host, port in OUTSIDE]
trials += [("gateways", host, port) for host in sorted(gateways) for port in (22, 80)]
trials += [("server", host, port) for host, port in SERVER]
trials += [("neighbour", host, EXECD) for host in NEIGHBOUR]
trials += [("obeying", host, EXECD) for host in ("127.0.0.1", *NEIGHBOUR)]
trials += [("resolved", server, 53) for server in servers if ":" not in server]
def attempt(trial):
    what, host, port = trial
    if what == "obeying":
        return obeys(host)
    return resolves(host) if what == "resolved" else answers(host, port)
found = {what: [] for what, _, _ in trials}
found["environment"] = environment()
with concurrent.futures.ThreadPoolExecutor(len(trials)) as pool:
    for (what, host, _), reached in zip(trials, pool.map(attempt, trials)):
        if reached and host not in found[what]:
            found[what].append(host)
print(json.dumps(found))
"""
ADDRESSES = """
print(json.dumps({"own": own_addresses()}))
"""
OUTSIDE = (("1.1.1.1", 443), ("8.8.8.8", 53), ("9.9.9.9", 853))
"""Addresses that answer nearly everywhere; none of a sandbox's business."""
LOCAL = "127.0.0.1"
EXPECTED = {"PATH", "LC_CTYPE"}
"""All that the process of our helper has of an environment; the second is set by Python."""


async def broken_promises(
    sandbox: AgentSandbox, neighbour: AgentSandbox, server: Sequence[tuple[str, int]]
) -> tuple[str, ...]:
    """Return everything that a sandbox does not hold, in words for an operator.

    ``server``: where the server that starts sandboxes may be reached.
    """
    beside = await _ask(neighbour, LOOK.partition("routes = ")[0] + ADDRESSES)
    known = f"OUTSIDE, NEIGHBOUR, SERVER = {OUTSIDE!r}, {beside['own']!r}, {[*server]!r}\n"
    seen = await _ask(sandbox, known + LOOK)
    return (*_seen_broken(seen), *await probe.broken_promises(sandbox, own_network=False))


def _seen_broken(seen: Mapping[str, list[str]]) -> Iterator[str]:
    if hosts := ", ".join(seen.get("outside", ())):
        yield f"network: programs reach the network ({hosts})"
    if hosts := ", ".join(seen.get("gateways", ())):
        yield f"network: programs reach the host of the sandboxes ({hosts})"
    if hosts := ", ".join(seen.get("server", ())):
        yield f"network: programs reach the server that starts sandboxes ({hosts})"
    if seen.get("resolved"):
        yield "network: programs can ask name servers, which carry anything outside"
    obeying = {*seen.get("obeying", ())}
    if LOCAL in obeying:
        yield "privileges: the execd of their sandbox, which is root, obeys any program"
    if obeying - {LOCAL}:
        yield "network: programs reach the execd of other sandboxes, which obeys anybody"
    elif seen.get("neighbour"):
        yield "network: programs reach the execd of other sandboxes"
    if foreign := {*seen["environment"]} - EXPECTED:
        yield f"files: programs see the environment of the server's execd: {sorted(foreign)}"


async def _ask(sandbox: AgentSandbox, program: str) -> dict[str, list[str]]:
    result = await sandbox.run_python(program)
    try:
        found: dict[str, list[str]] = json.loads(result.stdout)
    except ValueError:
        raise ConfigurationError(
            f"a sandbox starts but cannot run a program ({result.status}): {result.stderr[-500:]}"
        ) from None
    return found
