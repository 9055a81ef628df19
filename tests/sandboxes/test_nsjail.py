"""The conformance suite over nsjail, with control groups and without."""

from tests.sandboxes.conformance import *  # noqa: F403
