"""The conformance suite over Docker containers."""

import pytest

from tests.sandboxes.conformance import *  # noqa: F403
from tests.sandboxes.docker_bed import provider as provider
from tests.sandboxes.docker_bed import quirks as quirks
from tests.sandboxes.docker_bed import wreck as wreck

pytestmark = pytest.mark.docker
