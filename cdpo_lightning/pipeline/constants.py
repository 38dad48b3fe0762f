"""The constants of a run: r, c and log pi_ref of every response, computed once and stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.evaluation.evaluator import ModelScorer, Scorer, Text
from cdpo_lightning.pipeline.setup import RunContext
from cdpo_lightning.store.artifacts import digest
from cdpo_lightning.streams import Stream, stream_seed
from cdpo_lightning.text.packing import Row


def stored_scores(bench: RunContext, kind: str, scorer: Scorer, texts: Sequence[Text]) -> Tensor:
    """r or c of the texts, float64, run through the scorer only if the store has them not."""
    unique = len(set(texts)) if isinstance(scorer, ModelScorer) else 0
    made_of = {"scorer": scorer.identity, "rows": digest(texts), "precision": bench.config.trainer.precision}
    result = bench.store.get(
        f"{kind}_scores", made_of, lambda: ({"score": scorer.score(texts)}, {}), (f"store/{kind}_forwards", unique)
    )
    return result.tensors["score"]


def stored_reference_logp(bench: RunContext, reference: nn.Module, identity: str, rows: list[Row]) -> Tensor:
    """log pi_ref of the rows' responses, nats, float64, run only if the store has them not."""
    config = bench.config
    count = sum(len(responses) for _, responses in rows)
    made_of: dict[str, object] = {"reference": identity, "rows": digest(rows), "precision": config.trainer.precision}
    made_of |= {"attention": config.model.attention, "compile": config.model.compile}  # they round elsewhere
    result = bench.store.get(
        "reference_logp",
        made_of,
        lambda: ({"logp": bench.logp(reference, rows)}, {}),
        ("store/reference_forwards", count),
    )
    return result.tensors["logp"]


Constants = Callable[[Sequence[Text], list[Row]], tuple[Tensor, Tensor, Tensor]]


def make_table(bench: RunContext, constants: Constants) -> tuple[PairTable, list[PreferencePair], list[str], dict[str, int]]:
    """The policy's pairs with their constants, the same as records, the texts of their prompts, and what was cut."""
    pairs = bench.corpus.pairs
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    texts: list[Text] = list(dict.fromkeys((pair.prompt, r) for pair in pairs for r in pair.responses))
    number = {text: i for i, text in enumerate(texts)}
    prompt_number = {prompt: i for i, prompt in enumerate(prompts)}
    ids = [bench.encoder.response(response) for _, response in texts]
    prompt_ids = tuple(bench.encoder.prompt(prompt) for prompt in prompts)
    rows: list[Row] = [(prompt_ids[prompt_number[p]], [r]) for (p, _), r in zip(texts, ids, strict=True)]
    reward, cost, logp = constants([(p, bench.encoder.as_read(r)) for p, r in texts], rows)  # of what the policy learns to write
    ends = [[number[p.prompt, r] for r in p.responses] for p in pairs]
    differs = [ids[first] != ids[second] for first, second in ends]
    different = [pair for pair, kept in zip(ends, differs, strict=True) if kept]
    table = PairTable(
        prompts=prompt_ids,
        responses=tuple(ids),
        prompt_N=torch.tensor([prompt_number[prompt] for prompt, _ in texts]),
        reward_N=reward,
        cost_N=cost,
        reference_logp_N=logp,
        pair_M2=torch.tensor(different, dtype=torch.long).view(-1, 2),
        draw_M=draws(len(different), stream_seed(bench.config.seed, Stream.LABEL_DRAWS, 0)),
    )
    cut = {"data/truncated": _count_cut(bench, prompts, texts), "data/equal_after_cut": len(ends) - len(different)}
    return table, [pair for pair, kept in zip(pairs, differs, strict=True) if kept], prompts, cut


def _count_cut(bench: RunContext, prompts: list[str], texts: list[Text]) -> int:
    """Prompts and responses that lost tokens."""
    cut = bench.encoder.is_cut
    return sum(cut(prompt, None) for prompt in prompts) + sum(cut(None, response) for _, response in texts)
