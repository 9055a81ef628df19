"""A stand-in for a model provider: scripted answers, planned faults, and a journal.

Every answer says `system_fingerprint: "standin"`, so nothing made with it can pass as real.
"""

from tests.standin.script import Script, Turn
from tests.standin.server import Standin

__all__ = ["Script", "Standin", "Turn"]
