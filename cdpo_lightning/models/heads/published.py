"""Score models from outside: the published Beaver layout (`score_head`) and every sequence classifier with one label."""

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

_HEADS = ("score_head", "score")  # Beaver's, and that of transformers' decoders
Weights = dict[str, Path]  # name of a tensor, and the file that holds it


def require_folder(path: str) -> None:
    """Raises:
    ModelError: the path was meant as a folder, and there is none.
    """
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise ModelError(f"{path}: no such folder; give the folder of a score model or a hub name")


def local_folder(path: str, revision: str | None) -> Path:
    """The folder of a score model; of a hub name, the revision is fetched into the hub's cache."""
    require_folder(path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{path}: neither a folder nor a hub name that can be fetched ({first})") from error


def _weights(folder: Path) -> Weights:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return {name: file for file in files for name in _open(file)}


def _open(file: Path, wanted: tuple[str, ...] = ()) -> dict[str, Tensor | None]:
    """Every name in the file, and the tensors of those wanted."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as reader:
            return {k: reader.get_tensor(k) if k in wanted else None for k in reader.keys()}  # noqa: SIM118
    loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return {k: v if k in wanted else None for k, v in loaded.items()}


def _head(folder: Path, weights: Weights) -> nn.Linear | None:
    """The scalar head of the folder's weights, None if it is of another kind.

    Raises:
        ModelError: it has more than one output.
    """
    names = tuple(name for name in weights if re.fullmatch(rf"(.*\.)?({'|'.join(_HEADS)})\.(weight|bias)", name))
    result = {name.split(".")[-1]: _open(weights[name], (name,))[name] for name in names}
    weight = result.get("weight")
    if weight is None:
        return None
    if weight.shape[0] != 1:
        raise ModelError(f"{folder}: expected a head with one output, got {weight.shape[0]}; is it a score model?")
    head = nn.Linear(weight.shape[1], 1, bias="bias" in result)
    head.load_state_dict({name: value.float() for name, value in result.items() if value is not None})
    return head


def _backbone(folder: Path, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The network under the head, whatever stands before its names in the file (`model.`, `model.model.`, `module.`).

    Raises:
        ModelError: the file lacks one of its weights.
    """
    with torch.device("meta"):
        wanted = AutoModel.from_config(AutoConfig.from_pretrained(folder)).state_dict()
    first = next(iter(wanted))
    prefix = next((name.removesuffix(first) for name in weights if name == first or name.endswith(f".{first}")), None)
    if prefix is None:
        raise ModelError(f"{folder}: no weights for {first}; is it a score model of the kind that config.json says?")
    model, info = AutoModel.from_pretrained(
        folder, dtype=dtype, key_mapping={f"^{re.escape(prefix)}": ""}, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder}: no weights for {missing[0]} and {len(missing) - 1} more; fetch it again")
    return model


class Classifier(nn.Module):
    """A sequence classifier with one label that pools in its own way (BERT, RoBERTa, DeBERTa); its logit is the score."""

    def __init__(self, network: nn.Module, separator: int | None) -> None:
        super().__init__()
        self.network, self.separator = network, separator

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores [B] of the sequences [B, T]; what follows the first separator is the second text."""
        ids = input_ids.masked_fill(attention_mask == 0, self.network.config.pad_token_id or 0)
        types = {}
        if getattr(self.network.config, "type_vocab_size", 0) > 1 and self.separator is not None:
            ends = (ids == self.separator).long()
            types["token_type_ids"] = ((ends.cumsum(1) - ends) > 0).long() * attention_mask
        return self.network(input_ids=ids, attention_mask=attention_mask, **types).logits[:, 0].float()


def _classifier(folder: Path, tokenizer: Any, dtype: torch.dtype) -> Classifier:
    """Any other sequence classifier.

    Raises:
        ModelError: it is none, or has more than one label.
    """
    labels = AutoConfig.from_pretrained(folder).num_labels
    expected = f"expected a head {' or '.join(_HEADS)}, or a sequence classifier with one label"
    if labels != 1:
        raise ModelError(f"{folder}: {expected}, got num_labels={labels} in config.json; is it a score model?")
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder}: {expected}; no weights for {missing[0]}; is it a score model?")
    return Classifier(model, tokenizer.sep_token_id)


def load_score_model(config: ScorerConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """The score model of `path`, its weights in `dtype`, and its own tokenizer.

    Raises:
        ModelError: the folder holds no score model with one score, or not all of it, or one that rescales its scores.
    """
    folder = local_folder(config.path, config.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if getattr(AutoConfig.from_pretrained(folder), "do_normalize", False):
            raise ModelError(f"{folder}: config.json has do_normalize=true, which is not read here; set it to false")
        weights = _weights(folder)
        head = _head(folder, weights)
        model: nn.Module
        if head is None:
            model = _classifier(folder, tokenizer, dtype)
        else:
            model = ScoreModel(_backbone(folder, weights, dtype), head.in_features)
            model.head = head
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # missing; unreadable; of other shapes; cut
        if isinstance(error, ModelError):
            raise
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"{config.path}: no score model could be loaded ({first})") from error
    return model.to(device, dtype).eval(), tokenizer
