"""What is audited: each kernel as the host starts it, for the formats, layouts and dims of real models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kvgauge_kernels.audit.targets import Target
from kvgauge_kernels.stored import DEFAULT_GROUP, stored_as
from kvgauge_kernels.triton import configs

_POINTER = {"fp16": "*fp16", "bf16": "*bf16", "int8": "*i8", "fp32": "*fp32"}  # the rest are bytes
SPLIT, PACKED, MERGE = "split_decode", "split_decode_packed", "merge_splits"
LATENTS = "split_decode_latents"
APPEND, KEEP, COPY = "append_row", "keep_tokens", "copy_rows"
_WARPS = {
    MERGE: configs.MERGE_WARPS, APPEND: configs.APPEND_WARPS,
    KEEP: configs.MOVE_WARPS, COPY: configs.MOVE_WARPS,
}  # fmt: skip
"""Of the kernels that have one shape."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel over one kind of cache."""

    kernel: str
    format: str
    """The cache's; of the merge the output's."""
    q_format: str
    """The query's; of an appended row its own."""
    k_dim: int
    v_dim: int
    page_size: int = 0
    """Tokens a page, 0 where contiguous."""
    ragged: bool = False
    windowed: bool = False
    alternate: configs.Config | None = None
    """Looked at in place of what the host would choose."""

    @property
    def name(self) -> str:
        """As limits and reports call it, without its configuration."""
        cache = self.format if self.format == self.q_format else f"{self.format}-{self.q_format}"
        layout = f"page{self.page_size}" if self.page_size else "contiguous"
        parts = [self.kernel, cache, f"{self.k_dim}x{self.v_dim}", layout]
        return "/".join(parts + ["ragged"] * self.ragged + ["window"] * self.windowed)

    @property
    def reads_rows(self) -> bool:
        """Whether it reads K and V and multiplies matrices."""
        return self.kernel not in _WARPS

    @property
    def moves_rows(self) -> bool:
        """Whether it reads rows to write them elsewhere."""
        return self.kernel in (KEEP, COPY)

    @property
    def tile_dims(self) -> tuple[int, int]:
        """Columns of the two tiles that an iteration loads: K's and V's, or the latent's and the rope's."""
        if self.kernel == LATENTS:
            return self.v_dim, self.k_dim - self.v_dim
        return self.k_dim, self.v_dim

    def config(self, target: Target) -> configs.Config | None:
        """What the host would choose there; None for a kernel that has one shape."""
        if not self.reads_rows or self.alternate is not None:
            return self.alternate
        return configs.choose_for(
            target.room, self.format, self.k_dim, self.v_dim, paged=self.page_size > 0
        )

    def key(self, target: Target) -> str:
        """Name and configuration."""
        config = self.config(target)
        if config is None:
            return f"{self.name}/w{_WARPS[self.kernel]}"
        programs = f"-p{config.programs_per_sm}" if self.alternate else ""
        return f"{self.name}/n{config.block_n}-w{config.num_warps}-s{config.num_stages}{programs}"


def default_cases() -> tuple[Case, ...]:
    """Every format and layout at the dims of real models; two formats of queries where it differs."""
    cases = [
        Case(SPLIT, fmt, "bf16" if fmt == "int8" else fmt, dim, dim, page_size)
        for dim in (64, 128, 256)
        for fmt in ("fp16", "bf16", "int8")
        for page_size in ((0, 16, 256) if dim == 128 else (0, 16))
    ]
    for fmt in ("bf16", "int8"):
        cases += [
            Case(SPLIT, fmt, "bf16", 80, 80),  # padded to 128
            Case(SPLIT, fmt, "bf16", 192, 128, 16),  # K and V of different dims
            Case(SPLIT, fmt, "bf16", 128, 128, 16, ragged=True),
        ]
    cases.append(Case(SPLIT, "int8", "fp16", 128, 128))
    cases += [Case(SPLIT, "fp8_e4m3", "bf16", dim, dim, page) for dim, page in _FEW]
    cases += [
        Case(SPLIT, "fp8_e4m3", "fp16", 128, 128),
        Case(SPLIT, "fp8_e5m2", "bf16", 128, 128, 16),
        Case(SPLIT, "bf16", "bf16", 64, 64, windowed=True),  # gpt-oss, with sinks
        Case(SPLIT, "bf16", "bf16", 128, 128, 16, windowed=True),
    ]
    for base, dims in configs.PACKED_DIMS.items():
        for group in configs.PACKED_GROUPS:
            fmt = base if group == DEFAULT_GROUP else f"{base}-g{group}"
            # Pages take the most registers.
            pages = (0, 16) if group == DEFAULT_GROUP else (16,)
            cases += [Case(PACKED, fmt, "bf16", *both, page) for both in dims for page in pages]
    cases += [
        Case(PACKED, "int4", "fp16", 128, 128),
        Case(PACKED, "int4-g32", "bf16", 128, 128),
        Case(PACKED, "int4", "bf16", 128, 128, 16, windowed=True),
    ]
    for k_dim, v_dim in configs.LATENT_DIMS:
        cases += [
            Case(LATENTS, "bf16", "bf16", k_dim, v_dim),
            Case(LATENTS, "fp16", "fp16", k_dim, v_dim),
            Case(LATENTS, "fp16", "fp16", k_dim, v_dim, 16),
            Case(LATENTS, "bf16", "bf16", k_dim, v_dim, 16, ragged=True),
            Case(LATENTS, "bf16", "bf16", k_dim, v_dim, 64),  # as FlashMLA has them
            Case(MERGE, "bf16", "bf16", v_dim, v_dim),
        ]
    cases += [Case(MERGE, fmt, fmt, 128, 128) for fmt in ("fp16", "bf16", "fp32")]  # fp32: a part
    return (*cases, *_cache_cases())


def _cache_cases() -> list[Case]:
    """What happens to a cache between steps, in formats of every kind."""
    formats = ("bf16", "fp8_e4m3", "int8", "int4", "int2")
    cases = [Case(APPEND, fmt, "bf16", 128, 128, 16) for fmt in formats]
    cases += [
        Case(APPEND, "int4-g32", "fp16", 96, 96, ragged=True),
        *(Case(APPEND, "bf16", "bf16", k_dim, v_dim) for k_dim, v_dim in configs.LATENT_DIMS),
    ]
    for fmt, dim in (("bf16", 128), ("int8", 128), ("int2", 64)):
        cases += [Case(KEEP, fmt, fmt, dim, dim, page) for page in (0, 16)]
        cases.append(Case(COPY, fmt, fmt, dim, dim, 16))
    return cases


_FEW = ((128, 0), (128, 16), (64, 0), (256, 16))  # of a format: head dim and tokens a page


@dataclass(frozen=True, slots=True)
class Inputs:
    """What Triton's ASTSource takes, by the names of a kernel's parameters."""

    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    """Parameters that are multiples of 16: pointers as torch allocates, strides of whole rows."""
    options: dict[str, int]


def inputs(
    case: Case, target: Target, parameters: list[str], not_specialised: Collection[str]
) -> Inputs:
    """As the host's own launch specialises them for a cache that torch allocated."""
    config, stored = case.config(target), stored_as(case.format)
    shapes = {
        "K_DIM": case.k_dim, "V_DIM": case.v_dim, "ROPE_DIM": case.k_dim - case.v_dim,
        "K_PADDED": configs.padded(case.k_dim), "V_PADDED": configs.padded(case.v_dim),
        "PAGE": case.page_size, "ROWS": configs.ROWS, "UPCAST": False,
        "BITS": stored.bits, "GROUP": stored.group or 0,
        "FP8_MANTISSA": configs.FP8_MANTISSA_BITS.get(case.format, 0),
        "BLOCK_S": configs.MERGE_BLOCK_S,
        **({"BLOCK_N": config.block_n} if config else _shapes_of_a_move(case)),
    }  # fmt: skip
    pointers: dict[str, str | None] = {
        **dict.fromkeys(("q", "out", "new"), _POINTER.get(case.q_format)),
        **dict.fromkeys(("k", "v"), _POINTER.get(case.format, "*u8")),
        **dict.fromkeys(("k_scale", "v_scale", "k_zero", "v_zero"), "*fp16" if stored.scaled else None),
        "table": "*i32" if case.page_size else None,
        "lengths": "*i32" if case.ragged else None,
        "rows": "*i32" if case.moves_rows else _POINTER.get(case.format, "*u8"),
        "scale": "*fp16" if stored.scaled else None, "zero": "*fp16" if stored.group else None,
        **dict.fromkeys(("kept", "source", "target"), "*i64"),
        "parts": "*fp32", "part_sums": "*fp32", "sums": "*fp32" if case.q_format == "fp32" else None,
        **({} if case.windowed else {"window": None, "sinks": None}),
    }  # fmt: skip
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible: list[str] = []
    for name in parameters:
        if name in shapes:
            signature[name], constants[name] = "constexpr", shapes[name]
        elif name in pointers and pointers[name] is None:
            signature[name], constants[name] = "constexpr", None
        elif name in pointers:
            signature[name] = str(pointers[name])
            divisible.append(name)
        elif name.endswith("scale_token_stride") and _groups(case, name) == 1:
            signature[name], constants[name] = "constexpr", 1
        elif name == "score_scale":
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            scales = name.endswith("scale_token_stride")  # the groups of a row
            if name.endswith("_stride") and name not in not_specialised and not scales:
                divisible.append(name)
    if config is None:
        options = {"num_warps": _WARPS[case.kernel]}
    else:
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        if target.backend == "cuda":
            options["maxnreg"] = config.max_registers
    return Inputs(signature, constants, tuple(divisible), options)


def _shapes_of_a_move(case: Case) -> dict[str, int]:
    """As `triton/cache.py` has them, of rows that fill whole loads."""
    words = case.k_dim * stored_as(case.format).bits // 32
    columns = configs.power_of_two(words)
    if case.kernel == KEEP:
        columns = min(configs.KEEP_WORDS, columns)
    return {
        "DIM": case.k_dim, "PADDED": configs.padded(case.k_dim), "WORDS": words, "WIDE": 4,
        "COLUMNS": columns, "BLOCK_N": configs.MOVE_WORDS // columns,
    }  # fmt: skip


def _groups(case: Case, name: str) -> int:
    return stored_as(case.format).groups(case.k_dim if name.startswith("k") else case.v_dim)
