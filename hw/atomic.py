"""Files appear whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: "str | Path", content: "bytes | str") -> None:
    """Write to a temporary name in the same folder, then rename. Raises OSError if the folder cannot be written."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
