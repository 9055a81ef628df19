"""What every sandbox back-end does, whatever it is made of.

A back-end's test module imports all of this and supplies the fixtures `provider` and `sandbox`.
The cases know nothing but the protocol, so a back-end may override two more fixtures: `quirks`,
the few things it honestly cannot do (below), and `wreck`, which kills a sandbox behind its back.

    from tests.sandboxes.conformance import *

    @pytest.fixture
    async def provider() -> AsyncIterator[SandboxProvider]: ...
"""

from __future__ import annotations

from tests.sandboxes.conformance_files import *  # noqa: F403
from tests.sandboxes.conformance_life import *  # noqa: F403
from tests.sandboxes.conformance_output import *  # noqa: F403
from tests.sandboxes.conformance_programs import *  # noqa: F403

QUIRKS = {
    "environment": "programs see variables of the image besides those promised",
    "usage": "results carry neither processor time nor peak memory",
    "writable-system": "programs may write outside of /work, /tmp and /dev/shm",
}
"""What a back-end may lack, and what that means for the people who choose it."""
