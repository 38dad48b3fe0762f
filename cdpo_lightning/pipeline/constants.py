"""The constants of a run: scores and log pi_ref of every response, computed once and stored under the hash of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.data.corpus import Corpus
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.evaluation.exact import ExactProblem, all_rows, all_texts
from cdpo_lightning.pipeline.base_model import IdentifiedModel
from cdpo_lightning.pipeline.inference import Inference
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.scorers.scorer import Scorer, Text
from cdpo_lightning.store.artifacts import Store, digest
from cdpo_lightning.streams import Stream, stream_seed
from cdpo_lightning.text.packing import TokenRow
from cdpo_lightning.text.templates import Encoder

Constants = Callable[[Sequence[Text], list[TokenRow]], tuple[dict[str, Tensor], Tensor]]  # scores by name [N], log pi_ref [N]


@dataclass(frozen=True)
class StoredConstants:
    """Returns scores and reference log-probabilities of texts, from the store where it has them."""

    store: Store
    scorers: Mapping[str, Scorer]
    reference: IdentifiedModel
    inference: Inference
    attention: str  # the implementation; each rounds differently, so the name is part of the key for the store

    def __call__(self, texts: Sequence[Text], rows: list[TokenRow]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the scores by name and log pi_ref of the texts, whose token rows are given in the same order; float64, [N]."""
        scores = {name: self.scores(name, scorer, texts) for name, scorer in self.scorers.items()}
        return scores, self.reference_logp(rows)

    def scores(self, name: str, scorer: Scorer, texts: Sequence[Text]) -> Tensor:
        """Return one score of the texts, [N] float64."""
        unique = len(set(texts)) if isinstance(scorer, ModelScorer) else 0
        made_of = {"scorer": scorer.identity, "rows": digest(texts), "precision": self.inference.precision}
        counted = (f"store/{name}_forwards", unique)
        return self.store.get(f"{name}_scores", made_of, lambda: ({"score": scorer.score(texts)}, {}), counted).tensors["score"]

    def reference_logp(self, rows: list[TokenRow]) -> Tensor:
        """Return log pi_ref of the rows' responses, nats, [N] float64."""
        made_of: dict[str, object] = {
            "reference": self.reference.identity,
            "rows": digest(rows),
            "precision": self.inference.precision,
            "attention": self.attention,
            "compile": self.inference.compile,
        }
        counted = ("store/reference_forwards", sum(len(responses) for _, responses in rows))
        artifact = self.store.get(
            "reference_logp", made_of, lambda: ({"logp": self.inference.logp(self.reference.model, rows)}, {}), counted
        )
        return artifact.tensors["logp"]


@dataclass(frozen=True)
class TrainingPairs:
    """The pairs that policies are trained on."""

    table: PairTable
    records: list[PreferencePair]  # of the table's pairs, in order, with the labels of annotators
    prompts: list[str]  # texts of the table's prompts, in order


def make_training_pairs(
    pairs: Sequence[PreferencePair], encoder: Encoder, constants: Constants, seed: int
) -> tuple[TrainingPairs, dict[str, int]]:
    """Return the pairs with their constants, and the counts of truncated texts and dropped pairs (`data/*`).

    A pair whose responses are equal after truncation is dropped. The scored text is the truncated response, which is what the
    policy is trained on.
    """
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    texts: list[Text] = list(dict.fromkeys((pair.prompt, r) for pair in pairs for r in pair.responses))
    text_number = {text: i for i, text in enumerate(texts)}
    prompt_number = {prompt: i for i, prompt in enumerate(prompts)}
    ids = [encoder.response(response) for _, response in texts]
    prompt_ids = tuple(encoder.prompt(prompt) for prompt in prompts)
    rows: list[TokenRow] = [(prompt_ids[prompt_number[p]], [r]) for (p, _), r in zip(texts, ids, strict=True)]
    scores, logp = constants([(p, encoder.truncate_response(r)) for p, r in texts], rows)
    ends = [[text_number[p.prompt, r] for r in p.responses] for p in pairs]
    differs = [ids[first] != ids[second] for first, second in ends]
    different = [pair for pair, kept in zip(ends, differs, strict=True) if kept]
    table = PairTable(
        prompts=prompt_ids,
        responses=tuple(ids),
        prompt_N=torch.tensor([prompt_number[prompt] for prompt, _ in texts]),
        scores=scores,
        reference_logp_N=logp,
        pair_M2=torch.tensor(different, dtype=torch.long).view(-1, 2),
        draw_M=draws(len(different), stream_seed(seed, Stream.LABEL_DRAWS, 0)),
    )
    records = [pair for pair, kept in zip(pairs, differs, strict=True) if kept]
    counts = {"data/truncated": _count_truncated(encoder, prompts, texts), "data/equal_after_cut": len(ends) - len(different)}
    return TrainingPairs(table, records, prompts), counts


def _count_truncated(encoder: Encoder, prompts: Sequence[str], texts: Sequence[Text]) -> int:
    """Return the number of prompts and responses that are truncated."""
    return sum(encoder.is_cut(p, None) for p in prompts) + sum(encoder.is_cut(None, response) for _, response in texts)


def exact_problem(
    corpus: Corpus, constraints: Sequence[Constraint], encoder: Encoder, constants: Constants, beta: float
) -> ExactProblem | None:
    """Return the exact problem, with all responses of the closed-form world enumerated; None for other data."""
    world = corpus.world
    if world is None:
        return None
    rows = all_rows([encoder.prompt(p) for p in world.prompts], [encoder.response(r) for r in world.responses])
    texts = all_texts(world)
    shape = (len(world.prompts), len(world.responses))
    scores, logp = constants(texts, rows)
    truth = {name: torch.tensor([world.score(name, *text) for text in texts], dtype=torch.float64) for name in scores}
    return ExactProblem(
        reference_logp=logp.view(shape),
        scores={name: score.view(shape) for name, score in scores.items()},
        truth={name: score.view(shape) for name, score in truth.items()},
        constraints=constraints,
        beta=beta,
        rows=rows,
    )
