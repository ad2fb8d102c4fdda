"""Sizes of the formats against real packed tensors and against ggml's own table."""

from __future__ import annotations

import pytest
import torch

from kvgauge.errors import UserError
from kvgauge.formats import FORMATS, kv_format

TOKENS, HEADS, HEAD_DIM = 3, 2, 128
GGML = ("q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl")


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def packed(bits: int) -> torch.Tensor:
    """Codes of `bits` packed into bytes along head_dim, as a kernel would store them."""
    codes = torch.randint(0, 1 << bits, (TOKENS, HEADS, HEAD_DIM), dtype=torch.uint8)
    many = 8 // bits
    shifts = bits * torch.arange(many)
    return (codes.reshape(TOKENS, HEADS, -1, many) << shifts).sum(-1).to(torch.uint8)


def metadata(group: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(TOKENS, HEADS, HEAD_DIM // group, dtype=dtype)


def test_formats_equal_real_tensors() -> None:
    plain = torch.empty(TOKENS, HEADS, HEAD_DIM)
    real = {
        "fp32": nbytes(plain),
        "fp16": nbytes(plain.half()),
        "bf16": nbytes(plain.bfloat16()),
        "fp8_e4m3": nbytes(plain.to(torch.float8_e4m3fn)),
        "fp8_e5m2": nbytes(plain.to(torch.float8_e5m2)),
        "int8": nbytes(plain.to(torch.int8), metadata(HEAD_DIM, torch.float16)),
        "int4": nbytes(packed(4), metadata(64, torch.float16), metadata(64, torch.float16)),
        "int4-g32": nbytes(packed(4), metadata(32, torch.float16), metadata(32, torch.float16)),
        "int2": nbytes(packed(2), metadata(64, torch.float16), metadata(64, torch.float16)),
        "nvfp4": nbytes(packed(4), metadata(16, torch.float8_e4m3fn)),
        "mxfp4": nbytes(packed(4), metadata(32, torch.float8_e8m0fnu)),
    }
    rows = TOKENS * HEADS
    assert {name: rows * kv_format(name).row_bytes(HEAD_DIM) for name in real} == real
    assert set(FORMATS) == (set(real) - {"int4-g32"}) | set(GGML) | {"kivi4", "kivi2"}


@pytest.mark.parametrize(("name", "bits", "group"), [("kivi4", 4, 32), ("kivi2-g64", 2, 64)])
@pytest.mark.parametrize("groups", [1, 3])
def test_k_per_channel_equals_real_tensors(name: str, bits: int, group: int, groups: int) -> None:
    tokens = groups * group
    codes = torch.empty(tokens, HEAD_DIM * bits // 8, dtype=torch.uint8)
    k_side = torch.empty(groups, HEAD_DIM, dtype=torch.float16)
    v_side = torch.empty(tokens, HEAD_DIM // group, dtype=torch.float16)
    fmt = kv_format(name)
    k_row = fmt.row_element_bytes(HEAD_DIM) + fmt.k_row_metadata_bytes(HEAD_DIM)
    assert tokens * k_row == nbytes(codes, k_side, k_side)
    assert tokens * fmt.row_bytes(HEAD_DIM) == nbytes(codes, v_side, v_side)
    assert [fmt.k_whole_groups(n) for n in (1, group, group + 1)] == [group, group, 2 * group]


def test_k_per_channel_wants_whole_bytes_a_token() -> None:
    with pytest.raises(UserError, match=r"96 tokens share 320 bytes .* of 80 channels"):
        kv_format("kivi4-g96").k_row_metadata_bytes(80)


@pytest.mark.parametrize("name", GGML)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256, 576])
def test_ggml_formats_equal_ggmls_table(name: str, head_dim: int) -> None:
    gguf = pytest.importorskip("gguf")
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    assert kv_format(name).row_bytes(head_dim) == head_dim // block * size


@pytest.mark.parametrize(
    ("name", "block", "size"),
    [("q8_0", 32, 34), ("q5_0", 32, 22), ("q5_1", 32, 24), ("q4_0", 32, 18), ("q4_1", 32, 20),
     ("iq4_nl", 32, 18), ("nvfp4", 16, 9), ("mxfp4", 32, 17)],
)  # fmt: skip
def test_bytes_of_one_block(name: str, block: int, size: int) -> None:
    assert kv_format(name).row_bytes(block) == size


@pytest.mark.parametrize("name", GGML)
def test_ggml_refuses_a_head_that_its_blocks_do_not_divide(name: str) -> None:
    with pytest.raises(UserError, match="do not divide a row of 80"):
        kv_format(name).row_bytes(80)


def test_elsewhere_a_last_group_costs_a_whole_one() -> None:
    assert kv_format("int4").row_bytes(80) == 40 + 2 * 4
    assert kv_format("nvfp4").row_bytes(17) == 9 + 2


@pytest.mark.parametrize(
    "name", ["int4-g0", "int4-g", "int4-g99999", "int8-g32", "fp16-g2", "-g", ""]
)
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="KV format"):
        kv_format(name)
