"""What must hold of the bytes whatever the shape."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kvgauge.formats import FORMATS, KVFormat
from kvgauge.formula.capacity import longest_tokens, usable_bytes
from kvgauge.formula.engines import ENGINES
from kvgauge.formula.hardware import CARDS
from kvgauge.formula.held import Storage, held_bytes, marginal_bytes, request_bytes
from kvgauge.formula.plan import Plan, make_plan
from kvgauge.shapes.types import LayerShape, ModelShape, StatePart
from kvgauge.traces.types import Trace

FMT = st.sampled_from(list(FORMATS.values()))
BY_TOKEN = FMT.filter(lambda fmt: fmt.k_group_tokens is None)
BY_CHANNEL = FMT.filter(lambda fmt: fmt.k_group_tokens is not None)
DIM = st.integers(1, 8).map(lambda blocks: 32 * blocks)  # what every format takes
TOKENS = st.integers(0, 200_000)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Stacks of full and sliding layers with heads that divide by 8."""
    layers = []
    for _ in range(draw(st.integers(1, 6))):
        kv_heads = draw(st.sampled_from([8, 16, 32]))
        window = draw(st.none() | st.integers(1, 5000))
        layers.append(
            LayerShape(
                "sliding" if window else "full",
                kv_heads * draw(st.integers(1, 8)),
                kv_heads,
                draw(DIM),
                draw(DIM),
                window=window,
            )
        )
    return ModelShape("drawn", tuple(layers), 64, 100, None, None, "test")


@given(shapes(), TOKENS, BY_TOKEN)
def test_the_next_token_adds_the_marginal_bytes(shape: ModelShape, n: int, fmt: KVFormat) -> None:
    grown = request_bytes(shape, n + 1, fmt) - request_bytes(shape, n, fmt)
    assert grown == marginal_bytes(shape, n, fmt) >= 0


@given(DIM, DIM, st.integers(0, 5000), BY_CHANNEL)
def test_a_group_of_tokens_adds_their_marginal_bytes_and_costs_them_with_its_first(
    k_dim: int, v_dim: int, groups: int, fmt: KVFormat
) -> None:
    shape = ModelShape("one", (LayerShape("full", 8, 2, k_dim, v_dim),), 64, 100, None, None, "t")
    size = fmt.k_group_tokens or 1
    held = [request_bytes(shape, groups * size + n, fmt) for n in range(size + 1)]
    assert held[-1] - held[0] == size * marginal_bytes(shape, groups * size, fmt)
    channels = 2 * k_dim * 4  # scale and zero point of each, of two heads
    later = {b - a for a, b in pairwise(held[1:])}
    assert later == {held[1] - held[0] - channels}


@given(shapes(), TOKENS, FMT, st.integers(1, 512))
def test_pages_add_less_than_one_page_a_layer(
    shape: ModelShape, n: int, fmt: KVFormat, page_size: int
) -> None:
    page_size *= fmt.k_group_tokens or 1
    exact, paged = request_bytes(shape, n, fmt), request_bytes(shape, n, fmt, page_size)
    one_page = sum(
        page_size * layer.kv_heads * (fmt.row_bytes(layer.k_dim) + fmt.row_bytes(layer.v_dim))
        for layer in shape.layers
    )
    assert exact <= paged < exact + one_page


@given(shapes(), TOKENS, FMT, st.sampled_from([1, 2, 4, 8, 32, 64]))
def test_ranks_together_hold_no_less_than_the_whole(
    shape: ModelShape, n: int, fmt: KVFormat, tp: int
) -> None:
    heads = {layer.kv_heads for layer in shape.layers}
    if any((tp > h and tp % h) or (tp <= h and h % tp) for h in heads):
        return
    assert tp * request_bytes(shape, n, fmt, tensor_parallel=tp) >= request_bytes(shape, n, fmt)


@given(DIM, FMT, FMT)
def test_more_bits_are_never_fewer_bytes(dim: int, a: KVFormat, b: KVFormat) -> None:
    """Elements alone: in a row of one element a scale outweighs what int8 saves."""
    few, many = sorted((a, b), key=lambda f: f.bits)
    assert few.row_bytes(dim) - few.row_metadata_bytes(dim) <= many.row_bytes(dim)


@given(shapes(), st.integers(0, 20_000), FMT)
def test_windows_saturate(shape: ModelShape, n: int, fmt: KVFormat) -> None:
    windows = [layer.window for layer in shape.layers if layer.window]
    if len(windows) == len(shape.layers):
        beyond = max(windows)
        assert request_bytes(shape, beyond + n, fmt) == request_bytes(shape, beyond, fmt)


@st.composite
def mixed_shapes(draw: st.DrawFn) -> ModelShape:
    """Stacks of all kinds: heads, latents with and without indexer keys, states, shared layers."""
    kinds = [
        LayerShape("full", 16, 8, draw(DIM), draw(DIM)),
        LayerShape("sliding", 16, 8, 64, 64, window=draw(st.integers(1, 5000))),
        LayerShape("full", 16, 8, 64, 64, shared=True),
        LayerShape(
            "mla", 16, latent_dim=512, rope_dim=64, index_dim=draw(st.sampled_from([0, 128]))
        ),
        LayerShape("ssm", state=(StatePart("conv", draw(st.integers(0, 5000)), 16),)),
        LayerShape("none"),
    ]
    layers = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=12))
    params = draw(st.integers(1, 10**12))
    return ModelShape("mixed", tuple(layers), 64, 100, params, draw(st.integers(1, params)), "test")


@given(mixed_shapes(), TOKENS, st.integers(0, 5000), FMT, st.sampled_from([1, 2, 4, 8, 16]))
def test_bytes_grow_with_tokens_and_fall_with_ranks(
    shape: ModelShape, n: int, more: int, fmt: KVFormat, tp: int
) -> None:
    for engine in ENGINES.values():
        if engine.page_tokens and engine.page_tokens % (fmt.k_group_tokens or 1):
            continue
        whole, part = Storage(fmt, engine=engine), Storage(fmt, None, tp, engine)
        held = held_bytes(shape, n, part)
        assert held <= held_bytes(shape, n + more, part)
        assert held <= held_bytes(shape, n, whole) <= tp * held


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A mixed stack on some card."""
    fmt = draw(FMT)
    together = fmt.k_group_tokens
    return make_plan(
        draw(mixed_shapes()),
        Trace(draw(st.integers(0, 5000)), draw(TOKENS)),
        kv_format_name=fmt.name,
        weight_format=draw(st.sampled_from(["bf16", "fp8", "int4"])),
        batch=draw(st.integers(1, 300)),
        page_size=draw(st.none() | st.integers(1, 512).map(lambda n: n * (together or 1))),
        tensor_parallel=draw(st.sampled_from([1, 2, 8])),
        engine=draw(st.sampled_from(["hf"] if together else ["hf", "vllm"])),
        gpu=draw(st.sampled_from([card.name for card in CARDS])),
        utilization=draw(st.floats(0.01, 1.0)),
        reserve_bytes=draw(st.integers(0, 10**11)),
    )


@given(plans())
def test_the_ledger_sums_to_the_card_and_the_cache_in_it_to_the_formula(plan: Plan) -> None:
    lines = {line.name: line.bytes for line in plan.ledger.lines}
    assert sum(lines.values()) == plan.ledger.total_bytes == plan.gpu_bytes
    not_cache = ("weights", "reserve", "left alone", "free", "short")
    cache = sum(size for name, size in lines.items() if not name.startswith(not_cache))
    assert cache == plan.batch * plan.kv_bytes_per_gpu
    assert all(size > 0 for name, size in lines.items() if not name.startswith("short"))


@given(plans())
def test_what_fits_never_exceeds_the_card(plan: Plan) -> None:
    assert plan.gpu_bytes is not None
    assert plan.weight_bytes_per_gpu is not None
    if plan.max_concurrent_requests:
        held = plan.max_concurrent_requests * plan.kv_bytes_per_gpu
        used = held + plan.weight_bytes_per_gpu + plan.reserve_bytes
        usable = usable_bytes(plan.gpu_bytes, plan.utilization)
        assert used <= usable <= plan.gpu_bytes
        assert used + plan.kv_bytes_per_gpu > usable  # and not one more
    assert plan.decode is not None
    assert plan.decode.floor_s is not None
    assert plan.decode.floor_s > 0


@given(mixed_shapes(), FMT, st.integers(0, 10**10), st.integers(1, 64))
def test_the_longest_trace_fits_and_one_token_more_does_not(
    shape: ModelShape, fmt: KVFormat, available: int, batch: int
) -> None:
    storage = Storage(fmt)
    longest = longest_tokens(shape, storage, available, batch)
    if longest is None:
        assert batch * held_bytes(shape, 10**9, storage) <= available
    else:
        if longest:
            assert batch * held_bytes(shape, longest, storage) <= available
        assert batch * held_bytes(shape, longest + 1, storage) > available
