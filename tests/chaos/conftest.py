from __future__ import annotations

from pathlib import Path

import pytest

from common.queue.connection import Server
from tests.dispatcher.desk import Desk


@pytest.fixture
def desk(server: Server, tmp_path: Path) -> Desk:
    return Desk(server, tmp_path)
