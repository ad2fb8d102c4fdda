"""Bytes of weights: a bit width and the metadata of its groups over all parameters alike.

A quantized checkpoint usually leaves embeddings, norms and the output head at 16 bits; here they are
counted in the one format, so that a real one is somewhat larger.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.errors import UserError, short


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """`bits` an element and, for each `group` of them, `group_bits` of metadata."""

    name: str
    bits: int
    group: int | None = None
    group_bits: int = 0
    says: str = ""

    def bytes_of(self, params: int) -> int:
        """Bytes of `params` weights, metadata included, rounded up."""
        groups = -(-params // self.group) if self.group else 0
        return -(-(params * self.bits + groups * self.group_bits) // 8)


WEIGHT_FORMATS: dict[str, WeightFormat] = {
    f.name: f
    for f in (
        WeightFormat("fp32", 32),
        WeightFormat("fp16", 16),
        WeightFormat("bf16", 16),
        WeightFormat(
            "fp8", 8, says="scales (one a tensor, or one a block of 128 x 128) not counted"
        ),
        WeightFormat("int8", 8, says="scales (one fp16 an output channel) not counted"),
        # AutoGPTQ's and AutoAWQ's files: an fp16 scale and a packed 4-bit zero point a group.
        WeightFormat("int4", 4, 128, 20, "groups of 128 with an fp16 scale and a 4-bit zero point"),
        WeightFormat("mxfp4", 4, 32, 8, "groups of 32 with an 8-bit scale"),
        WeightFormat("nvfp4", 4, 16, 8, "groups of 16 with an 8-bit scale"),
    )
}


def weight_format(name: str) -> WeightFormat:
    """The format of that name; raises UserError with the known names."""
    found = WEIGHT_FORMATS.get(name)
    if found is None:
        raise UserError(
            f"unknown weight format '{short(name)}': one of {', '.join(WEIGHT_FORMATS)}"
        )
    return found
