"""The files of networks and programs: safetensors whose metadata say what they are."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .atomic import write_atomically

__all__ = ["read_tensors", "write_tensors"]

_FORMAT = 2


def write_tensors(path: "str | Path", kind: str, header: dict, arrays: "dict[str, np.ndarray]") -> None:
    """Write a `header`, JSON, and arrays; the same content gives the same bytes. `kind`: "celq" or "celp"."""
    # One key: safetensors writes several in any order.
    metadata = json.dumps({"format": f"{kind}-{_FORMAT}", "header": header}, sort_keys=True)
    write_atomically(path, save(dict(sorted(arrays.items())), {"celosia": metadata}))


def read_tensors(path: "str | Path", kind: str, error_type: type[Exception]) -> "tuple[dict, dict[str, np.ndarray]]":
    """Header and arrays of a file by :func:`write_tensors`. Raises `error_type` in one sentence."""
    path = Path(path)
    if not path.is_file():
        raise error_type(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get("celosia", "{}"))
            if metadata.get("format") != f"{kind}-{_FORMAT}":
                raise error_type(f"{path}: is not a .{kind} file of format {_FORMAT} but {metadata.get('format', 'something else')!r}; make it again with this version")
            return metadata["header"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise error_type(f"{path}: is truncated or damaged ({error}); make it again") from None
