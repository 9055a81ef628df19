"""What only a server of somebody else's can get wrong: seen from inside, beside the usual."""

from __future__ import annotations

import json

from common.failures import ConfigurationError
from workers.sandboxes import probe
from workers.sandboxes.agent_sandbox import AgentSandbox

LIMITS = probe.LIMITS

ADVICE = (
    "see docs/sandboxes/opensandbox.md for the settings of the server that close each of these; "
    "its Docker runtime limits no disk space at all"
)

LOOK = """
import concurrent.futures, json, socket
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
def lines_of(path):
    try:
        with open(path) as lines:
            return [line.split() for line in lines if line.strip()]
    except OSError:
        return []
routes = lines_of("/proc/net/route")[1:]
gateways = [
    socket.inet_ntoa(bytes.fromhex(route[2])[::-1]) for route in routes if route[1] == "00000000"
]
servers = [line[1] for line in lines_of("/etc/resolv.conf") if line[0] == "nameserver"]
trials = [("outside", host, port) for host, port in OUTSIDE]
trials += [("gateways", host, port) for host in gateways for port in (22, 80)]
trials += [("neighbour", host, 44772) for host in NEIGHBOUR]
trials += [("resolved", server, 53) for server in servers if ":" not in server]
def attempt(trial):
    what, host, port = trial
    return resolves(host) if what == "resolved" else answers(host, port)
found = {"outside": [], "gateways": [], "neighbour": [], "resolved": []}
with concurrent.futures.ThreadPoolExecutor(len(trials)) as pool:
    for (what, host, _), reached in zip(trials, pool.map(attempt, trials)):
        if reached and host not in found[what]:
            found[what].append(host)
print(json.dumps(found))
"""
OUTSIDE = (("1.1.1.1", 443), ("8.8.8.8", 53), ("9.9.9.9", 853))
"""Addresses that answer nearly everywhere; none of a sandbox's business."""
ADDRESSES = """
import json
lines = open("/proc/net/fib_trie").read().split("\\n")
print(json.dumps(sorted({
    lines[n - 1].split()[-1] for n, line in enumerate(lines)
    if "/32 host LOCAL" in line and not lines[n - 1].split()[-1].startswith("127.")
})))
"""


async def broken_promises(sandbox: AgentSandbox, neighbour: AgentSandbox) -> tuple[str, ...]:
    """Return everything that a sandbox does not hold, in words for an operator."""
    addresses = await _ask(neighbour, ADDRESSES)
    seen = await _ask(sandbox, f"OUTSIDE, NEIGHBOUR = {OUTSIDE!r}, {addresses!r}\n{LOOK}")
    broken = []
    if seen["outside"]:
        broken.append(f"programs reach the network ({', '.join(seen['outside'])})")
    if seen["gateways"]:
        broken.append(f"programs reach the host of the sandboxes ({', '.join(seen['gateways'])})")
    if seen["resolved"]:
        broken.append("programs can ask name servers, which carry anything outside")
    if seen["neighbour"]:
        broken.append(
            "programs reach the execd of other sandboxes, which takes commands from anybody"
        )
    return (*broken, *await probe.broken_promises(sandbox, own_network=False))


async def _ask(sandbox: AgentSandbox, program: str) -> dict[str, list[str]]:
    result = await sandbox.run_python(program)
    try:
        found: dict[str, list[str]] = json.loads(result.stdout)
    except ValueError:
        raise ConfigurationError(
            f"a sandbox starts but cannot run a program ({result.status}): {result.stderr[-500:]}"
        ) from None
    return found
