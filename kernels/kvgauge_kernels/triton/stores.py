"""append_row: one new row of K or V, quantized and written behind each sequence's last: in Triton's language.

By the arithmetic of `quantize`, step for step in fp32 with divisions rounded once, so that the bytes are
those of a CPU: scales and zero points rounded to fp16 first, halves rounded to the even number. (On a GPU
torch multiplies by 1/127 where it says divide: there a scale may be the next fp16 number.)
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def half_to_even(x):
    """fp32 to the nearest integers, which are below 2^22; halves to the even one."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def fp8_codes(numbers, MANTISSA: tl.constexpr):
    """fp32 to fp8 codes as torch rounds them; past the largest to that (e4m3) or to infinity (e5m2).

    So torch 2.13 has it; earlier ones make a NaN of what is past e4m3's largest.
    """
    BIAS: tl.constexpr = 7 if MANTISSA == 3 else 15
    SHIFT: tl.constexpr = 23 - MANTISSA
    SMALL: tl.constexpr = (128 - BIAS) << 23  # the least normal number
    ALIGN: tl.constexpr = (128 - BIAS + SHIFT) << 23  # its last bit is that of the smallest numbers
    bits = numbers.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    bits = bits & 0x7FFFFFFF
    normal = bits - ((127 - BIAS) << 23) + ((1 << (SHIFT - 1)) - 1) + ((bits >> SHIFT) & 1)
    align = tl.full(bits.shape, ALIGN, tl.int32)
    small = bits.to(tl.float32, bitcast=True) + align.to(tl.float32, bitcast=True)
    codes = tl.where(bits < SMALL, small.to(tl.int32, bitcast=True) - align, normal >> SHIFT)
    LARGEST: tl.constexpr = 0x7E if MANTISSA == 3 else 0x7C  # 448, infinity
    codes = tl.minimum(codes, LARGEST)
    codes = tl.where(bits > 0x7F800000, 0x7F, codes)
    return (codes | sign).to(tl.uint8)


@triton.jit(
    do_not_specialize=[
        "tokens", "new_batch_stride", "new_head_stride", "outer_stride", "head_stride", "token_stride",
        "side_outer_stride", "side_head_stride", "side_token_stride", "table_stride",
    ]
)  # fmt: skip
def append_row(
    new,  # [batch, kv_heads, DIM] fp32, fp16 or bf16
    rows,  # out: [batch, kv_heads, tokens, ...] as the format stores it, or pages; fp8 and codes as uint8
    scale,  # out: fp16 as the format has it, or None
    zero,  # out: of the strides of scale, or None
    table,  # int32 [batch, max_pages], or None: contiguous
    lengths,  # int32 [batch], or None: every sequence has `tokens`
    tokens,
    new_batch_stride, new_head_stride,
    outer_stride, head_stride, token_stride,
    side_outer_stride, side_head_stride, side_token_stride,
    table_stride,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,  # the next power of two
    BITS: tl.constexpr,  # of a code
    GROUP: tl.constexpr,  # elements to one scale and zero, a power of two; 0 where there are no groups
    FP8_MANTISSA: tl.constexpr,  # bits, 0 where the cache is not fp8
    PAGE: tl.constexpr,  # tokens a page, 0 where contiguous
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    outer = tl.program_id(1).to(tl.int64)
    position = tokens
    if lengths is not None:
        position = tl.load(lengths + outer)
    new += outer * new_batch_stride + head * new_head_stride
    if PAGE > 0:
        outer = tl.load(table + outer * table_stride + position // PAGE).to(tl.int64)
        position = position % PAGE
    place = tl.cast(position, tl.int64)
    rows += outer * outer_stride + head * head_stride + place * token_stride
    side = outer * side_outer_stride + head * side_head_stride + place * side_token_stride
    columns = tl.arange(0, PADDED)
    if GROUP > 0:
        GROUPS: tl.constexpr = PADDED // GROUP if PADDED > GROUP else 1
        PER_BYTE: tl.constexpr = 8 // BITS
        LEVELS: tl.constexpr = (1 << BITS) - 1
        # Beyond the row its last element: what is last in a group changes neither end of it.
        numbers = tl.load(new + tl.minimum(columns, DIM - 1)).to(tl.float32)
        numbers = tl.reshape(numbers, [GROUPS, PADDED // GROUPS])
        low = tl.min(numbers, 1).to(tl.float16)
        step = tl.div_rn(
            tl.max(numbers, 1) - low.to(tl.float32), tl.full([GROUPS], LEVELS, tl.float32)
        )
        step = step.to(tl.float16)
        step = tl.where(step == 0.0, 1.0, step).to(tl.float16)
        above = numbers - low.to(tl.float32)[:, None]
        steps = tl.broadcast_to(step.to(tl.float32)[:, None], above.shape)
        codes = tl.minimum(tl.maximum(half_to_even(tl.div_rn(above, steps)), 0.0), LEVELS)
        codes = tl.reshape(codes.to(tl.int32), [PADDED // PER_BYTE, PER_BYTE])
        packed = tl.sum(codes << (BITS * tl.arange(0, PER_BYTE)), 1)
        at = tl.arange(0, PADDED // PER_BYTE)
        tl.store(rows + at, packed.to(tl.uint8), mask=at < DIM // PER_BYTE)
        groups = tl.arange(0, GROUPS)
        there = groups < tl.cdiv(DIM, GROUP)
        tl.store(scale + side + groups, step, mask=there)
        tl.store(zero + side + groups, low, mask=there)
    else:
        in_row = columns < DIM
        numbers = tl.load(new + columns, mask=in_row, other=0.0)
        if FP8_MANTISSA > 0:
            tl.store(rows + columns, fp8_codes(numbers.to(tl.float32), FP8_MANTISSA), mask=in_row)
        elif scale is None:
            tl.store(rows + columns, numbers.to(rows.dtype.element_ty), mask=in_row)
        else:
            numbers = numbers.to(tl.float32)
            step = tl.div_rn(tl.max(tl.abs(numbers), 0), 127.0).to(tl.float16)
            step = tl.where(step == 0.0, 1.0, step).to(tl.float16)
            steps = tl.full([PADDED], 1.0, tl.float32) * step.to(tl.float32)
            codes = half_to_even(tl.div_rn(numbers, steps))
            codes = tl.minimum(tl.maximum(codes, -127.0), 127.0)
            tl.store(rows + columns, codes.to(tl.int8), mask=in_row)
            tl.store(scale + side, step)
