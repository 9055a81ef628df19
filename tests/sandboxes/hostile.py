"""Programs that try to get out, take everything, forge their result, or never end.

A back-end's test module imports all of this and supplies the fixture `provider`. After every case
the same sandbox and a new one must work, and the host must be as it was (hostile_host.py, whose
fixtures come with conftest.py).
"""

from __future__ import annotations

from tests.sandboxes.hostile_files import *  # noqa: F403
from tests.sandboxes.hostile_forging import *  # noqa: F403
from tests.sandboxes.hostile_host import SMALL as SMALL
from tests.sandboxes.hostile_kernel import *  # noqa: F403
from tests.sandboxes.hostile_programs import *  # noqa: F403
