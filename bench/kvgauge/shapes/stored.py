"""Notes on how a checkpoint is stored, as its config.json says: nothing is counted from them."""

from __future__ import annotations

from kvgauge.errors import short
from kvgauge.shapes.fields import Fields, Json

# By `quant_method`: the weight format that counts it.
_FORMATS = {"fbgemm_fp8": "fp8", "fp8": "fp8", "mxfp4": "mxfp4"}
_GROUPED = frozenset({"awq", "gptq"})
_QUANTIZATION = ("quantization_config", "compression_config")
_DTYPE = ("dtype", "torch_dtype")


def notes(objects: list[Fields]) -> list[str]:
    """Of the config and of the decoder in it, each said once."""
    said: dict[str, None] = {}
    for values in (fields.values for fields in objects):
        for config in map(values.get, _QUANTIZATION):
            if isinstance(config, dict):
                said.update(dict.fromkeys(_quantization(config)))
        for name in _DTYPE:
            if values.get(name) == "float32":
                said[f"{name} float32: --weight-format fp32 counts a checkpoint stored so"] = None
    return list(said)


def _quantization(config: Json) -> list[str]:
    method = config.get("quant_method")
    name = short(method, 40) if isinstance(method, str) else "quantized, by a method not named"
    found = _FORMATS.get(name)
    if name in _GROUPED and config.get("bits", config.get("w_bit")) == 4:
        found = "int4"
    said = [
        f"the checkpoint is stored as {name}: --weight-format {found} counts it"
        if found
        else f"the checkpoint is stored as {name}: give the --weight-format that comes near it"
    ]
    scheme = config.get("kv_cache_scheme")
    if scheme:
        said.append(
            f"kv_cache_scheme={short(scheme, 80)}: the checkpoint asks for a KV cache in a format of "
            "its own, which is not taken from here"
        )
    return said
