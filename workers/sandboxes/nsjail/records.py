"""Who owns which jail on this host, written down so that a reaper can end what the dead left.

One small file per jail, named after its slot. Creating the file is also what claims the slot:
the number that makes the jail's user unique on this host.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from pydantic import Field, ValidationError

from common.failures import ConfigurationError
from common.model import Contract
from workers.sandboxes.nsjail.cgroups import Cgroup
from workers.sandboxes.processes import ProcessMark

SLOTS = 50_000
STALE_DRAFT = 60.0
"""Seconds after which a half-made record belongs to nobody."""


class Record(Contract):
    """One jail and its owner."""

    slot: int
    owner: ProcessMark
    jail: ProcessMark | None = None
    """The nsjail process; absent until it is started."""
    cgroup: Cgroup | None = None
    labels: dict[str, str] = Field(default_factory=dict)


class Records:
    """The folder of records of one user."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or _default_folder()
        self._make_folder()
        found = self.folder.stat()
        if found.st_uid != os.geteuid() or (folder is None and found.st_mode & 0o077):
            raise ConfigurationError(
                f"{self.folder} belongs to user {found.st_uid} with mode "
                f"{found.st_mode & 0o777:o}, but holds who may be killed: remove it"
            )

    def _make_folder(self) -> None:
        """Make the folder; programs that tidy up temporary files may have taken it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def claim(
        self, owner: ProcessMark, labels: dict[str, str], cgroup: Cgroup | None = None
    ) -> Record:
        """Take a free slot and write its first record, before there is anything to clean up.

        Raises `OSError`.
        """
        self._make_folder()
        while True:
            slot = random.randrange(SLOTS)
            record = Record(slot=slot, owner=owner, labels=labels, cgroup=cgroup)
            draft = self._draft(record)
            try:
                os.link(draft, self._file(record.slot))
            except FileExistsError:
                continue
            finally:
                draft.unlink()
            return record

    def update(self, record: Record) -> None:
        self._draft(record).replace(self._file(record.slot))

    def remove(self, record: Record) -> bool:
        """Free the slot; returns whether it was this call that did. A later owner's stays."""
        file = self._file(record.slot)
        try:
            if Record.model_validate_json(file.read_bytes()).owner != record.owner:
                return False
            file.unlink()
        except (FileNotFoundError, ValidationError):
            return False
        return True

    def orphans(self) -> list[Record]:
        """Return the records whose owner is dead; throws away what is no record."""
        found = []
        self._make_folder()
        for file in self.folder.iterdir():
            try:
                if file.suffix != ".json":
                    if time.time() - file.stat().st_mtime > STALE_DRAFT:
                        file.unlink()
                    continue
                record = Record.model_validate_json(file.read_bytes())
            except FileNotFoundError:
                continue  # its owner was quicker
            except ValidationError:
                file.unlink(missing_ok=True)
                continue
            if not record.owner.alive():
                found.append(record)
        return found

    def _file(self, slot: int) -> Path:
        return self.folder / f"{slot}.json"

    def _draft(self, record: Record) -> Path:
        draft = self.folder / f"{uuid4().hex}.draft"
        draft.write_text(record.model_dump_json(), "utf-8")
        return draft


def _default_folder() -> Path:
    run = Path("/run")
    base = run if os.access(run, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"fleet-jails-{os.geteuid()}"
