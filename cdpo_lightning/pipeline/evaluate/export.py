"""Exports trained policies and score models as ordinary Hugging Face folders, with a card that states the sign of the cost."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cdpo_lightning.config import RunConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.adapters import lora as adapters
from cdpo_lightning.models.heads.score_model import ScoreModel
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.scorers.scorer import Scorer
from cdpo_lightning.store.files import storage_errors, temporary_name
from cdpo_lightning.text.templates import Encoder, encode_scored

_CARD = """---
tags: [constrained-dpo, safety]
---
# {who}

Trained by direct preference optimisation on reward - lambda cost (cdpo-lightning). Convention: **cost > 0 is harmful**; the
constraint is E[cost] <= C_limit, expectations over the policy's own samples at temperature 1.

| | |
|---|---|
{rows}
"""


def card(who: str, config: RunConfig, metrics: Mapping[str, Any]) -> str:
    """Return the model card of a policy: beta, C_limit, lambda and the results; results that are not known are left out."""
    facts: dict[str, Any] = {"beta": config.policy.beta, "C_limit": config.constraint.c_limit}
    facts["lambda after the last round"] = metrics.get("dual/lambda" if who == config.who else f"dual/{who}/lambda")
    facts |= {"E[reward]": metrics.get(f"eval/{who}/reward_mean"), "E[cost]": metrics.get(f"eval/{who}/cost_mean")}
    facts["meets the limit"] = metrics.get(f"eval/{who}/feasible")
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
    return _CARD.format(who=who, rows="\n".join(rows))


def export_policy(
    model: nn.Module, encoder: Encoder, folder: Path, who: str, config: RunConfig, metrics: Mapping[str, Any]
) -> None:
    """Write weights (safetensors), tokenizer and card to `folder`, atomically.

    Adapters are merged into the weights, or exported alone if `model.lora_merge` is false. The ids that end a response are written
    to generation_config.json, so that `generate` and servers stop where the run's samples did.
    """
    tokenizer = encoder.tokenizer
    text = card(who, config, metrics)
    if adapters.has_adapters(model) and not config.model.lora_merge:
        _write(lambda location: adapters.save(model, config.model, location), tokenizer, folder, text)
        return
    dtype = torch.bfloat16 if config.trainer.precision == "bf16-true" else torch.float32
    plain: Any = adapters.merged(model)
    exported: Any = plain if dtype == torch.float32 else copy.deepcopy(plain).to(dtype)
    exported.generation_config.eos_token_id = list(encoder.stops) if len(encoder.stops) > 1 else encoder.end
    _write(exported.save_pretrained, tokenizer, folder, text)


_NEW_PADDING = "<|padding|>"
_CHECKED_TEXTS = [
    ("Is tea good?", "Yes, very."),
    ("Name two kinds of tea, and say where they grow.", "No."),
    ("Tea?", "Of course."),
]
_SCORER_CARD = """---
tags: [safety]
---
# {kind} model

A sequence classifier with one label; its logit is the {kind}, in the units of the run that trained it. {sign}
It reads prompt and response as one text, in the template `{template}`{end}; the padding token is
`{pad}`, never the last token of a text, at which the score is read.
"""


def export_scorer(scorer: Scorer, folder: Path, kind: str) -> None:
    """Write a score model that this run trained, in the format of `AutoModelForSequenceClassification`; write no other scorer."""
    if not isinstance(scorer, ModelScorer) or not isinstance(scorer.model, ScoreModel) or scorer.published:
        return
    tokenizer = copy.deepcopy(scorer.tokenizer)
    _set_padding(tokenizer, scorer)
    sign = "**Above 0 is harmful**, lower is safer." if kind == "cost" else "Higher is better."
    options = f" with {json.dumps(dict(scorer.options))}" if scorer.options else ""
    end = options if scorer.template == "chat" else f", with the end token `{tokenizer.eos_token}` behind"
    text = _SCORER_CARD.format(kind=kind, sign=sign, template=scorer.template, end=end, pad=tokenizer.pad_token)
    _write(_classifier(scorer.model, scorer.unit, tokenizer.pad_token_id).save_pretrained, tokenizer, folder, text)
    _require_same_scores(scorer, folder, kind)


def _set_padding(tokenizer: Any, scorer: ModelScorer) -> None:
    """Give the tokenizer a padding token that no text ends with: transformers' class finds the last token by the padding's id."""
    last = encode_scored("a", "b", scorer.template, scorer.tokenizer, scorer.max_tokens, scorer.options)[-1]
    if tokenizer.pad_token_id not in (None, last):
        return
    for token in (tokenizer.unk_token, tokenizer.bos_token):
        if token is not None and tokenizer.convert_tokens_to_ids(token) != last:
            tokenizer.pad_token = token
            return
    tokenizer.add_special_tokens({"pad_token": _NEW_PADDING})


def _require_same_scores(scorer: ModelScorer, folder: Path, kind: str) -> None:
    """Check that transformers' own classes score texts from the folder as the run does, one by one and in a batch.

    Raises:
        ModelError: they do not; the folder is removed.
    """
    exported: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [encode_scored(*text, scorer.template, tokenizer, scorer.max_tokens, scorer.options) for text in _CHECKED_TEXTS]
    batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        batched = exported(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        single = torch.stack([exported(torch.tensor([i])).logits[0, 0] for i in ids])
    # Only the first rank exports: the scores of all ranks would be waited for.
    expected = torch.tensor(replace(scorer, precision="32-true").local_scores(_CHECKED_TEXTS)) / scorer.unit
    tolerance = 1e-3 if next(scorer.model.parameters()).dtype == torch.float32 else 0.1
    for name, scores in (("one by one", single), ("in a batch", batched)):
        if not torch.allclose(scores, expected, rtol=tolerance, atol=tolerance):
            shutil.rmtree(folder, ignore_errors=True)
            got, right = ([round(float(x), 3) for x in values] for values in (scores, expected))
            raise ModelError(f"{folder}: transformers scores the exported {kind} model's texts {name} as {got}, the run as {right}")


def _classifier(model: ScoreModel, unit: float, pad: int) -> Any:
    """Return the score model as an instance of transformers' own class, with the head's weights divided by `unit`."""
    config: Any = copy.deepcopy(model.backbone.config)
    config.num_labels, config.pad_token_id = 1, None
    with torch.device("meta"):
        exported: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    exported.base_model.load_state_dict(model.backbone.state_dict(), assign=True)
    if pad >= exported.get_input_embeddings().num_embeddings:
        exported.resize_token_embeddings(pad + 1, mean_resizing=False)
    exported.config.pad_token_id = pad
    exported.score.weight = nn.Parameter(model.head.weight.detach() / unit)
    return exported


def _write(save: Callable[[Path], Any], tokenizer: Any, folder: Path, text: str) -> None:
    temporary = temporary_name(folder)
    try:
        with storage_errors(folder):
            save(temporary)
            tokenizer.save_pretrained(temporary)
            readme = temporary / "README.md"
            readme.write_text(text, encoding="utf-8")
            for file in temporary.iterdir():  # safetensors makes its files private
                file.chmod(readme.stat().st_mode)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
