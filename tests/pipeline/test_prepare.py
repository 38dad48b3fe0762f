"""What is constant while policies are trained: refusals before training, the exact problem, and the whole of it without a fit."""

from dataclasses import replace

import pytest
import torch

from cdpo_lightning.config import ClosedFormConfig, FilesConfig, ModelConfig, ScorerConfig
from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.data.corpus import Corpus, ScoreExample, Split, closed_form_corpus
from cdpo_lightning.data.records import Demonstration, PreferencePair
from cdpo_lightning.errors import ConfigError, DataError, ModelError
from cdpo_lightning.models.lm.causal_lm import parameter_hash
from cdpo_lightning.pipeline import scorers
from cdpo_lightning.pipeline.base_model import load_base, load_tokenizer, make_trainables
from cdpo_lightning.pipeline.prepare import (
    build_evaluation,
    load_stage_inputs,
    make_engine,
    make_method_inputs,
    open_store,
    require_examples,
)
from cdpo_lightning.pipeline.run import train_policy
from cdpo_lightning.pipeline.sft import sft_compute, sft_rows

LIMITED = (Constraint("cost", "cost", Mean(), -0.5),)


# require_examples

EXAMPLE = ScoreExample("p", ("a", "b"), 0, (0, 0))
FULL = Corpus(
    demonstrations=Split([Demonstration("p", "a")], []),
    reward=Split([EXAMPLE], []),
    cost=Split([EXAMPLE], []),
    pairs=[PreferencePair("p", "a", "b")],
    prompts=[],
)
NOTHING = Split([], [])


@pytest.fixture
def on_files(config):
    model = ModelConfig(path="a-model")
    return replace(config, dataset=FilesConfig(pairs="pairs.jsonl"), model=model)


def test_data_for_every_stage_is_accepted(on_files):
    require_examples(on_files, FULL)


def test_no_pairs_are_refused_with_the_number_that_was_dropped(on_files):
    with pytest.raises(DataError, match=r"^dataset.pairs: .*\b7 were dropped"):
        require_examples(on_files, replace(FULL, pairs=[], metrics={"data/dropped": 7}))


def test_sft_without_demonstrations_is_refused_and_without_sft_they_are_not_needed(on_files):
    corpus = replace(FULL, demonstrations=NOTHING)
    with pytest.raises(DataError, match=r"dataset.demonstrations is empty"):
        require_examples(on_files, corpus)
    require_examples(replace(on_files, stages=["reward", "cost", "policy"]), corpus)


@pytest.mark.parametrize(("sign", "label"), [(1, "unsafe"), (-1, "safe")])
def test_a_cost_model_that_would_see_one_label_only_is_refused(on_files, sign, label):
    """Its zero, which separates safe from unsafe, could be anywhere."""
    one = ScoreExample("p", ("a", "b"), 0, (sign, 0))
    with pytest.raises(DataError, match=rf"all labelled {label}: .*dataset.cost_labels"):
        require_examples(on_files, replace(FULL, cost=Split([one, EXAMPLE], [])))
    both = ScoreExample("p", ("a", "b"), 0, (sign, -sign))
    require_examples(on_files, replace(FULL, cost=Split([both], [])))
    require_examples(replace(on_files, cost=ScorerConfig(path="owner/name")), replace(FULL, cost=Split([one], [])))


@pytest.mark.parametrize(("name", "remedy"), [("reward", "better_response_id"), ("cost", "safety labels")])
def test_a_score_model_without_examples_is_refused_unless_it_is_published_or_the_worlds_truth(on_files, config, name, remedy):
    corpus = replace(FULL, **{name: NOTHING})
    with pytest.raises(DataError, match=rf"^the {name} model .*{remedy}.*{name}\.path"):
        require_examples(on_files, corpus)
    require_examples(replace(on_files, **{name: ScorerConfig(path="owner/name")}), corpus)
    world = ClosedFormConfig(prompts=8, responses=16, pairs_per_prompt=1, demonstrations_per_prompt=1, scores="oracle")
    require_examples(config, replace(closed_form_corpus(world, 0), **{name: NOTHING}))


@pytest.mark.parametrize("name", ["reward", "cost"])
def test_the_folder_of_a_score_model_must_exist(on_files, tmp_path, name):
    with pytest.raises(ModelError, match="no such folder"):
        require_examples(replace(on_files, **{name: ScorerConfig(path=str(tmp_path / "gone"))}), FULL)


# Parts


def test_without_another_engine_the_policy_samples_itself(config, tmp_path):
    assert make_engine(config, tmp_path) is None


def test_a_resumed_run_keeps_its_counts_of_forwards_and_its_history(config, tmp_path):
    store, history = open_store(config, tmp_path)
    store.get("kind", {"a": 1}, lambda: ({"x": torch.zeros(1)}, {}), ("store/cost_forwards", 5))
    history.log(stage="policy", step=1, loss=0.5)
    history.write()
    resumed, old = open_store(replace(config, resume=True), tmp_path)
    assert resumed.forward_counter.total("store/cost_forwards") == 5
    assert old.rows == [{"stage": "policy", "step": "1", "loss": "0.5"}]
    new, empty = open_store(config, tmp_path)
    assert new.forward_counter.total("store/cost_forwards") == 0
    assert empty.rows == []
    assert new.holds("kind", {"a": 1}), "artifacts are all runs'"


def test_a_row_of_sft_holds_up_to_eight_demonstrations_of_one_prompt(encoder):
    items = [Demonstration(f"how {i % 2}", "well,") for i in range(20)]
    rows = sft_rows(encoder, items)
    assert [(row[0], len(row[1])) for row in rows] == [
        (encoder.prompt("how 0"), 8), (encoder.prompt("how 0"), 2), (encoder.prompt("how 1"), 8), (encoder.prompt("how 1"), 2),
    ]  # fmt: skip


def test_sft_takes_the_tokens_of_its_rows_in_every_epoch(config, encoder):
    """A prompt of one token, read once for both responses of one token and the end: 1 + 2 + 2 in each of three epochs."""
    items = [Demonstration("how", "well,"), Demonstration("how", "sure,")]
    thrice = replace(config, sft=replace(config.sft, epochs=3))
    assert sft_compute(thrice, encoder, items).trained_tokens == 3 * 5
    assert sft_compute(replace(thrice, stages=["policy"]), encoder, items).trained_tokens == 0


# All of it, without anything to train


@pytest.fixture
def oracle_run(config):
    """No SFT, the world's true scores."""
    return replace(config, dataset=replace(config.dataset, scores="oracle"), stages=["policy", "evaluate"])


@pytest.fixture
def built(oracle_run, tmp_path, screen):
    folder = tmp_path / "run"
    inputs = load_stage_inputs(oracle_run, folder, *open_store(oracle_run, folder), screen)
    return inputs, *build_evaluation(inputs, folder, screen)


def test_without_sft_the_reference_is_the_base_model_frozen(oracle_run, built, tmp_path):
    stage_inputs, setup, metrics = built
    settings = stage_inputs.settings
    base = load_base(make_trainables(oracle_run, torch.device("cpu")), load_tokenizer(oracle_run.model))
    reference = setup.evaluator.reference
    assert parameter_hash(reference) == base.identity
    assert setup.constants.reference.identity == f"base:{base.identity}"
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not reference.training
    assert list(setup.evaluator.scorers) == list(setup.constants.scorers) == ["reward", "cost"]
    assert [c.limit for c in setup.constraints] == [oracle_run.constraint.c_limit]
    assert settings.folder == tmp_path / "run" / "checkpoints"
    assert (tmp_path / "run" / "identity").read_text(encoding="utf-8").strip() == oracle_run.identity()
    assert metrics["data/pairs"] == 32
    assert not [key for key in metrics if key.startswith(("sft/", "budget/"))]


def test_method_inputs_have_the_pairs_the_exact_problem_and_the_same_constants(oracle_run, built, screen, tmp_path):
    stage_inputs, setup, _ = built
    inputs, counts = make_method_inputs(stage_inputs, setup, screen)
    assert counts == {"data/truncated": 0, "data/equal_after_cut": 0}
    assert inputs.pairs.records == setup.corpus.pairs
    world, table = setup.corpus.world, inputs.pairs.table
    number = int(table.pair_M2[0, 0])
    text = (inputs.pairs.records[0].prompt, inputs.pairs.records[0].response_0)
    assert (float(table.scores["reward"][number]), float(table.scores["cost"][number])) == pytest.approx(world.truth(*text))
    assert inputs.exact.beta == oracle_run.policy.beta
    assert torch.equal(inputs.exact.scores["cost"], inputs.exact.truth["cost"]), "an oracle's scores are the truth"
    assert inputs.demonstrations == setup.corpus.demonstrations.train


def test_the_method_sft_is_the_reference_itself(oracle_run, built, screen):
    stage_inputs, setup, _ = built
    inputs, _ = make_method_inputs(stage_inputs, setup, screen)
    trained = train_policy(oracle_run, inputs, "sft", screen)
    assert trained.model is setup.evaluator.reference
    assert (trained.dual, trained.speed, trained.compute.trained_tokens) == ({}, {}, 0)


def test_a_run_without_sft_trains_whole_score_models(config, tmp_path, screen, monkeypatch):
    """The base model is the reference then, and frozen; what is copied from it for a score model must not be."""
    trained = []
    monkeypatch.setattr(scorers, "fit", lambda module, *_: trained.extend(p.requires_grad for p in module.parameters()))
    raw = ScorerConfig(unit_sd=False)  # of an untrained head all scores are equal, and their deviation is no unit
    without_sft = replace(config, stages=["reward", "cost", "policy"], reward=raw, cost=raw)
    folder = tmp_path / "run"
    inputs = load_stage_inputs(without_sft, folder, *open_store(without_sft, folder), screen)
    build_evaluation(inputs, folder, screen)
    assert trained
    assert all(trained)


def test_a_run_that_would_have_to_train_a_scorer_that_it_leaves_out_is_refused(config, tmp_path, screen):
    without = replace(config, stages=["policy"])
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"^stages: reward"):
        load_stage_inputs(without, folder, *open_store(without, folder), screen)
    assert not (folder / "identity").exists(), "refused before the run was begun"
