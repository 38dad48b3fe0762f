"""A trained policy as an ordinary Hugging Face folder, with a model card that states the convention."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdpo_lightning.artifacts import beside, written
from cdpo_lightning.config import RunConfig
from cdpo_lightning.models import adapters

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
    """The model card: beta, C_limit, lambda and what was measured; what was not measured is left out."""
    facts: dict[str, Any] = {"beta": config.policy.beta, "C_limit": config.constraint.c_limit}
    if who == config.who:
        facts["lambda after the last round"] = metrics.get("dual/lambda")
    facts |= {"E[reward]": metrics.get(f"eval/{who}/reward_mean"), "E[cost]": metrics.get(f"eval/{who}/cost_mean")}
    facts["meets the limit"] = metrics.get(f"eval/{who}/feasible")
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
    return _CARD.format(who=who, rows="\n".join(rows))


def export_policy(model: nn.Module, tokenizer: Any, folder: Path, who: str, config: RunConfig, metrics: Mapping[str, Any]) -> None:
    """Writes weights (safetensors), tokenizer and card to `folder`, whole or not at all; of adapters what `lora_merge` says."""
    temporary = beside(folder)
    dtype = torch.bfloat16 if config.trainer.precision == "bf16-true" else torch.float32
    alone = adapters.are_in(model) and not config.model.lora_merge
    plain: Any = model if alone else adapters.merged(model)
    exported: Any = plain if dtype == torch.float32 else copy.deepcopy(plain).to(dtype)
    try:
        with written(folder):
            if alone:
                adapters.save(exported, config.model, temporary)
            else:
                exported.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            readme = temporary / "README.md"
            readme.write_text(card(who, config, metrics), encoding="utf-8")
            for file in temporary.iterdir():  # safetensors makes its files private
                file.chmod(readme.stat().st_mode)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
