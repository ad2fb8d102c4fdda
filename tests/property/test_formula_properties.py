"""What must hold of the bytes whatever the shape."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvgauge.formats import FORMATS, KVFormat
from kvgauge.formula.held import marginal_bytes, request_bytes
from kvgauge.shapes.types import LayerShape, ModelShape

FMT = st.sampled_from(list(FORMATS.values()))
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
                draw(st.integers(1, 256)),
                draw(st.integers(1, 256)),
                window=window,
            )
        )
    return ModelShape("drawn", tuple(layers), 64, 100, None, None, "test")


@given(shapes(), TOKENS, FMT)
def test_the_next_token_adds_the_marginal_bytes(shape: ModelShape, n: int, fmt: KVFormat) -> None:
    grown = request_bytes(shape, n + 1, fmt) - request_bytes(shape, n, fmt)
    assert grown == marginal_bytes(shape, n, fmt) >= 0


@given(shapes(), TOKENS, FMT, st.integers(1, 512))
def test_pages_add_less_than_one_page_a_layer(
    shape: ModelShape, n: int, fmt: KVFormat, page_size: int
) -> None:
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


@given(st.integers(1, 512), FMT, FMT)
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
