"""The work folder of a stage at run: locked against a second run, kept over kills."""

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rung.errors import ArtefactError


@dataclass
class Work:
    """work/<recipe key>/: `out` becomes the artefact, `run` survives a kill.

    `out` is empty at every start: leftovers of a killed run could differ from run to run, and the
    artefact's bytes must not. What a stage wants back after a kill lies in `run`.
    """

    key: str
    folder: Path
    _lock: IO[str] | None = None

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def prepare(self) -> None:
        """Lock the folder, empty `out`, keep `run`."""
        self.lock()
        try:
            if self.out.exists():
                shutil.rmtree(self.out)
            self.out.mkdir()
            self.run.mkdir(exist_ok=True)
        except BaseException:
            self.release()
            raise

    def lock(self) -> None:
        """Raises ArtefactError when another process is building the same thing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_file(
            self.folder / "lock",
            shared=False,
            refusal=f"another process is building this ({self.folder}); wait for it or stop it",
        )

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def lock_file(path: Path, *, shared: bool, refusal: str) -> IO[str]:
    """An open, locked file; closing it or the death of this process frees the lock.

    POSIX record locks, not flock: they are not inherited by forked workers, so workers that
    outlive a killed run for a moment do not keep the next one out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise ArtefactError(refusal + (f" (process {holder})" if holder else "")) from None
    if not shared:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    return file
