"""What simulators are built with, and where what has been built is kept."""

import importlib.util
import os
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

import platformdirs

__all__ = ["BuildError", "cache_folder", "compiler"]


class BuildError(RuntimeError):
    """A tool is missing or has failed."""


def cache_folder() -> Path:
    """`$CELOSIA_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("CELOSIA_CACHE") or platformdirs.user_cache_dir("celosia", appauthor=False))


@cache
def compiler() -> tuple[str, ...]:
    """The command of the C++ compiler: `$CELOSIA_CXX`, else the system's, else the one in PyPI's `ziglang`. Raises :exc:`BuildError` if there is none."""
    if command := os.environ.get("CELOSIA_CXX"):
        try:
            words = tuple(shlex.split(command))
        except ValueError:
            words = ()
        if not words or not shutil.which(words[0]):
            raise BuildError(f"$CELOSIA_CXX must be the command of a C++ compiler, not {command!r}; correct or unset it")
        return words
    for name in ("g++", "clang++"):
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++", "-fno-sanitize=undefined")
    raise BuildError("no C++ compiler found; install one with: pip install ziglang")
