"""The numbers that stored bytes stand for, made in registers: in Triton's language.

A row of one byte an element or less is loaded as words of 32 bits: so its loads stay 128 bits wide,
whatever layout the product wants of the numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def int8_numbers(words, DIM: tl.constexpr):
    """int32 `[n, DIM / 4]` to the four signed bytes of each word: `[n, DIM]`."""
    signed = (words[:, :, None] << (24 - 8 * tl.arange(0, 4))) >> 24
    return tl.reshape(signed, [words.shape[0], DIM])


@triton.jit
def fp8_bytes(words, DIM: tl.constexpr):
    """int32 `[n, DIM / 4]` to the four bytes of each word, 0 to 255: `[n, DIM]`."""
    return tl.reshape((words[:, :, None] >> (8 * tl.arange(0, 4))) & 0xFF, [words.shape[0], DIM])


@triton.jit
def fp8_numbers(codes, MANTISSA: tl.constexpr):
    """fp8 codes as fp16, exactly, by shifts alone: sm_80 and 86 have no instruction for e4m3.

    A NaN of e4m3 reads as 480; no cache that was quantized from numbers holds one.
    """
    bits = codes.to(tl.uint16)
    if MANTISSA == 2:  # e5m2 is the upper half of an fp16
        return (bits << 8).to(tl.float16, bitcast=True)
    moved = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
    return moved.to(tl.float16, bitcast=True) * 256.0  # the exponent's bias: 15, where e4m3 has 7


@triton.jit
def grouped_numbers(
    words,  # int32 [n, DIM * BITS / 32]
    scale,  # fp16 [n, PARTS]
    zero,
    BITS: tl.constexpr,
    DIM: tl.constexpr,
    PARTS: tl.constexpr,
    dtype: tl.constexpr,
):
    """Codes of a few bits, `code * scale + zero`, as fp16 where that is `dtype`, else as fp32: `[n, DIM]`."""
    shifts = BITS * tl.arange(0, 32 // BITS)
    codes = (words[:, :, None] >> shifts) & ((1 << BITS) - 1)
    # A small integer in the lowest bits of a mantissa is a number without a conversion instruction.
    if dtype == tl.float16:
        numbers = (codes | 0x6400).to(tl.uint16).to(tl.float16, bitcast=True) - 1024.0
    else:
        numbers = (codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
    parts = tl.reshape(numbers, [words.shape[0], PARTS, DIM // PARTS])
    parts = parts * scale.to(parts.dtype)[:, :, None] + zero.to(parts.dtype)[:, :, None]
    return tl.reshape(parts, [words.shape[0], DIM])
