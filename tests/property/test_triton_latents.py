"""MLA's latents by the Triton kernels under Triton's interpreter, against the oracle in float64.

Runs in the process that test_triton_against_oracle starts.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels_for_tests import assert_right_kernel, error, observed
from kvgauge_kernels import BACKENDS, KVView, oracle_decode
from kvgauge_kernels.mla import latent_query, latent_view
from kvgauge_kernels.parts import merged, shared_prefix_decode
from kvgauge_kernels.triton import launch
from kvgauge_kernels.triton.backend import TritonBackend
from kvgauge_kernels.triton.configs import SHARED_BYTES, Room
from kvgauge_kernels.triton.launch import Processor
from parts_for_tests import cut
from triton_for_tests import (
    TritonCase,
    inside,
    needs_triton,
    new_interpreter,
    one_latent_case,
)
from walls_for_tests import before_a_wall

pytestmark = [needs_triton, new_interpreter, inside]
TRITON = TritonBackend()
MAX_ERROR = {torch.float16: 1.5e-3, torch.bfloat16: 1.6e-2}
ONE = one_latent_case()
BF16 = replace(ONE, fmt="bf16", q_dtype=torch.bfloat16)


def check(case: TritonCase) -> None:
    view, q = case.latents(), case.query()
    assert TRITON.supports(view, q.dtype) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "processor", lambda _device: case.processor)
        out, seen = observed(lambda: TRITON.decode(q, view))
    assert launch._last_kernel == "split_decode_latents"
    assert_right_kernel(BACKENDS["triton"], seen)
    assert out.dtype == q.dtype
    assert out.shape == (view.batch, q.shape[1], view.v_dim)
    assert error(out, oracle_decode(q, view)) <= MAX_ERROR[q.dtype]


@pytest.mark.parametrize("page_size", [None, 1, 16, 24, 64])
@pytest.mark.parametrize("case", [ONE, BF16], ids=["fp16", "bf16"])
def test_every_layout(case: TritonCase, page_size: int | None) -> None:
    check(replace(case, page_size=page_size))


@pytest.mark.parametrize("capability", sorted(SHARED_BYTES))
def test_every_shape(capability: int) -> None:
    check(replace(ONE, processor=Processor(1, Room(SHARED_BYTES[capability]))))
    check(replace(BF16, page_size=16, processor=Processor(1, Room(SHARED_BYTES[capability]))))


def test_the_shape_of_amd() -> None:
    check(replace(ONE, processor=Processor(2, Room(65_536, "hip"))))


@pytest.mark.parametrize("group", [1, 16, 128])
def test_groups_beside_and_above_the_rows_of_a_product(group: int) -> None:
    check(replace(ONE, group=group))


@pytest.mark.parametrize("lengths", [None, (1,), (32, 33), (1, 131, 64)])
def test_splits_do_not_show(lengths: tuple[int, ...] | None) -> None:
    check(replace(ONE, lengths=lengths, processor=replace(ONE.processor, multiprocessors=50)))


def test_more_splits_than_the_merge_takes_at_once() -> None:
    processor = replace(ONE.processor, multiprocessors=200)
    check(replace(ONE, lengths=(900, 90), room=900, processor=processor))


def test_heads_rows_and_queries_that_lie_apart() -> None:
    check(replace(ONE, kv_heads=2, group=3, tokens_first=True, apart=16))


def test_scores_far_from_zero_neither_overflow_nor_vanish() -> None:
    view, q = ONE.latents(), ONE.query()
    for factor in (-30.0, 30.0):
        out = TRITON.decode(q * factor, view)
        assert error(out, oracle_decode(q * factor, view)) <= MAX_ERROR[q.dtype]


@pytest.mark.parametrize("multiprocessors", [1, 50])
def test_scores_of_minus_infinity_weigh_nothing(multiprocessors: int) -> None:
    view, q = replace(ONE, lengths=None).latents(), ONE.query().abs()
    k = view.k.clone()
    k[:, :, :90, 540] = float("-inf")  # whole blocks come first; V are the first 512
    few = replace(view, k=k, v=k[..., :512])
    with pytest.MonkeyPatch.context() as patch:
        processor = replace(ONE.processor, multiprocessors=multiprocessors)
        patch.setattr(launch, "processor", lambda _device: processor)
        assert error(TRITON.decode(q, few), oracle_decode(q, few)) <= MAX_ERROR[q.dtype]


def test_nothing_behind_a_cache_is_read() -> None:
    view = replace(ONE, lengths=None, room=70).latents()
    k = before_a_wall(view.k)
    walled = replace(view, k=k, v=k[..., :512])
    q = ONE.query()
    assert error(TRITON.decode(q, walled), oracle_decode(q, view)) <= MAX_ERROR[q.dtype]


def test_the_view_and_the_query_that_a_model_makes() -> None:
    """`mla.latent_view` and `latent_query`, scored as DeepSeek-V3 scores its heads of 192."""
    generator = torch.Generator().manual_seed(2)
    latent = torch.randn(2, 50, 576, generator=generator).half()
    q_latent, q_rope = (torch.randn(2, 16, n, generator=generator).half() for n in (512, 64))
    view = latent_view(latent, 512, "fp16")
    out = TRITON.decode(latent_query(q_latent, q_rope, 192), view)
    rows = latent.double()
    scores = torch.einsum("bhd,btd->bht", torch.cat([q_latent, q_rope], -1).double(), rows)
    expected = torch.einsum("bht,btd->bhd", (scores / 192**0.5).softmax(-1), rows[..., :512])
    assert error(out, expected) <= 4e-3  # the scaled query is rounded to fp16 once more


def test_parts_merged_are_the_whole() -> None:
    view, q = replace(ONE, lengths=None).latents(), ONE.query()
    parts = [TRITON.decode_part(q, _shared(cut(view, *s))) for s in ((0, 65), (65, 131))]
    assert all(x.dtype == torch.float32 for part in parts for x in part)
    assert error(merged(parts)[0], oracle_decode(q, view)) <= MAX_ERROR[q.dtype]


def test_a_prefix_that_forks_share() -> None:
    whole = replace(ONE, lengths=None).latents()
    rows = torch.cat([whole.k[:1, :, :100].expand(2, -1, -1, -1), whole.k[:, :, 100:]], dim=2)
    every = KVView(rows, rows[..., :512], "fp16")
    q = ONE.query()
    prefix = _shared(replace(every, k=rows[:1, :, :100], v=rows[:1, :, :100, :512]))
    own = _shared(replace(every, k=rows[:, :, 100:], v=rows[:, :, 100:, :512]))
    out = shared_prefix_decode(q, prefix, own, TRITON)
    assert error(out, oracle_decode(q, every)) <= MAX_ERROR[q.dtype]


def _shared(view: KVView) -> KVView:
    """V in K's rows again, whatever was copied."""
    k = view.k.contiguous()
    return replace(view, k=k, v=k[..., :512])


def test_the_operator_refuses_what_the_kernel_would_misread() -> None:
    view, q = ONE.latents(), ONE.query()
    rest = (None, None, None, None, None, list(view.lengths or ()), "fp16")
    with pytest.raises(ValueError, match="where V is no part of K"):
        torch.ops.kvgauge.triton_decode(q, view.k, view.v.clone(), *rest, None, 0)
    with pytest.raises(ValueError, match="a sliding window over latents"):
        torch.ops.kvgauge.triton_decode(q, view.k, view.v, *rest, 9, 0)
