"""Broken configurations, GGUF headers and logs: a result or UserError may come, nothing else.

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.fuzz_readers MODELS [--inputs N] [--seed S]
[--out FILE]

Each input is a real or written one, changed at random by a seeded generator; the same seed, folder
and checkout make the same inputs. The hostile set is read one by one, each in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaigns.read_hostile import peak_mb
from gguf_for_tests import ARRAY, LLAMA, LLAMA_TENSORS, TEXT, gguf, text
from kvgauge.audit.context import Options
from kvgauge.audit.judge import audit_text
from kvgauge.errors import UnsupportedLayout, UserError
from kvgauge.formats import FORMATS
from kvgauge.formula.held import Storage, held_bytes
from kvgauge.shapes.gguf import read_gguf
from kvgauge.shapes.gguf_layouts import ARCHITECTURES
from kvgauge.shapes.hf import READERS, read_config
from kvgauge.shapes.types import MAX_LAYERS, ModelShape
from property.test_audit_fuzz import LINES, SAMPLES, SHAPES, WORDS
from property.test_shapes_fuzz import BASE, MORE

BF16 = Storage(FORMATS["bf16"])
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 127, 2**31, 2**63, 10**9, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "0", "full_attention", "x" * 300, "\x00", "\ud800", "\u202e", [], [[]], {}, {"a": 1},
    [0], [1, 0], ["full_attention"], ["sliding_attention", None], [2**40] * 3, {"1": {"head_dim": 8}},
    MAX_LAYERS + 1,
)  # fmt: skip
COUNTS = (0, 1, 2**7, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
Read = Callable[[bytes, Path], object]
Input = tuple[str, bytes]


def configs(rng: random.Random, real: list[dict[str, Any]]) -> bytes:
    """A configuration with a few fields changed; one in eight is torn as bytes too."""
    if real and rng.random() < 0.6:
        made: dict[str, Any] = copy.deepcopy(rng.choice(real))
    else:
        made = {"model_type": rng.choice(sorted(READERS)), **copy.deepcopy(BASE)}
        for name in rng.sample(sorted(MORE), rng.randrange(len(MORE))):
            made[name] = copy.deepcopy(MORE[name])
        if rng.random() < 0.5:
            made.pop("layer_types")
    for _ in range(rng.randrange(1, 5)):
        _change(rng, rng.choice(_objects(made)), real)
    data = json.dumps(made).encode("utf-8", "surrogatepass")
    return _torn(rng, data) if rng.random() < 0.125 else data


def _objects(value: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [each for item in value.values() if isinstance(item, dict) for each in _objects(item)]
    return [value, *inner]


def _change(rng: random.Random, target: dict[str, Any], real: list[dict[str, Any]]) -> None:
    names = sorted(target) or ["x"]
    name, way = rng.choice(names), rng.randrange(6)
    if way == 0:
        target.pop(name, None)
    elif way == 1:
        target[rng.choice(sorted({**BASE, **MORE}))] = copy.deepcopy(rng.choice(ODD))
    elif way == 2 and real:
        donor = rng.choice(real)
        taken = rng.choice(sorted(donor))
        target[taken] = copy.deepcopy(donor[taken])
    elif way == 3 and isinstance(target.get(name), list):
        changed = list(target[name])
        changed[rng.randrange(len(changed) + 1) :] = [copy.deepcopy(rng.choice(ODD))]
        target[name] = changed
    elif way == 4 and type(target.get(name)) is int:
        target[name] = (
            target[name] + rng.choice((-1, 1, 10**6)) if rng.random() < 0.5 else -target[name]
        )
    else:
        target[name] = copy.deepcopy(rng.choice(ODD))


def _torn(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)
    for _ in range(rng.randrange(5)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def headers(rng: random.Random) -> bytes:
    """A GGUF file of any known architecture, its keys, lengths or bytes changed."""
    arch = rng.choice(sorted(ARCHITECTURES))
    metadata: dict[str, object] = {"general.architecture": arch}
    for key, item in LLAMA.items():
        if key.startswith("llama."):
            metadata[key.replace("llama", arch, 1)] = item
    more: dict[str, object] = {
        "attention.key_length": 8, "attention.value_length": 8, "attention.sliding_window": 32,
        "attention.kv_lora_rank": 16, "rope.dimension_count": 4, "ssm.inner_size": 64,
        "ssm.state_size": 8, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.conv_kernel": 4,
        "expert_count": 4, "expert_used_count": 2, "full_attention_interval": 2,
        "attention.head_count_kv": [2, 0, 2, 2], "vocab_size": 100,
    }  # fmt: skip
    fitting = [key for key in more if key in ARCHITECTURES[arch].keys or "." not in key]
    fitting += ["attention.key_length", "attention.value_length"]
    if arch in ("cohere2", "gemma2", "gemma3", "gpt-oss", "phi3"):
        fitting.append("attention.sliding_window")
    if not any(key.startswith("ssm.") for key in fitting):
        fitting.remove("full_attention_interval")
    chosen = fitting if rng.random() < 0.8 else rng.sample(sorted(more), rng.randrange(len(more)))
    for key in chosen:
        metadata[f"{arch}.{key}"] = more[key]
    for _ in range(rng.randrange(3)):
        odd: tuple[object, ...] = (
            0,
            1,
            2**31,
            2**32 - 1,
            "text",
            0.5,
            float("nan"),
            ["a"],
            [1],
            [0] * 5,
        )
        metadata[rng.choice(sorted(metadata))] = rng.choice(odd)
    data = bytearray(gguf(metadata, LLAMA_TENSORS if rng.random() < 0.8 else {}))
    if rng.random() < 0.3:  # a lying length somewhere
        at = rng.choice((8, 16, rng.randrange(24, len(data) - 8)))
        data[at : at + 8] = struct.pack("<Q", rng.choice(COUNTS))
    return _torn(rng, bytes(data)) if rng.random() < 0.3 else bytes(data)


def logs(rng: random.Random) -> bytes:
    """Lines, words or bytes of engines' logs, mixed and torn."""
    way = rng.randrange(4)
    if way == 0:
        return b"".join(rng.choices(LINES, k=rng.randrange(1, 30)))
    if way == 1:
        return b" ".join(rng.choices(WORDS, k=rng.randrange(1, 60)))
    data = rng.choice(SAMPLES)
    if way == 2:
        digit = rng.randrange(10)
        return data.replace(b"%d" % digit, b"%d" % digit * rng.randrange(1, 30), 5)
    return _torn(rng, data)


def _config(data: bytes, folder: Path) -> object:
    path = folder / "config.json"
    path.write_bytes(data)
    return read_config(path)


def _gguf(data: bytes, folder: Path) -> object:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return read_gguf(path)


def _check(result: object) -> None:
    if isinstance(result, ModelShape):
        assert 1 <= len(result.layers) <= MAX_LAYERS
        assert held_bytes(result, 1000, BF16) <= held_bytes(result, 20_000, BF16)
        assert all("\n" not in note for note in result.notes)
        return
    json.dumps(result.to_json(), allow_nan=False)  # type: ignore[attr-defined]


@dataclass(slots=True)
class Tally:
    """What came of the inputs of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    escaped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0


def outcome(read: Read, data: bytes, folder: Path, tally: Tally) -> None:
    """Read one input and count it."""
    started = time.process_time()
    try:
        result = read(data, folder)
        _check(result)
        came = "result"
    except UnsupportedLayout:
        came = "unsupported layout"
    except UserError as error:
        came = "other refusal"
        if "\n" in str(error) or len(str(error)) > 1000:
            tally.escaped["a message of several lines or over 1,000 characters"] += 1
    except Exception as error:
        came = "escaped"
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        if not tally.escaped[place]:
            kept = Path(tempfile.gettempdir()) / f"escaped-{abs(hash(place))}"
            kept.write_bytes(data)
            print(f"{place}: {error}: input kept as {kept}", file=sys.stderr)
        tally.escaped[place] += 1
    took = time.process_time() - started
    tally.outcomes[came] += 1
    tally.seconds += took
    tally.slowest = max(tally.slowest, took)


def campaign(models: Path, inputs: int, seed: int) -> dict[str, Tally]:
    """All inputs: half configurations, three tenths GGUF headers, the rest logs."""
    rng = random.Random(seed)
    real = [json.loads(path.read_text()) for path in sorted(models.glob("*.json"))]
    tallies = {"config.json": Tally(), "GGUF header": Tally(), "log": Tally()}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for _ in range(inputs):
            pick = rng.random()
            if pick < 0.5:
                outcome(_config, configs(rng, real), folder, tallies["config.json"])
            elif pick < 0.8:
                outcome(_gguf, headers(rng), folder, tallies["GGUF header"])
            else:
                shape, tokens = rng.choice(SHAPES), rng.choice(((), (1,), (10**9,)))
                options = Options(
                    rng.choice((None, *sorted(FORMATS))), rng.choice((None, 1, 8)), tokens
                )

                def audit(
                    data: bytes, _: Path, shape: ModelShape = shape, options: Options = options
                ) -> object:
                    return audit_text(data, "fuzzed", shape, options)

                outcome(audit, logs(rng), folder, tallies["log"])
    return tallies


def _sparse(path: Path, size: int, head: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def _llama(**changes: Any) -> bytes:
    return json.dumps({"model_type": "llama", **BASE, **changes}).encode()


def _gguf_head(tensors: int, keys: int) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, tensors, keys)


def hostile(folder: Path) -> Iterator[tuple[str, Path]]:
    """The set: what each is, and its file, which names its reader by its suffix."""
    real = b"".join(SAMPLES)
    files: dict[str, tuple[str, bytes]] = {
        "10^9 layers": ("json", _llama(num_hidden_layers=10**9)),
        "10^9 layers, 10^9 experts": ("json", _llama(num_hidden_layers=10**9, num_local_experts=10**9)),
        "hidden_size is NaN": ("json", _llama(hidden_size=float("nan"))),
        "num_hidden_layers is Infinity": ("json", _llama(num_hidden_layers=float("inf"))),
        "num_hidden_layers is 1e400": (
            "json", _llama().replace(b'hidden_layers": 2', b'hidden_layers": 1e400')),
        "a number of 900,000 digits": (
            "json", _llama().replace(b'hidden_layers": 2', b'hidden_layers": ' + b"9" * 900_000)),
        "500,000 lists, one in another": ("json", b"[" * 500_000 + b"]" * 500_000),
        "150,000 objects, one in another": ("json", b'{"a":' * 150_000 + b"1" + b"}" * 150_000),
        "text_config 20,000 deep": (
            "json", b'{"model_type":"llama4","text_config":' * 20_000 + b"1" + b"}" * 20_000),
        "layer_types of 50,000 entries": (
            "json", _llama(layer_types=["full_attention"] * 50_000, num_hidden_layers=50_000)),
        "1 GB of zeros after GGUF's magic": ("gguf", _gguf_head(0, 0)),
        "GGUF: 2^63 keys": ("gguf", _gguf_head(0, 2**63)),
        "GGUF: 2^63 tensors": ("gguf", _gguf_head(2**63, 0)),
        "GGUF: a name of 2^63 bytes": ("gguf", _gguf_head(0, 1) + struct.pack("<Q", 2**63)),
        "GGUF: a text of 2^63 bytes": (
            "gguf", _gguf_head(0, 1) + text("a") + struct.pack("<IQ", TEXT, 2**63)),
        "GGUF: a list of 2^60 numbers": (
            "gguf", _gguf_head(0, 1) + text("a") + struct.pack("<IIQ", ARRAY, 10, 2**60)),
        "GGUF: a list of 2,000,000 empty texts, 1 GB file": (
            "gguf", _gguf_head(0, 1) + text("a") + struct.pack("<IIQ", ARRAY, TEXT, 2_000_000)),
        "GGUF: 10,000 lists of 10,000 numbers, 1 GB file": (
            "gguf", _gguf_head(0, 10_000) + b"".join(
                text(f"k{i}") + struct.pack("<IIQ", ARRAY, 10, 10_000) + bytes(80_000) for i in range(840))),
        "GGUF: 10^9 layers": ("gguf", gguf({**LLAMA, "llama.block_count": 10**9}, LLAMA_TENSORS)),
        "GGUF: a tensor of 2^63 elements": ("gguf", gguf(LLAMA, {"token_embd.weight": (2**31, 2**32)})),
        "a log of 60 MB, one line": ("log", b"KV buffer size = " * 3_500_000),
        "a log of 60 MB, 1,750,000 start-ups without a figure": (
            "log", b"LLM engine (v0.6.3) with config: \n" * 1_750_000),
        "a log of 60 MB of real start-ups": ("log", real * (60_000_000 // len(real))),
    }  # fmt: skip
    _sparse(folder / "sparse.json", 10**9, b"{")
    yield "a configuration of 1 GB, sparse", folder / "sparse.json"
    _sparse(folder / "sparse.log", 10**9, LINES[0])
    yield "a log of 1 GB, sparse", folder / "sparse.log"
    os.mkfifo(folder / "pipe.json")
    yield "a named pipe that nobody writes", folder / "pipe.json"
    for number, (name, (suffix, data)) in enumerate(files.items()):
        path = folder / f"hostile-{number}.{suffix}"
        path.write_bytes(data)
        if "1 GB" in name:
            _sparse(path, 10**9, data)
        yield name, path
        path.unlink()


def ask_one(path: Path) -> dict[str, Any]:
    """What `campaigns.read_hostile` prints; killed after two minutes."""
    command = [sys.executable, "-m", "campaigns.read_hostile", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return {"came": "over 120 s", "said": "", "seconds": 120.0, "peak": 0.0, "before": 0.0}
    if done.returncode:
        came = f"process ended with {done.returncode}"
        return {"came": came, "said": done.stderr[-80:], "seconds": 0.0, "peak": 0.0, "before": 0.0}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _hostile_rows() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as made:
        for name, path in hostile(Path(made)):
            one = ask_one(path)
            said = one["said"].replace("|", "/")
            said = said if len(said) <= 110 else said[:107] + "..."
            yield (f"| {name} | {one['came']} | {1000 * one['seconds']:.1f} | {one['peak']:.0f} | "
                   f"{one['peak'] - one['before']:.0f} | {said} |")  # fmt: skip


def report(
    tallies: dict[str, Tally],
    chosen: argparse.Namespace,
    wall: float,
    peak: float,
    hostiles: list[str],
) -> str:
    """The result file."""
    names = ("result", "unsupported layout", "other refusal", "escaped")
    total: Counter[str] = sum((tally.outcomes for tally in tallies.values()), Counter())
    lines = [
        "# Broken inputs to the readers and to the log auditor", "",
        f"Run on {time.strftime('%Y-%m-%d', time.gmtime())}: {chosen.inputs:,} inputs, seed {chosen.seed}, "
        f"Python {platform.python_version()}, {wall:.0f} s in all on one thread, peak memory of the process "
        f"{peak:.0f} MB (hypothesis and the tests' samples included). Only a result or a `UserError` may "
        "come.", "",
        "Again: `PYTHONPATH=bench:kernels:reports:tests python -m campaigns.fuzz_readers MODELS --inputs "
        f"{chosen.inputs} --seed {chosen.seed} --out results/fuzz.md` (MODELS: the folder of public "
        "configurations).", "",
        "| kind | inputs | " + " | ".join(names) + " | CPU ms an input | slowest, CPU ms |", "|" + "---|" * 8,
    ]  # fmt: skip
    for kind, tally in tallies.items():
        count = max(1, tally.outcomes.total())
        cells = " | ".join(f"{tally.outcomes[name]:,}" for name in names)
        lines.append(
            f"| {kind} | {tally.outcomes.total():,} | {cells} | {1000 * tally.seconds / count:.2f} | "
            f"{1000 * tally.slowest:.0f} |"
        )
    cells = " | ".join(f"{total[name]:,}" for name in names)
    lines += [f"| all | {total.total():,} | {cells} | | |", ""]
    for tally in tallies.values():
        lines += [f"- escaped: {place}, {count} times" for place, count in tally.escaped.items()]
    lines += [
        "## The hostile set", "",
        "Each read in a process of its own; the peak is the process's, the growth what reading added.", "",
        "| input | came | ms | peak MB | growth MB | the message |", "|---|---|---|---|---|---|",
        *hostiles,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run both, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", type=Path)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    started = time.monotonic()
    tallies = campaign(chosen.models, chosen.inputs, chosen.seed)
    wall, peak = time.monotonic() - started, peak_mb()
    hostiles = list(_hostile_rows())
    result = report(tallies, chosen, wall, peak, hostiles)
    if chosen.out:
        chosen.out.write_text(result)
    print(result)
    bad = sum(tally.escaped.total() for tally in tallies.values())
    if bad or not all("| refused |" in row for row in hostiles):
        sys.exit(f"{bad} escaped, or a hostile input was not refused")


if __name__ == "__main__":
    main()
