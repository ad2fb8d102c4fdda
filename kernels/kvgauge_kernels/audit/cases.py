"""What is audited: each kernel as the host starts it, for the formats, layouts and dims of real models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kvgauge_kernels.audit.targets import Target
from kvgauge_kernels.triton import configs

_POINTER = {"fp16": "*fp16", "bf16": "*bf16", "int8": "*i8"}
_ELEMENT_BYTES = {"fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel over one kind of cache."""

    kernel: str
    format: str
    """The cache's; of the merge the output's."""
    q_format: str
    k_dim: int
    v_dim: int
    page_size: int = 0
    """Tokens a page, 0 where contiguous."""
    ragged: bool = False

    @property
    def name(self) -> str:
        """As limits and reports call it, without its configuration."""
        cache = self.format if self.format == self.q_format else f"{self.format}-{self.q_format}"
        layout = f"page{self.page_size}" if self.page_size else "contiguous"
        parts = [self.kernel, cache, f"{self.k_dim}x{self.v_dim}", layout]
        return "/".join(parts + ["ragged"] * self.ragged)

    @property
    def reads_rows(self) -> bool:
        """Whether it reads K and V and multiplies matrices."""
        return self.kernel == "split_decode"

    def config(self, target: Target) -> configs.Config | None:
        """What the host would choose there; None for the merge, which has one shape."""
        if not self.reads_rows:
            return None
        row_bytes = configs.tile_row_bytes(self.k_dim, self.v_dim, _ELEMENT_BYTES[self.format])
        return configs.choose(target.room, row_bytes, paged=self.page_size > 0)

    def key(self, target: Target) -> str:
        """Name and configuration."""
        config = self.config(target)
        if config is None:
            return f"{self.name}/w{configs.MERGE_WARPS}"
        return f"{self.name}/n{config.block_n}-w{config.num_warps}-s{config.num_stages}"


def default_cases() -> tuple[Case, ...]:
    """Every format and layout at the dims of real models; two formats of queries where it differs."""
    split = "split_decode"
    cases = [
        Case(split, fmt, "bf16" if fmt == "int8" else fmt, dim, dim, page_size)
        for dim in (64, 128, 256)
        for fmt in ("fp16", "bf16", "int8")
        for page_size in ((0, 16, 256) if dim == 128 else (0, 16))
    ]
    for fmt in ("bf16", "int8"):
        cases += [
            Case(split, fmt, "bf16", 80, 80),  # padded to 128
            Case(split, fmt, "bf16", 192, 128, 16),  # K and V of different dims
            Case(split, fmt, "bf16", 128, 128, 16, ragged=True),
        ]
    cases.append(Case(split, "int8", "fp16", 128, 128))
    cases += [Case("merge_splits", fmt, fmt, 128, 128) for fmt in ("fp16", "bf16")]
    return tuple(cases)


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
    config = case.config(target)
    shapes = {
        "K_DIM": case.k_dim, "V_DIM": case.v_dim,
        "K_PADDED": configs.padded(case.k_dim), "V_PADDED": configs.padded(case.v_dim),
        "PAGE": case.page_size, "ROWS": configs.ROWS, "UPCAST": False,
        "BLOCK_N": config.block_n if config else 0, "BLOCK_S": configs.MERGE_BLOCK_S,
    }  # fmt: skip
    pointers = {
        "q": _POINTER[case.q_format], "out": _POINTER[case.q_format],
        "k": _POINTER[case.format], "v": _POINTER[case.format],
        "k_scale": "*fp16" if case.format == "int8" else None,
        "v_scale": "*fp16" if case.format == "int8" else None,
        "table": "*i32" if case.page_size else None,
        "lengths": "*i32" if case.ragged else None,
        "parts": "*fp32", "part_sums": "*fp32",
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
        elif name.endswith("scale_token_stride"):
            signature[name], constants[name] = "constexpr", 1
        elif name == "score_scale":
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if name.endswith("_stride") and name not in not_specialised:
                divisible.append(name)
    if config is None:
        options = {"num_warps": configs.MERGE_WARPS}
    else:
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        if target.backend == "cuda":
            options["maxnreg"] = config.max_registers
    return Inputs(signature, constants, tuple(divisible), options)
