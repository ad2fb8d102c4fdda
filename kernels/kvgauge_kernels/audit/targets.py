"""The devices that kernels are compiled for, and what of them bounds how many programs run at once."""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge_kernels.triton.configs import SHARED_BYTES, Room


@dataclass(frozen=True, slots=True)
class Target:
    """One architecture. Limits are of one multiprocessor (AMD: one compute unit)."""

    name: str
    backend: str
    arch: int | str
    """As Triton's GPUTarget takes it."""
    warp: int
    """Threads of a warp."""
    shared_bytes: int
    max_threads: int
    max_programs: int

    @property
    def room(self) -> Room:
        """What the table of configurations asks of a device."""
        return Room(self.shared_bytes, self.backend)


def _nvidia(capability: int, max_threads: int, max_programs: int) -> Target:
    return Target(
        f"sm_{capability}",
        "cuda",
        capability,
        32,
        SHARED_BYTES[capability],
        max_threads,
        max_programs,
    )


# Threads and programs of a multiprocessor: the table of technical specifications of the CUDA C++
# programming guide. gfx942: AMD's CDNA 3 architecture guide (64 kB of LDS, 8 waves on each of 4 SIMDs).
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _nvidia(80, 2048, 32),
        _nvidia(86, 1536, 16),
        _nvidia(89, 1536, 24),
        _nvidia(90, 2048, 32),
        _nvidia(100, 2048, 32),
        _nvidia(120, 1536, 24),
        Target("gfx942", "hip", "gfx942", 64, 65_536, 2048, 32),
    )
}
_REGISTERS = 65_536  # of 32 bits, a multiprocessor
_REGISTERS_AT_ONCE = 256  # what a warp gets is rounded up to this
_SHARED_RESERVED = 1024  # bytes that CUDA takes of shared memory for each program
_VGPRS, _VGPRS_AT_ONCE, _SIMDS, _WAVES = 512, 8, 4, 8  # of CDNA 3, a SIMD each


def programs_at_once(
    target: Target, num_warps: int, registers: int, dynamic_shared_bytes: int
) -> int:
    """Programs that one multiprocessor holds: an estimate from registers, shared memory and threads.

    `registers` are those of one thread.
    """
    threads = num_warps * target.warp
    if target.backend == "hip":
        each = -(-max(registers, 1) // _VGPRS_AT_ONCE) * _VGPRS_AT_ONCE
        by_registers = min(_WAVES, _VGPRS // each) * _SIMDS // num_warps
        shared = dynamic_shared_bytes
    else:
        warp = -(-registers * target.warp // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
        by_registers = _REGISTERS // warp // num_warps
        shared = dynamic_shared_bytes + _SHARED_RESERVED
    by_shared = target.shared_bytes // max(shared, 1)
    return min(by_registers, by_shared, target.max_threads // threads, target.max_programs)
