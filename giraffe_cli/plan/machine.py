"""Where a run would take place: this machine, or one that is only named."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from giraffe_cli.model.precision import multiplies_bfloat16
from giraffe_cli.plan.operations import Rates


@dataclass(frozen=True)
class Machine:
    """Devices of one kind."""

    kind: str
    """`cpu` or `cuda`."""
    devices: int
    memory_bytes: int
    """What a training may take of one device; of the host on a CPU, for all its processes."""
    keeps_freed: bool = False
    """The process's heap keeps what it frees (glibc without MALLOC_MMAP_THRESHOLD_)."""
    name: str = ""
    """A key of `DEVICES`; empty for this machine."""
    host_bytes: int | None = None
    """Host memory that is free beside GPUs; None where it is not known, as of a CPU, whose memory
    it is."""
    has_bfloat16: bool = True
    """Whether it has units for it; see `model/precision.py`."""
    threads: int | None = None
    """That compute on this machine's CPU; None of GPUs and of a machine that is named."""

    @property
    def label(self) -> str:
        """What sentences call it: `h100`, `this machine's cpu`."""
        return self.name or f"this machine's {self.kind}"

    @property
    def margin(self) -> float:
        """Share of the memory that a plan leaves free: the prediction may be a tenth too low, and
        on a CPU other programs come and go."""
        return 0.15 if self.kind == "cpu" else 0.10

    @property
    def usable_bytes(self) -> int:
        """What a plan may fill: the memory less the margin."""
        return int(self.memory_bytes * (1 - self.margin))


@dataclass(frozen=True)
class Device:
    """A machine one may plan for without having it."""

    kind: str
    memory_bytes: int
    rates: Rates
    """Sustained, from a peak and a stated utilisation: an estimate."""
    assumption: str
    float32_share: float = 1.0
    """Of the rates where it computes in float32, as torch does by itself: without TF32."""

    @property
    def has_bfloat16(self) -> bool:
        """GPUs of this table do; the CPU is one of AVX2, which does not."""
        return self.kind == "cuda"


def _gpu(
    memory_gb: int,
    tera: float,
    share: float,
    attention: float,
    packed: float | None = None,
    *,
    float32: float,
) -> Device:
    """Shares of `tera` 10^12 operations a second: of products, of attention, and of attention in
    windows of several documents; `float32`: 10^12 operations a second without tensor cores."""
    peak = tera * 1e12
    rates = Rates(peak * share, peak * attention, peak * share, packed and peak * packed)
    apart = f" ({100 * packed:.0f} % where windows hold several documents)" if packed else ""
    told = (
        f"{tera:g} TFLOP/s in bfloat16; of that peak: matrix products {100 * share:.0f} %, "
        f"attention {100 * attention:.0f} %{apart}"
    )
    return Device("cuda", memory_gb * 10**9, rates, told, float32 / tera)


CPU_CORES = 16
"""Of the CPU that one may plan for without having it."""
DEVICES = {
    # Dense bfloat16 peaks of NVIDIA's data sheets, and of float32 outside the tensor cores, of
    # which the same shares are assumed. Shares in bfloat16 on Hopper: measured on an H100 on layers
    # of Llama-3.1-8B, packed windows by FlashAttention-2 on an H200 (`scripts/bench_gpu.py`). On
    # Ampere FlashAttention-2 reaches 50 % (Dao 2023,
    # arXiv:2307.08691); the rest is assumed.
    "h200": _gpu(141, 989, 0.56, 0.56, 0.30, float32=67),
    "h100": _gpu(80, 989, 0.56, 0.56, 0.30, float32=67),
    "a100": _gpu(80, 312, 0.55, 0.45, float32=19.5),
    "rtx4090": _gpu(24, 165, 0.60, 0.50, float32=82.6),
    # 16 cores of AVX2 in float32 at 3 GHz: 32 operations a cycle and core, half of them sustained
    # in products (0.77 TFLOP/s), a quarter in attention.
    "cpu": Device(
        "cpu",
        64 * 10**9,
        Rates(0.77e12, 0.38e12, 0.77e12),
        f"{CPU_CORES} cores of AVX2, 64 GB of memory",
    ),
}


def named_machine(name: str, devices: int = 1, memory_bytes: int | None = None) -> Machine:
    """A machine of `DEVICES`, with its own memory or another."""
    device = DEVICES[name]
    memory = device.memory_bytes if memory_bytes is None else memory_bytes
    return Machine(
        device.kind,
        devices,
        memory,
        keeps_freed=device.kind == "cpu",
        name=name,
        has_bfloat16=device.has_bfloat16,
    )


def this_machine() -> Machine:
    """The GPUs that are visible, else this host with the memory it has free now."""
    import torch

    if torch.cuda.is_available():
        memory = min(
            torch.cuda.get_device_properties(n).total_memory
            for n in range(torch.cuda.device_count())
        )
        return Machine(
            "cuda",
            torch.cuda.device_count(),
            memory,
            host_bytes=available_bytes(),
            has_bfloat16=multiplies_bfloat16(),
        )
    keeps_freed = "MALLOC_MMAP_THRESHOLD_" not in os.environ
    return Machine(
        "cpu",
        1,
        available_bytes(),
        keeps_freed,
        has_bfloat16=multiplies_bfloat16(),
        threads=torch.get_num_threads(),
    )


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """What this process may hold in all: what it has, and what host and container have left.

    Linux's `MemAvailable`; of a container the least of its own and its parents' limits, less what
    is used and cannot be reclaimed (cgroup v2, or v1). Elsewhere half of the memory.
    """
    try:
        available = _meminfo(proc / "meminfo")["MemAvailable"]
        own = int((proc / "self" / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return own + min([available, *_left_of_container(cgroup)])


def _meminfo(path: Path) -> dict[str, int]:
    """Bytes by name."""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in lines if rest.split()}


def _left_of_container(folder: Path) -> Iterable[int]:
    """Bytes that are left under a cgroup's limit; nothing where there is none."""
    for base, limit, used in (
        (folder, "memory.max", "memory.current"),
        (folder / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most = int((base / limit).read_text())  # `max` where there is no limit
            taken = int((base / used).read_text())
            stat = dict(
                line.split()[:2] for line in (base / "memory.stat").read_text().splitlines()
            )
        except (OSError, ValueError):
            continue
        reclaimable = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
        if most < 1 << 60:  # v1 writes a number near 2^63 for none
            yield max(0, most - taken + reclaimable)
