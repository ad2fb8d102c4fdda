"""KVFormat: what a cache element costs, metadata and padding included, in exact integers."""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.errors import UserError


@dataclass(frozen=True, slots=True)
class KVFormat:
    """One way of storing K and V.

    Elements are stored in groups of `group_elements` along head_dim, each group with `scale_bytes`
    and `zero_bytes` of metadata. `group_elements` None means one group a row: a row is the
    head_dim elements of one token and one head.
    """

    name: str
    bits: int
    group_elements: int | None = None
    scale_bytes: int = 0
    zero_bytes: int = 0

    @property
    def quantized(self) -> bool:
        """Whether elements carry scales, so that a plain attention kernel cannot read them."""
        return self.scale_bytes > 0

    def row_bytes(self, elements: int) -> int:
        """Bytes of one row of `elements` (one token, one head): packed elements and metadata."""
        data_bytes = (elements * self.bits + 7) // 8
        return data_bytes + self.row_metadata_bytes(elements)

    def row_metadata_bytes(self, elements: int) -> int:
        """The scales and zero points of one row; a last group that is not full costs a whole one."""
        if not self.scale_bytes or elements == 0:
            return 0
        per_group = self.scale_bytes + self.zero_bytes
        groups = -(-elements // self.group_elements) if self.group_elements else 1
        return groups * per_group


FORMATS: dict[str, KVFormat] = {
    f.name: f
    for f in (
        KVFormat("fp32", 32),
        KVFormat("fp16", 16),
        KVFormat("bf16", 16),
        # One fp16 scale per token and head, for K and for V each.
        KVFormat("int8", 8, group_elements=None, scale_bytes=2),
    )
}


def kv_format(name: str) -> KVFormat:
    """The format of that name; raises UserError with the known names."""
    try:
        return FORMATS[name]
    except KeyError:
        raise UserError(f"unknown KV format {name!r}: one of {', '.join(FORMATS)}") from None
