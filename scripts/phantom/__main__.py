"""Run a command on GPUs that are not there: torch's CUDA build, its dispatcher and its allocator
are the real ones; memory is address space and kernels do nothing.

    python -m venv .venv-cuda && .venv-cuda/bin/pip install torch==2.11.0 -e .   # CUDA's, 5 GB
    .venv-cuda/bin/python scripts/phantom --devices 2 python scripts/bench_plan_gpu.py --table
    .venv-cuda/bin/python scripts/phantom python -m pytest -m gpu tests/test_parallel_gpu.py

It shows what code for GPUs does without its numbers: whether it runs, what it allocates to the
byte, where it waits for the device, whether the processes of a training call each other in one
order and with one length. Every result is zero or what lay there before, and every time is wrong,
so a test of numbers fails there and a benchmark of speed means nothing. `python` is the one that
this runs under; gcc, nm and a Linux are needed. What is built waits in `build/phantom`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "phantom"
PRELOADED = ("memory.c", "cudart.c", "libraries.c", "nccl.c", "host.c")
FLAGS = ("-shared", "-fPIC", "-O1", "-Wno-builtin-declaration-mismatch")
IMPORTED = re.compile(r"(__cuda|cuda[A-Z]|cublas|cudnn|nccl)\w+")
"""Of torch's imports, what the phantom stands in for."""
DECLARED = re.compile(r"\bcu[A-Z]\w+(?=\s*\()")
HOST = 128 * 2**30
"""Bytes of the host that is told of."""


def main() -> int:
    """Build what is missing, then run the command; its exit code."""
    options = _options()
    folder = built()
    program, *arguments = options.command
    program = sys.executable if program == "python" else program
    with tempfile.NamedTemporaryFile("w", suffix=".meminfo") as meminfo:
        meminfo.write(host_with(options.host_memory))
        meminfo.flush()
        environment = {
            **os.environ,
            "LD_PRELOAD": str(folder / "libphantom.so"),
            "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
            "TRITON_LIBCUDA_PATH": str(folder),
            "PHANTOM_BYTES": str(options.memory),
            "PHANTOM_DEVICES": str(options.devices),
            "PHANTOM_MEMINFO": meminfo.name,
            "HF_HUB_OFFLINE": "1",
        }
        code = subprocess.run([program, *arguments], env=environment).returncode
    return code if code >= 0 else 128 - code  # a signal, as a shell tells it


def built() -> Path:
    """The folder of `libphantom.so` and `libcuda.so.1` for the torch that is installed."""
    torch = Path(sysconfig.get_path("platlib")) / "torch" / "lib"
    if not (torch / "libc10_cuda.so").exists():
        sys.exit(f"torch {metadata.version('torch')} here is no CUDA build: see {__file__}")
    sources = [*sorted(HERE.glob("*.[ch]")), HERE / "__main__.py"]
    key = hashlib.sha256(b"".join(source.read_bytes() for source in sources))
    folder = BUILD / f"{metadata.version('torch')}-{key.hexdigest()[:12]}"
    if not (folder / "libphantom.so").exists():
        _build(torch, folder)
    return folder


def _build(torch: Path, folder: Path) -> None:
    """Both libraries: what the sources define, and of the rest a function that succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".unfinished"))
    roots = _include_folders()
    flags = [*FLAGS, *(f"-I{root}" for root in roots)]
    preloaded = [str(HERE / name) for name in PRELOADED]
    header = next(root / "cuda.h" for root in roots if (root / "cuda.h").exists())
    wanted = {
        "libphantom.so": (preloaded, _imports(torch)),
        "libcuda.so.1": ([str(HERE / "driver.c")], set(_declared(header))),
    }
    for name, (sources, symbols) in wanted.items():
        rest = unfinished / f"{name}.rest.c"
        target = unfinished / name
        _compile([*flags, *sources, "-o", str(target)])
        missing = sorted(symbols - _symbols(target, "--defined-only"))
        rest.write_text("".join(f"long {one}(void) {{ return 0; }}\n" for one in missing))
        _compile([*flags, *sources, str(rest), "-lpthread", "-ldl", "-o", str(target)])
    (unfinished / "libcuda.so").symlink_to("libcuda.so.1")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _include_folders() -> list[Path]:
    """Of the CUDA headers: those of torch's own packages first, then what Triton brings."""
    site = Path(sysconfig.get_path("purelib"))
    found = [*site.glob("nvidia/*/include"), site / "triton" / "backends" / "nvidia" / "include"]
    return [folder for folder in found if folder.is_dir()]


def _declared(header: Path) -> list[str]:
    return DECLARED.findall(header.read_text(encoding="utf-8", errors="replace"))


def _imports(torch: Path) -> set[str]:
    """What torch's libraries ask of CUDA's."""
    found = {name for one in torch.glob("lib*.so") for name in _symbols(one, "--undefined-only")}
    return {name for name in found if IMPORTED.fullmatch(name)}


def _symbols(library: Path, which: str) -> set[str]:
    told = subprocess.run(["nm", "-D", which, library], check=True, capture_output=True, text=True)
    return {line.split()[-1].partition("@")[0] for line in told.stdout.splitlines()}


def _compile(arguments: list[str]) -> None:
    done = subprocess.run(["gcc", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def host_with(size: int) -> str:
    """What /proc/meminfo says of a host with so many bytes, all of them free."""
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    return re.sub(r"(?m)^(Mem\w+:\s+)\d+", rf"\g<1>{size // 1024}", text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python scripts/phantom", description=__doc__)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--memory", type=int, default=150_000_000_000, help="bytes of each")
    parser.add_argument("--host-memory", type=int, default=HOST, help="bytes")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("what shall be run?")
    return options


if __name__ == "__main__":
    sys.exit(main())
