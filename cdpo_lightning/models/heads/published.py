"""Load published score models: the Beaver layout of safe-rlhf (`score_head`), and every sequence classifier with one label."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from cdpo_lightning.config import ScorerConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.heads.score_model import ScoreModel
from cdpo_lightning.models.loading import first_line, folder_of, looks_like_a_path, require_all_weights

_HEAD_NAMES = ("score_head", "score")  # Beaver's, and that of transformers' decoders
WeightFiles = dict[str, Path]  # name of a tensor to the file that holds it


def require_folder(path: str) -> None:
    """Check that a path that was meant as a folder is one; a hub name is not checked.

    Raises:
        ModelError: the folder does not exist.
    """
    if looks_like_a_path(path) and not folder_of(path).is_dir():
        raise ModelError(f"{path}: no such folder; give the folder of a score model or a hub name")


def local_folder(path: str, revision: str | None) -> Path:
    """Return the folder of a score model; a hub name is downloaded into the hub's cache in the given revision.

    Raises:
        ModelError: the folder does not exist, or the download failed.
    """
    require_folder(path)
    folder = folder_of(path)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: neither a folder nor a hub name that can be fetched ({first_line(error)})") from error


def _weight_files(folder: Path) -> WeightFiles:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return {name: file for file in files for name in _read_weights(file)}


def _read_weights(file: Path, names: tuple[str, ...] = ()) -> dict[str, Tensor | None]:
    """Return every name in the file, with the tensors of those in `names` and None for the others."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as reader:
            return {k: reader.get_tensor(k) if k in names else None for k in reader.keys()}  # noqa: SIM118
    loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return {k: v if k in names else None for k, v in loaded.items()}


def _head(folder: Path, weights: WeightFiles) -> nn.Linear | None:
    """Return the scalar head in the folder's weights, None if no weights have the name of a known head.

    Raises:
        ModelError: the head has more than one output.
    """
    names = tuple(name for name in weights if re.fullmatch(rf"(.*\.)?({'|'.join(_HEAD_NAMES)})\.(weight|bias)", name))
    tensors = {name.split(".")[-1]: _read_weights(weights[name], (name,))[name] for name in names}
    weight = tensors.get("weight")
    if weight is None:
        return None
    if weight.shape[0] != 1:
        raise ModelError(f"{folder}: expected a head with one output, got {weight.shape[0]}; is it a score model?")
    head = nn.Linear(weight.shape[1], 1, bias="bias" in tensors)
    head.load_state_dict({name: value.float() for name, value in tensors.items() if value is not None})
    return head


def _backbone(folder: Path, weights: WeightFiles, dtype: torch.dtype) -> nn.Module:
    """Return the network under the head, whatever the prefix of its weights' names (`model.`, `model.model.`, `module.`).

    Raises:
        ModelError: a weight is missing.
    """
    with torch.device("meta"):
        expected = AutoModel.from_config(AutoConfig.from_pretrained(folder)).state_dict()
    first = next(iter(expected))
    prefix = next((name.removesuffix(first) for name in weights if name == first or name.endswith(f".{first}")), None)
    if prefix is None:
        raise ModelError(f"{folder}: no weights for {first}; is it a score model of the architecture in its config.json?")
    model, loading_info = AutoModel.from_pretrained(
        folder, dtype=dtype, key_mapping={f"^{re.escape(prefix)}": ""}, output_loading_info=True
    )
    require_all_weights(loading_info, str(folder))
    return model


class Classifier(nn.Module):
    """A sequence classifier with one label and its own pooling (BERT, RoBERTa, DeBERTa); its logit is the score."""

    def __init__(self, network: nn.Module, separator: int | None) -> None:
        super().__init__()
        self.network, self.separator = network, separator

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the scores [B] of the sequences [B, T]; the second text begins after the first separator."""
        ids = input_ids.masked_fill(attention_mask == 0, self.network.config.pad_token_id or 0)
        types = {}
        if getattr(self.network.config, "type_vocab_size", 0) > 1 and self.separator is not None:
            ends = (ids == self.separator).long()
            types["token_type_ids"] = ((ends.cumsum(1) - ends) > 0).long() * attention_mask
        return self.network(input_ids=ids, attention_mask=attention_mask, **types).logits[:, 0].float()


def _classifier(folder: Path, tokenizer: Any, dtype: torch.dtype) -> Classifier:
    """Return the folder's model as a sequence classifier.

    Raises:
        ModelError: it is not a sequence classifier, or has more than one label.
    """
    labels = AutoConfig.from_pretrained(folder).num_labels
    expected = f"expected a head {' or '.join(_HEAD_NAMES)}, or a sequence classifier with one label"
    if labels != 1:
        raise ModelError(f"{folder}: {expected}, got num_labels={labels} in config.json; is it a score model?")
    model, loading_info = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    require_all_weights(loading_info, f"{folder}: {expected}", "is it a score model?")
    return Classifier(model, tokenizer.sep_token_id)


def load_score_model(config: ScorerConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """Return the score model of `path`, with weights in `dtype`, and its own tokenizer.

    Raises:
        ModelError: the folder holds no score model with one output, an incomplete one, or one that normalizes its scores.
    """
    folder = local_folder(config.path, config.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if getattr(AutoConfig.from_pretrained(folder), "do_normalize", False):
            raise ModelError(f"{folder}: config.json has do_normalize=true, which is not supported; set it to false")
        weights = _weight_files(folder)
        head = _head(folder, weights)
        model: nn.Module
        if head is None:
            model = _classifier(folder, tokenizer, dtype)
        else:
            model = ScoreModel(_backbone(folder, weights, dtype), head.in_features)
            model.head = head
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # missing; unreadable; other shapes; truncated
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{config.path}: no score model could be loaded ({first_line(error)})") from error
    return model.to(device, dtype).eval(), tokenizer
