"""What training can be planned for: published figures of common GPUs, and this machine as it is measured. No torch."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from llmkit.config.base import nearest
from llmkit.errors import ConfigError

GB = 10**9


@dataclass(frozen=True)
class Machine:
    """One or more devices of a kind.

    Args:
        name: what people call it.
        device: "cpu" or "cuda".
        bf16_rate: FLOP/s of dense matrix products in bf16 with fp32 sums; None where it has no units for them.
        fp32_rate: the same in fp32.
        memory: bytes of each.
        bandwidth: bytes/s of each one's memory; None where not known.
        watts: of each at work; None where not known.
        count: how many there are.
        measured: whether the rates were measured here, not published.
    """

    name: str
    device: str
    bf16_rate: float | None
    fp32_rate: float
    memory: float
    bandwidth: float | None
    watts: float | None
    count: int = 1
    measured: bool = False

    def precision(self, wanted: str) -> str:
        """The precision that a stage's `precision` stands for here."""
        if wanted != "auto":
            return wanted
        return "bf16" if self.bf16_rate is not None and self.bf16_rate >= 1.2 * self.fp32_rate else "fp32"

    def rate(self, precision: str) -> float:
        """FLOP/s of matrix products in a precision, of each device."""
        return self.fp32_rate if precision == "fp32" or self.bf16_rate is None else self.bf16_rate


def _gpu(
    name: str, bf16: float | None, fp32: float, memory: float, bandwidth: float, watts: float
) -> tuple[str, Machine]:
    """A row of the table: TFLOP/s, GB, GB/s, W."""
    rate = None if bf16 is None else bf16 * 1e12
    return re.sub(r"[^a-z0-9]+", "-", name.lower()), Machine(
        name, "cuda", rate, fp32 * 1e12, memory * GB, bandwidth * GB, watts
    )


# Vendors' data sheets: rates without sparsity, bf16 with fp32 sums, fp32 without tensor cores; the power limit.
GPUS: dict[str, Machine] = dict(
    (
        # NVIDIA V100 data sheet (2020), SXM2.
        _gpu("V100", None, 15.7, 32, 900, 300),
        # NVIDIA T4 data sheet (2019).
        _gpu("T4", None, 8.1, 16, 320, 70),
        # NVIDIA A100 data sheet (2022): SXM with 40 GB and 80 GB.
        _gpu("A100 40GB", 312, 19.5, 40, 1555, 400),
        _gpu("A100 80GB", 312, 19.5, 80, 2039, 400),
        # NVIDIA A10 data sheet (2021).
        _gpu("A10", 125, 31.2, 24, 600, 150),
        # NVIDIA L4 data sheet (2023): half of the rate with sparsity.
        _gpu("L4", 121, 30.3, 24, 300, 72),
        # NVIDIA L40S data sheet (2023).
        _gpu("L40S", 362, 91.6, 48, 864, 350),
        # NVIDIA H100 data sheet (2023): SXM and PCIe, half of the rates with sparsity.
        _gpu("H100", 989, 67, 80, 3350, 700),
        _gpu("H100 PCIe", 756, 51, 80, 2000, 350),
        # NVIDIA H200 data sheet (2024), SXM.
        _gpu("H200", 989, 67, 141, 4800, 700),
        # NVIDIA HGX B200 data sheet (2025): an eighth of a board, half of the rate with sparsity.
        _gpu("B200", 2250, 75, 180, 7700, 1000),
        # NVIDIA GA102 (2020), Ada (2022) and RTX Blackwell (2025) architecture papers.
        _gpu("RTX 3090", 71, 35.6, 24, 936, 350),
        _gpu("RTX 4090", 165.2, 82.6, 24, 1008, 450),
        _gpu("RTX 5090", 209.5, 104.8, 32, 1792, 575),
        # AMD Instinct MI300X data sheet (2023).
        _gpu("MI300X", 1307.4, 163.4, 192, 5300, 750),
    )
)


def named_machine(name: str) -> Machine:
    """A GPU of the table.

    Raises:
        ConfigError: the name is not in the table.
    """
    plain = _letters(name)
    for key, machine in GPUS.items():
        if plain in (_letters(key), _letters(key.removesuffix("-80gb"))):
            return machine
    guess = nearest(name.lower(), GPUS)
    raise ConfigError(
        f"`{name}` is not among the devices whose figures are known.",
        where="--device",
        hint=f"{f'Did you mean `{guess}`? ' if guess else ''}Known are: {', '.join(GPUS)}.",
    )


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def this_machine() -> Machine:
    """The device that training would take here, with its measured rates of matrix products.

    A GPU's power is that of the table, where it is in there; a CPU's is read from its energy counter while it works.
    """
    import torch

    from llmkit.train.engine import matrix_rate

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        known = next((gpu for key, gpu in GPUS.items() if _letters(key) in _letters(properties.name)), None)
        rates = [matrix_rate("cuda", dtype) for dtype in (torch.bfloat16, torch.float32)]
        watts, bandwidth = (None, None) if known is None else (known.watts, known.bandwidth)
        memory = float(properties.total_memory)
        return Machine(properties.name, "cuda", rates[0], rates[1], memory, bandwidth, watts, measured=True)
    began, energy = time.monotonic(), _microjoules()
    rates = [matrix_rate("cpu", dtype) for dtype in (torch.bfloat16, torch.float32)]
    ended, after = time.monotonic(), _microjoules()
    # The counter wraps around now and then; then nothing is said.
    watts = None
    if energy is not None and after is not None and after > energy:
        watts = (after - energy) / 1e6 / (ended - began)
    return Machine("cpu", "cpu", rates[0], rates[1], float(available_memory()), None, watts, measured=True)


def available_memory() -> int:
    """Bytes of main memory that a process may still take: what is free, within the limit of its control group."""
    free = _entry(Path("/proc/meminfo"), "MemAvailable:", 1024)
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return free
    # Pages of files that nobody needs at the moment make way.
    return min(free, max(0, limit - used + (_entry(group / "memory.stat", "inactive_file", 1) or 0)))


def _entry(path: Path, name: str, unit: int) -> int | None:
    """A number of a file with a name and a number on each line."""
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except OSError:
        return None
    return next((int(row[1]) * unit for row in rows if row and row[0] == name), None)


def _microjoules() -> int | None:
    """The processors' energy counters, in microjoules; None where they cannot be read."""
    packages = [_number(path) for path in sorted(Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj"))]
    found = [energy for energy in packages if energy is not None]
    return sum(found) if found else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
