"""How formats store numbers: the packing of codes bit by bit, and the numbers that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge_kernels.stored import (
    is_stored,
    numbers,
    numbers_of_k,
    packed,
    stored_as,
    unpacked,
)


@given(st.sampled_from([2, 4]), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_code_i_lies_at_bit_i_times_bits(bits: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (3, count * 8 // bits), dtype=np.uint8)
    rows = packed(torch.from_numpy(codes), bits)
    for row, own in zip(rows.numpy(), codes, strict=True):
        whole = int.from_bytes(row.tobytes(), "little")
        assert [whole >> bits * i & 2**bits - 1 for i in range(len(own))] == own.tolist()
    assert unpacked(rows, bits).numpy().tolist() == codes.tolist()


def test_a_row_in_groups_worked_out_by_hand() -> None:
    rows = torch.tensor([[0x10, 0x32, 0xF4, 0x00]], dtype=torch.uint8)
    scale, zero = torch.tensor([[2.0, 0.5]]).half(), torch.tensor([[-1.0, 3.0]]).half()
    found = numbers(rows, scale, zero, "int4-g5", torch.float64)  # the last group has 3 elements
    assert found.tolist() == [[-1.0, 1.0, 3.0, 5.0, 7.0, 10.5, 3.0, 3.0]]


def test_keys_per_channel_worked_out_by_hand() -> None:
    rows = torch.tensor([[0x21], [0x43], [0xF0]], dtype=torch.uint8)  # 3 tokens of 2 channels
    scale = torch.tensor([[2.0, 0.5], [4.0, 1.0]]).half()  # 2 tokens to a group; the last has 1
    zero = torch.tensor([[-1.0, 3.0], [0.0, 10.0]]).half()
    found = numbers_of_k(rows, scale, zero, "kivi4-g2", torch.float64)
    assert found.tolist() == [[1.0, 4.0], [5.0, 5.0], [0.0, 25.0]]
    by_token = numbers(
        rows, scale[:1, :1].expand(3, 1), zero[:1, :1].expand(3, 1), "kivi4-g2", torch.float64
    )
    assert by_token.tolist() == [[1.0, 3.0], [5.0, 7.0], [-1.0, 29.0]]
    with pytest.raises(ValueError, match="kivi4-g2 lacks its scales or zero points"):
        numbers_of_k(rows, scale, None, "kivi4-g2", torch.float64)


def test_eight_bits_of_a_float() -> None:
    rows = torch.tensor([0x38, 0xB8, 0x01, 0x7E], dtype=torch.uint8)
    found = numbers(rows.view(torch.float8_e4m3fn), None, None, "fp8_e4m3", torch.float64)
    assert found.tolist() == [1.0, -1.0, 2.0**-9, 448.0]
    found = numbers(rows.view(torch.float8_e5m2), None, None, "fp8_e5m2", torch.float64)
    assert found[:3].tolist() == [0.5, -0.5, 2.0**-16]
    assert found[3].isnan()


@pytest.mark.parametrize("name", ["int4-g0", "int4-g064", "int4-g", "int8-g64", "q8_0", "", "int3"])
def test_what_no_cache_is_in(name: str) -> None:
    assert not is_stored(name)
    with pytest.raises(ValueError, match="no cache of format"):
        stored_as(name)


@pytest.mark.parametrize(("fmt", "scale"), [("int8", None), ("int4", torch.ones(1, 1).half())])
def test_missing_scales_or_zeros(fmt: str, scale: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match=f"{fmt} lacks its scales or zero points"):
        numbers(torch.zeros(1, 32, dtype=stored_as(fmt).dtype), scale, None, fmt, torch.float32)
