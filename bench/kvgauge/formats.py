"""KVFormat: what a cache element costs, metadata and padding included, in exact integers.

Sources: OCP "Microscaling Formats (MX) v1.0" (mxfp4); NVIDIA, "Introducing NVFP4" (nvfp4); the block
structs of ggml's `ggml-common.h` (ggml's formats); transformers' QuantizedCache (int4 and int2: groups
of 64); KIVI, arXiv 2402.02750 (kivi4 and kivi2: groups of 32). What a format stores once a tensor or a
layer (fp8's scale, nvfp4's global scale) is a few bytes a layer and is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from kvgauge.errors import UserError, did_you_mean, short


@dataclass(frozen=True, slots=True)
class KVFormat:
    """One way of storing K and V.

    Elements are stored in groups of `group_elements` along head_dim, each group with `scale_bytes`
    and `zero_bytes` of metadata. `group_elements` None means one group a row: a row is the
    head_dim elements of one token and one head. Where `whole_groups`, a row that is no multiple of
    the group is refused, as llama.cpp refuses it; elsewhere a last group that is not full costs the
    metadata of a whole one, and its elements are not padded.

    `k_group_tokens`: K's groups run along tokens instead, and each of the head_dim channels has its own
    metadata in each. A last group that is not full costs the metadata of a whole one.
    """

    name: str
    bits: int
    group_elements: int | None = None
    scale_bytes: int = 0
    zero_bytes: int = 0
    whole_groups: bool = False
    k_group_tokens: int | None = None
    grouped_name: bool = False
    """Whether `NAME-gN` names the same format in groups of N."""

    @property
    def quantized(self) -> bool:
        """Whether elements carry scales, so that a plain attention kernel cannot read them."""
        return self.scale_bytes > 0

    def row_bytes(self, elements: int) -> int:
        """Bytes of one row of `elements` (one token, one head): packed elements and metadata."""
        return self.row_element_bytes(elements) + self.row_metadata_bytes(elements)

    def row_element_bytes(self, elements: int) -> int:
        """The packed elements of one row, rounded up to a byte."""
        return (elements * self.bits + 7) // 8

    def row_metadata_bytes(self, elements: int) -> int:
        """The scales and zero points of one row; a last group that is not full costs a whole one."""
        if not self.scale_bytes or elements == 0:
            return 0
        per_group = self.scale_bytes + self.zero_bytes
        if self.group_elements is None:
            return per_group
        if self.whole_groups and elements % self.group_elements:
            raise UserError(
                f"KV format {self.name}: its blocks of {self.group_elements} do not divide a row of "
                f"{elements} elements (llama.cpp refuses such a cache)"
            )
        return -(-elements // self.group_elements) * per_group

    def k_row_metadata_bytes(self, elements: int) -> int:
        """As `row_metadata_bytes`, of K: a token's share of what its group of tokens costs."""
        tokens = self.k_group_tokens
        if tokens is None:
            return self.row_metadata_bytes(elements)
        of_group = elements * (self.scale_bytes + self.zero_bytes)
        if of_group % tokens:
            raise UserError(
                f"KV format {self.name}: {tokens} tokens share {of_group} bytes of scales and zero points of "
                f"{elements} channels, which is no whole number of bytes a token"
            )
        return of_group // tokens

    def k_whole_groups(self, tokens: int) -> int:
        """Tokens rounded up to those that K has metadata for."""
        group = self.k_group_tokens
        return tokens if group is None else -(-tokens // group) * group

    @property
    def metadata(self) -> str:
        """What the format stores beside its elements, in words."""
        if not self.quantized:
            return "none"
        along = f"{self.group_elements} elements" if self.group_elements else "token and head"
        zero = f" and {self.zero_bytes} bytes of zero point" if self.zero_bytes else ""
        said = f"{self.scale_bytes} bytes of scale{zero} for each {along}"
        if self.k_group_tokens is None:
            return said
        return f"{said} of V, and for each channel and {self.k_group_tokens} tokens of K"


def _ggml(name: str, bits: int, *, minimum: bool = False) -> KVFormat:
    # Blocks of 32 with an fp16 scale, and with an fp16 minimum in the `_1` formats.
    return KVFormat(name, bits, 32, scale_bytes=2, zero_bytes=2 * minimum, whole_groups=True)


def _kivi(name: str, bits: int) -> KVFormat:
    return KVFormat(
        name, bits, 32, scale_bytes=2, zero_bytes=2, k_group_tokens=32, grouped_name=True
    )


FORMATS: dict[str, KVFormat] = {
    f.name: f
    for f in (
        KVFormat("fp32", 32),
        KVFormat("fp16", 16),
        KVFormat("bf16", 16),
        KVFormat("fp8_e4m3", 8),
        KVFormat("fp8_e5m2", 8),
        # One fp16 scale per token and head, for K and for V each.
        KVFormat("int8", 8, group_elements=None, scale_bytes=2),
        # Groups along head_dim for K and V alike, an fp16 scale and an fp16 zero point each.
        KVFormat("int4", 4, 64, scale_bytes=2, zero_bytes=2, grouped_name=True),
        KVFormat("int2", 2, 64, scale_bytes=2, zero_bytes=2, grouped_name=True),
        # KIVI's split: K per channel. The last tokens, which KIVI keeps in fp16, are not modelled.
        _kivi("kivi4", 4),
        _kivi("kivi2", 2),
        KVFormat("nvfp4", 4, 16, scale_bytes=1),  # an e4m3 scale
        KVFormat("mxfp4", 4, 32, scale_bytes=1),  # an e8m0 scale
        _ggml("q8_0", 8),
        _ggml("q5_0", 5),
        _ggml("q5_1", 5, minimum=True),
        _ggml("q4_0", 4),
        _ggml("q4_1", 4, minimum=True),
        _ggml("iq4_nl", 4),
    )
}
MAX_GROUP = 4096


@lru_cache(maxsize=256)
def kv_format(name: str) -> KVFormat:
    """The format of that name; `int4-g32` is int4 in groups of 32. UserError with the known names."""
    found = FORMATS.get(name)
    if found is not None:
        return found
    base, _, group = name.partition("-g")
    known = FORMATS.get(base)
    if known is None or not known.grouped_name:
        hint = did_you_mean(name, FORMATS)
        raise UserError(
            f"unknown KV format '{short(name)}': {hint or 'one of'} "
            + (f"({', '.join(FORMATS)})" if hint else ", ".join(FORMATS))
        )
    if not (
        group.isascii() and group.isdigit() and len(group) < 5 and 1 <= int(group) <= MAX_GROUP
    ):
        raise UserError(f"KV format '{short(name)}': the group must be between 1 and {MAX_GROUP}")
    size = int(group)
    along_tokens = None if known.k_group_tokens is None else size
    return replace(known, name=f"{base}-g{size}", group_elements=size, k_group_tokens=along_tokens)
