"""The file of a waveform: it gets its name when it is complete."""

import errno
import os
import tempfile
from pathlib import Path

from .device import DeviceError

__all__ = ["VCD_CYCLES", "WaveformFile"]

#: Cycles a waveform holds unless others are asked for: of ulx3s-85f up to 0.4 GB, since a busy cycle takes 38 kB.
VCD_CYCLES = 10_000


class WaveformFile:
    """Reserves a name beside `path`, to be written to. Raises :exc:`DeviceError` if that cannot be."""

    def __init__(self, path: "str | Path"):
        self._path = Path(path)
        try:
            if self._path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        except OSError as error:
            raise self._error(error.strerror) from None
        os.close(handle)
        #: Where the waveform goes meanwhile.
        self.temporary = Path(name)

    def discard(self) -> None:
        """Leave no file."""
        self.temporary.unlink(missing_ok=True)

    def finish(self, error: int, cycles: int) -> bool:
        """Give the file its name if it was not discarded and holds any cycles; whether it has. `error`: the errno of what could not be written, or 0."""
        try:
            if error:
                raise self._error(os.strerror(error))
            if not cycles or not self.temporary.exists():
                return False
            self.temporary.chmod(0o644)
            self.temporary.replace(self._path)
            return True
        except OSError as failure:
            raise self._error(failure.strerror) from None
        finally:
            self.discard()

    def _error(self, reason):
        return DeviceError(f"the waveform {self._path} cannot be written: {reason}")
