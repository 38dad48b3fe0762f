"""Exports trained policies and score models as ordinary Hugging Face folders, with a card that states the sign of the cost."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from cdpo_lightning.config import RunConfig
from cdpo_lightning.models.adapters import lora as adapters
from cdpo_lightning.models.heads.score_model import ScoreModel
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.scorers.scorer import Scorer
from cdpo_lightning.store.files import storage_errors, temporary_name

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


def export_policy(model: nn.Module, tokenizer: Any, folder: Path, who: str, config: RunConfig, metrics: Mapping[str, Any]) -> None:
    """Write weights (safetensors), tokenizer and card to `folder`, atomically.

    Adapters are merged into the weights, or exported alone if `model.lora_merge` is false.
    """
    text = card(who, config, metrics)
    if adapters.has_adapters(model) and not config.model.lora_merge:
        _write(lambda location: adapters.save(model, config.model, location), tokenizer, folder, text)
        return
    dtype = torch.bfloat16 if config.trainer.precision == "bf16-true" else torch.float32
    plain: Any = adapters.merged(model)
    exported: Any = plain if dtype == torch.float32 else copy.deepcopy(plain).to(dtype)
    _write(exported.save_pretrained, tokenizer, folder, text)


_SCORER_CARD = """---
tags: [safety]
---
# {kind} model

A sequence classifier with one label; its logit is the {kind}, in the units of the run that trained it. {sign}
It reads prompt and response as one text, in the template `{template}`, with the end token `{eos}` behind; the padding token is
`{pad}`, never the end token, at which the score is read.
"""


def export_scorer(scorer: Scorer, folder: Path, kind: str) -> None:
    """Write a score model that this run trained, in the format of `AutoModelForSequenceClassification`; write no other scorer."""
    if not isinstance(scorer, ModelScorer) or not isinstance(scorer.model, ScoreModel) or scorer.published:
        return
    tokenizer = copy.deepcopy(scorer.tokenizer)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:  # transformers locates the last token by the id of the padding
        others = (tokenizer.unk_token, tokenizer.bos_token)
        tokenizer.pad_token = next((token for token in others if token not in (None, tokenizer.eos_token)), tokenizer.pad_token)
    sign = "**Above 0 is harmful**, lower is safer." if kind == "cost" else "Higher is better."
    names = {"template": scorer.template, "eos": tokenizer.eos_token, "pad": tokenizer.pad_token}
    text = _SCORER_CARD.format(kind=kind, sign=sign, **names)
    _write(_classifier(scorer.model, scorer.unit, tokenizer.pad_token_id).save_pretrained, tokenizer, folder, text)


def _classifier(model: ScoreModel, unit: float, pad: int) -> Any:
    """Return the score model as an instance of transformers' own class, with the head's weights divided by `unit`."""
    config: Any = copy.deepcopy(model.backbone.config)
    config.num_labels, config.pad_token_id = 1, pad
    with torch.device("meta"):
        exported: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    exported.base_model.load_state_dict(model.backbone.state_dict(), assign=True)
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
