"""How the decode kernel is shaped for a device and a cache: a small table, each entry with its reason.

A tile is what one iteration reads: BLOCK_N tokens of K and of V, rows padded to powers of two. Decode is
bound by memory, so what counts is how many bytes are on their way at once. By Little's law an H100
SXM (3.35 TB/s by its datasheet, 132 multiprocessors) wants 2.3 MB of them, 18 kB a multiprocessor, if
its memory answers in 700 ns (assumed, not measured); a program has
`stages - 1` tiles on their way. Registers and spills of every entry are held by the audit's limits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvgauge_kernels.stored import stored_as

ROWS = 16
"""Query heads a program: the least rows of a matrix instruction. Larger groups read K and V again."""
MERGE_BLOCK_S = 16
MERGE_WARPS = 4
FP8_MANTISSA_BITS = {"fp8_e4m3": 3, "fp8_e5m2": 2}
WARPS = 4
APPEND_WARPS = 1
"""A program quantizes one row: at most 576 elements."""
MOVE_WARPS = 4
KEEP_WORDS = 8
"""Words of 4 bytes of a row that one program moves, over all tokens: what memory fetches at once, so that
few heads are many programs."""
MOVE_WORDS = 1024
"""Words of a tile that is moved at once: 16 bytes for each of AMD's 256 threads."""


@dataclass(frozen=True, slots=True)
class Config:
    """One shape of `split_decode`, and how many of its programs a multiprocessor is to hold."""

    block_n: int
    num_warps: int
    num_stages: int
    programs_per_sm: int
    reason: str

    @property
    def max_registers(self) -> int:
        """Registers a thread that leave room for `programs_per_sm` (65,536 a multiprocessor).

        Told to the compiler: left alone it spills a few words to reach one program more.
        """
        threads = self.num_warps * 32
        return min(255, 65_536 // (threads * self.programs_per_sm) // 8 * 8)


@dataclass(frozen=True, slots=True)
class Room:
    """What of a multiprocessor shapes a kernel."""

    shared_bytes: int
    """Shared memory of one multiprocessor."""
    backend: str = "cuda"
    """`cuda` or `hip`."""


# Shared memory of a multiprocessor by compute capability: the CUDA C++ programming guide's table of
# technical specifications.
SHARED_BYTES = {80: 167_936, 86: 102_400, 89: 102_400, 90: 233_472, 100: 233_472, 120: 102_400}
_LARGE = 160_000

# By the device's shared memory, and the largest tile row (bytes a token) that an entry is for.
_LARGE_SHARED = {
    512: Config(64, WARPS, 3, 2, "two tiles of 32 kB on their way in each of two programs"),
    1024: Config(
        32, WARPS, 3, 2, "as for 512: with 64 tokens one program fills the 164 kB of sm_80"
    ),
}
_SMALL_SHARED = {
    256: Config(32, WARPS, 3, 4, "two tiles of 8 kB on their way in each of four programs"),
    512: Config(32, WARPS, 3, 2, "tiles of 16 kB: with 64 tokens one program fills 100 kB"),
    1024: Config(
        32, WARPS, 2, 2, "one tile of 32 kB on its way: two would leave no second program"
    ),
}
# What packed rows are read of: head dims of K and V that fill whole loads of 16 bytes and do not spill,
# and elements to a scale. Each has audited cases.
PACKED_DIMS = {
    "int4": ((64, 64), (96, 96), (128, 128), (192, 128), (256, 256)),
    "int2": ((64, 64), (128, 128), (256, 256)),
}
PACKED_GROUPS = (32, 64, 128)
# int4 and int2: their numbers take registers, their tiles little shared memory.
_SMALL_SHARED_PACKED = {
    512: Config(64, WARPS, 3, 2, "with 32 tokens, or a third program, registers spill"),
    1024: _SMALL_SHARED[1024],
}
_HIP = {
    256: Config(64, WARPS, 2, 2, "256 threads load 16 bytes each: 4 kB of K where a row has 64"),
    512: Config(32, WARPS, 2, 1, "tiles of 16 kB; int8 rows of 192 and 128 take most registers"),
    1024: Config(16, WARPS, 2, 2, "tiles of 16 kB with half the tokens"),
}
# MLA's latents, by their K and V dims: DeepSeek-V2 and V3, 512 of latent and 64 of rope. A tile has K's row
# once; 16 rows of 512 in fp32 are 64 registers of each of 128 threads.
LATENT_DIMS = ((576, 512),)
_LATENTS_FROM_SHARED = {
    200_000: Config(32, WARPS, 3, 2, "two tiles of 37 kB on their way in each of two programs"),
    _LARGE: Config(32, WARPS, 2, 2, "one tile of 37 kB on its way: two leave no second program"),
    0: Config(16, WARPS, 2, 2, "one tile of 18 kB on its way: 32 tokens leave no second program"),
}
_LATENTS_HIP = Config(16, 2, 2, 2, "128 threads: of 256 a rope tile of 2 kB has 8 bytes for each")
_LOAD_BYTES = 16
"""What a thread loads by one instruction."""
# A page's number must arrive before its rows can be asked for: Triton spreads the stages over both
# loads, so that the rows keep as many on their way only with two more.
_STAGES_FOR_PAGES = 2


def tile_row_bytes(k_dim: int, v_dim: int, element_bytes: int) -> int:
    """Bytes of a tile for one token: K and V, padded to powers of two.

    V of one byte an element counts twice: its numbers pass through shared memory in 16 bits too.
    """
    return padded(k_dim) * element_bytes + padded(v_dim) * 2


def padded(dim: int) -> int:
    """The next power of two, at least 16: tiles have no other sizes."""
    return max(16, power_of_two(dim))


def power_of_two(number: int) -> int:
    """The next one, at least 1."""
    return 1 << (number - 1).bit_length()


def choose(room: Room, row_bytes: int, *, paged: bool, packed: bool = False) -> Config:
    """The entry for that device and tile row; raises ValueError where none is for rows that large."""
    small = _SMALL_SHARED_PACKED if packed else _SMALL_SHARED
    of_nvidia = _LARGE_SHARED if room.shared_bytes >= _LARGE else small
    table = _HIP if room.backend == "hip" else of_nvidia
    entry = next((table[limit] for limit in sorted(table) if row_bytes <= limit), None)
    if entry is None:
        raise ValueError(f"tile rows of {row_bytes} bytes: at most {max(table)}")
    return _for_pages(entry, room) if paged else entry


def choose_latents(room: Room, *, paged: bool) -> Config:
    """The entry for latents of `LATENT_DIMS` in 16 bits."""
    least = next(least for least in _LATENTS_FROM_SHARED if room.shared_bytes >= least)
    entry = _LATENTS_HIP if room.backend == "hip" else _LATENTS_FROM_SHARED[least]
    return _for_pages(entry, room) if paged else entry


def _for_pages(entry: Config, room: Room) -> Config:
    more = 0 if room.backend == "hip" else _STAGES_FOR_PAGES
    return replace(entry, num_stages=entry.num_stages + more)


def choose_for(room: Room, kv_format: str, k_dim: int, v_dim: int, *, paged: bool) -> Config:
    """The entry for a cache of that format, MLA's latents where the dims are those; raises as `choose`.

    A tile of int4 or int2 is counted as one of fp16, which its numbers pass through; its bytes on their
    way are a quarter or an eighth of that. Where a tile has not 16 bytes for every thread it gets more
    tokens.
    """
    stored = stored_as(kv_format)
    if (k_dim, v_dim) in LATENT_DIMS:
        return choose_latents(room, paged=paged)
    row_bytes = tile_row_bytes(k_dim, v_dim, 2 if stored.group else stored.bits // 8)
    entry = choose(room, row_bytes, paged=paged, packed=stored.group is not None)
    if stored.group and room.backend == "hip":
        # By triton 3.6 some of them take over half of the registers.
        entry = replace(entry, programs_per_sm=1)
    threads = entry.num_warps * (64 if room.backend == "hip" else 32)
    least_row = min(padded(k_dim), padded(v_dim)) * stored.bits // 8
    tokens = -(-threads * _LOAD_BYTES // least_row)
    if entry.block_n >= tokens or not stored.group:
        return entry
    return replace(entry, block_n=tokens, reason=f"{entry.reason}; 16 bytes a thread")
