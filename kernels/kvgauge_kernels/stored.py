"""How a KV format stores numbers: elements, codes of a few bits packed in bytes, scales, zero points.

An element is `code * scale + zero`. int8 has a scale a row (one token, one head) and no zero. int4 and
int2 have both for each group of elements along head_dim: `int4` in groups of 64, `int4-g32` of 32; code i
of a row lies at bit `i * bits` of it, the lowest bit of a byte first. kivi4 and kivi2 have V like that, in
groups of 32, and K per channel: a scale and a zero for each element of head_dim and group of 32 tokens
(KIVI, arXiv 2402.02750: K has outliers in some channels). The rest are numbers themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import torch

# Formats whose elements are the numbers themselves, with the dtype that they are stored and computed
# in.
PLAIN_DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PLAIN_FORMATS = frozenset(PLAIN_DTYPE)
# Stored as numbers too, but not computed in: eight bits, sign first, then exponent and mantissa.
FLOAT8_DTYPE = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
# Of which a backend's `formats` names the base: `int4` stands for `int4-g32` too.
GROUPED_BITS = {"int4": 4, "int2": 2}
# The same with K's groups along tokens.
CHANNEL_BITS = {"kivi4": 4, "kivi2": 2}
DEFAULT_GROUP = 64
_GROUP = {"int4": DEFAULT_GROUP, "int2": DEFAULT_GROUP, "kivi4": 32, "kivi2": 32}
# Formats that a cache can be in; those in groups also with `-gN`.
STORED_FORMATS = (*PLAIN_DTYPE, *FLOAT8_DTYPE, "int8", *GROUPED_BITS, *CHANNEL_BITS)
_GROUPED_NAME = re.compile(r"(int4|int2|kivi4|kivi2)-g([1-9][0-9]{0,3})")


@dataclass(frozen=True, slots=True)
class Stored:
    """What lies in memory for one element.

    dtype: of the tensor; packed codes are uint8. bits: of one element. `scaled`: whether rows have
    scales; `group`: elements to one scale and zero, None where a row has one scale and no zero;
    `k_by_channel`: K's groups are of so many tokens instead, each element of a row for itself.
    """

    base: str
    dtype: torch.dtype
    bits: int
    scaled: bool = False
    group: int | None = None
    k_by_channel: bool = False

    @property
    def per_byte(self) -> int:
        """Elements that share a byte of the tensor's rows; 1 where none do."""
        return 8 // self.bits if self.dtype == torch.uint8 else 1

    def groups(self, dim: int) -> int:
        """Scales of a row of `dim` elements; the last group may not be full."""
        return 1 if self.group is None else -(-dim // self.group)

    @property
    def k_tokens(self) -> int:
        """Tokens that share a scale of K."""
        return self.group if self.k_by_channel and self.group else 1

    def k_sides(self, tokens: int, dim: int) -> tuple[int, ...]:
        """What K's scales are behind `[batch, kv_heads]`, and its zeros where there are any."""
        if self.k_by_channel:
            return (-(-tokens // self.k_tokens), dim)
        return (tokens,) if self.group is None else (tokens, self.groups(dim))


@lru_cache(maxsize=256)
def stored_as(kv_format: str) -> Stored:
    """How that format is stored; raises ValueError for one that no cache here has."""
    plain = PLAIN_DTYPE.get(kv_format) or FLOAT8_DTYPE.get(kv_format)
    if plain is not None:
        return Stored(kv_format, plain, plain.itemsize * 8)
    if kv_format == "int8":
        return Stored(kv_format, torch.int8, 8, scaled=True)
    named = _GROUPED_NAME.fullmatch(kv_format)
    base = named[1] if named else kv_format
    bits = GROUPED_BITS.get(base) or CHANNEL_BITS.get(base)
    if bits is None:
        raise ValueError(f"no cache of format {kv_format!r}: {', '.join(STORED_FORMATS)}")
    group = int(named[2]) if named else _GROUP[base]
    by_channel = base in CHANNEL_BITS
    return Stored(base, torch.uint8, bits, scaled=True, group=group, k_by_channel=by_channel)


def is_stored(kv_format: str) -> bool:
    """Whether a cache can be in that format."""
    return kv_format in STORED_FORMATS or _GROUPED_NAME.fullmatch(kv_format) is not None


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes 0 to 2^bits - 1, uint8 `[..., n]`, as bytes `[..., n * bits / 8]`; n fills whole bytes."""
    per_byte = 8 // bits
    out = codes[..., ::per_byte].clone()
    for i in range(1, per_byte):
        out |= codes[..., i::per_byte] << (bits * i)
    return out


def unpacked(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """What `packed` took: uint8 `[..., bytes]` to `[..., bytes * 8 / bits]`."""
    fields = [(rows >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(fields, dim=-1).flatten(-2)


def numbers(
    rows: torch.Tensor,
    scale: torch.Tensor | None,
    zero: torch.Tensor | None,
    kv_format: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The numbers that rows `[..., dim]` of a cache stand for, in `dtype`; every step rounds to it.

    scale and zero as in KVView: `[...]`, or `[..., groups]` of a format in groups. Of K see also
    `numbers_of_k`. Raises ValueError where a scale or a zero is missing.
    """
    kind = stored_as(kv_format)
    codes = unpacked(rows, kind.bits) if kind.per_byte > 1 else rows
    values = codes.to(dtype)
    if not kind.scaled:
        return values
    if scale is None or (zero is None) != (kind.group is None):
        raise ValueError(f"a cache of format {kv_format} lacks its scales or zero points")
    if zero is None or kind.group is None:
        return values.mul_(scale.to(dtype).unsqueeze(-1))
    dim, whole = values.shape[-1], values.shape[-1] // kind.group
    parts = [(slice(0, whole * kind.group), slice(0, whole), kind.group)] if whole else []
    if dim % kind.group:  # the last group is not full
        parts.append((slice(whole * kind.group, dim), slice(whole, None), dim % kind.group))
    for elements, groups, size in parts:
        part = values[..., elements].view(*values.shape[:-1], -1, size)
        part.mul_(scale[..., groups, None].to(dtype)).add_(zero[..., groups, None].to(dtype))
    return values


def numbers_of_k(
    rows: torch.Tensor,
    scale: torch.Tensor | None,
    zero: torch.Tensor | None,
    kv_format: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """As `numbers`, of K's rows `[..., tokens, dim]`, whose scales may be `[..., token groups, dim]`."""
    kind = stored_as(kv_format)
    if not kind.k_by_channel:
        return numbers(rows, scale, zero, kv_format, dtype)
    if scale is None or zero is None:
        raise ValueError(f"a cache of format {kv_format} lacks its scales or zero points")
    values = unpacked(rows, kind.bits).to(dtype)

    def by_token(side: torch.Tensor) -> torch.Tensor:
        return side.to(dtype).repeat_interleave(kind.k_tokens, -2)[..., : values.shape[-2], :]

    return values.mul_(by_token(scale)).add_(by_token(zero))
