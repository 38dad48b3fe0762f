"""How each scorer is obtained: the world's truth, a published model, or one that is trained here or in the store."""

from dataclasses import replace

import pytest
import torch

from cdpo_lightning.config import ClosedFormConfig, ScorerConfig
from cdpo_lightning.data.corpus import ScoreExample, Split, closed_form_corpus
from cdpo_lightning.errors import ConfigError, ModelError
from cdpo_lightning.models.heads.score_model import from_causal_lm
from cdpo_lightning.models.lm.causal_lm import parameter_hash
from cdpo_lightning.pipeline import scorers
from cdpo_lightning.pipeline.base_model import IdentifiedModel, StageInputs, make_trainables
from cdpo_lightning.pipeline.scorers import (
    SCORER_KINDS,
    load_published,
    make_scorer,
    require_better_than_chance,
    require_scorers,
    scorer_kind,
)
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.scorers.oracle import OracleScorer

CPU = torch.device("cpu")
EXAMPLES = Split(
    [ScoreExample("well,", ("sure,", "gladly,"), 1, (0, 1))], [ScoreExample("well,", ("sure,", "gladly,"), 0, (-1, 1))]
)
WORLD = closed_form_corpus(ClosedFormConfig(prompts=8, responses=16, pairs_per_prompt=1, demonstrations_per_prompt=1), 0)
FILES = replace(WORLD, world=None, reward=EXAMPLES, cost=EXAMPLES)
ORACLE = replace(WORLD, world=replace(WORLD.world, config=replace(WORLD.world.config, scores="oracle")))


@pytest.fixture
def inputs(config, encoder, make_model, inference, store, settings):
    def make(corpus=FILES, **changes):
        run = replace(config, **changes)
        model = make_model()
        base = IdentifiedModel(model, parameter_hash(model))
        return StageInputs(run, corpus, encoder, base, make_trainables(run, CPU), inference, store, settings)

    return make


@pytest.fixture
def fits(monkeypatch):
    """In place of a fit the head becomes ones; of each, whether each parameter of the score model would have been trained."""
    seen = []

    def fit(module, *_):
        seen.append({name: parameter.requires_grad for name, parameter in module.model.named_parameters()})
        torch.nn.init.ones_(module.model.head.weight)

    monkeypatch.setattr(scorers, "fit", fit)
    return seen


# Which kind


@pytest.mark.parametrize(
    ("corpus", "path", "expected"),
    [
        (FILES, "", "trained"),
        (FILES, "a-folder", "published"),
        (WORLD, "", "trained"),
        (WORLD, "a-folder", "published"),
        (ORACLE, "", "oracle"),
        (ORACLE, "a-folder", "oracle"),
    ],
    ids=["files", "files, path", "world", "world, path", "oracle", "oracle, path"],
)
def test_the_kind_of_a_scorer(config, corpus, path, expected):
    """`dataset.scores=oracle` comes before a path."""
    assert scorer_kind(replace(config, cost=ScorerConfig(path=path)), corpus, "cost") == expected
    assert scorer_kind(config, FILES, "cost") == "trained", "of its own path alone"


def test_every_kind_has_a_function(config):
    assert set(SCORER_KINDS) == {"oracle", "published", "trained"}
    with pytest.raises(ConfigError, match=r"scorers.kind"):
        SCORER_KINDS["orcle"]


# The world's truth


@pytest.mark.parametrize(("name", "column"), [("reward", 0), ("cost", 1)])
def test_the_oracle_gives_the_worlds_truth(inputs, name, column):
    scorer, quality = make_scorer(inputs(ORACLE), name)
    assert isinstance(scorer, OracleScorer)
    assert quality == {}
    texts = [(prompt, response) for prompt in ORACLE.world.prompts for response in ORACLE.world.responses[:3]]
    assert scorer.score(texts).tolist() == [ORACLE.world.truth(*text)[column] for text in texts]


def test_the_identity_of_an_oracle_names_score_world_and_seed(inputs):
    other = replace(ORACLE, world=replace(ORACLE.world, config=replace(ORACLE.world.config, correlation=0.1)))
    made = [
        make_scorer(inputs(ORACLE), "reward"),
        make_scorer(inputs(ORACLE), "cost"),
        make_scorer(inputs(other), "cost"),
        make_scorer(inputs(ORACLE, seed=1), "cost"),
    ]
    assert len({scorer.identity for scorer, _ in made}) == 4


# Trained here


def test_a_scorer_that_no_stage_trains_and_the_store_lacks_is_refused(inputs, fits):
    with pytest.raises(ConfigError) as caught:
        require_scorers(inputs(stages=["reward", "policy"]))
    message = str(caught.value)
    assert message.startswith("stages: cost")
    assert "cost.path" in message
    assert "\n" not in message
    assert not fits


def test_a_scorer_that_the_store_has_needs_no_stage(inputs, fits):
    """Trained by one run, read by another: the same scores, quality and identity."""
    texts = [("well,", "sure,"), ("well,", "gladly,")]
    first, quality = make_scorer(inputs(), "cost")
    second, again = make_scorer(inputs(stages=["policy"]), "cost")
    assert len(fits) == 1
    assert quality == again
    assert first.identity == second.identity
    assert second.identity.startswith("cost:")
    torch.testing.assert_close(second.score(texts), first.score(texts), rtol=0, atol=0)
    assert first.score(texts)[0] != first.score(texts)[1]


def test_the_stored_scorer_of_another_configuration_does_not_count(inputs, fits):
    make_scorer(inputs(), "cost")
    require_scorers(inputs(stages=["reward", "policy"]))
    with pytest.raises(ConfigError, match=r"^stages: cost"):
        require_scorers(inputs(stages=["reward", "policy"], cost=ScorerConfig(epochs=2)))
    with pytest.raises(ConfigError, match=r"^stages: reward"):
        require_scorers(inputs(stages=["policy"]))


def test_a_run_without_policies_needs_no_scorer(inputs):
    require_scorers(inputs(stages=["sft"]))


@pytest.mark.parametrize("unit_sd", [True, False])
def test_the_unit_is_the_deviation_of_the_raw_scores_of_the_training_responses(inputs, fits, unit_sd):
    scorer, quality = make_scorer(inputs(cost=ScorerConfig(unit_sd=unit_sd)), "cost")
    raw = replace(scorer, unit=1.0).score([("well,", "sure,"), ("well,", "gladly,")])
    assert quality["cost/unit"] == pytest.approx(float(raw.std()) if unit_sd else 1.0)
    torch.testing.assert_close(scorer.score([("well,", "sure,")]), raw[:1] / quality["cost/unit"])


def test_quality_is_measured_on_the_held_out_examples(inputs, fits):
    """Of the one held-out pair the first response should cost more, and it is the safe one."""
    scorer, quality = make_scorer(inputs(), "cost")
    first, second = scorer.score([("well,", "sure,"), ("well,", "gladly,")]).tolist()
    assert quality["cost/held_out"] == 1
    assert quality["cost/pair_accuracy"] == float(first > second)
    assert quality["cost/sign_accuracy"] == ((first < 0) + (second > 0)) / 2


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable base", "frozen base"])
def test_the_whole_score_model_is_trained_whatever_became_of_the_base_model(inputs, fits, frozen):
    """Without SFT the base model is the reference and frozen; with adapters it shares its weights with what they are added to."""
    given = inputs()
    given.base.model.requires_grad_(not frozen)
    make_scorer(given, "reward")
    (trained,) = fits
    assert all(trained.values()), [name for name, is_trained in trained.items() if not is_trained]
    assert all(parameter.requires_grad != frozen for parameter in given.base.model.parameters())


def test_of_a_score_model_the_last_layers_and_the_head_are_trained_where_that_is_configured(inputs, fits, config):
    make_scorer(inputs(model=replace(config.model, scorer_trainable_layers=1)), "cost")
    (trained,) = fits
    assert trained == {name: name.startswith(("backbone.layers.1.", "backbone.norm.", "head.")) for name in trained}


# Published


@pytest.fixture
def published(monkeypatch, make_model, tokenizer):
    """A score model with a head of ones, as if it had been loaded from a folder."""
    model = from_causal_lm(make_model(1), 0).eval()
    torch.nn.init.ones_(model.head.weight)
    monkeypatch.setattr(scorers, "load_score_model", lambda *_: (model, tokenizer))
    return model


def test_a_published_scorer_has_its_own_sign_template_and_length(config, inference, published):
    text = [("well,", "sure, gladly,")]
    plain = load_published(replace(config, cost=ScorerConfig(path="x")), inference, "cost")
    turned = load_published(replace(config, cost=ScorerConfig(path="x", sign=-1)), inference, "cost")
    torch.testing.assert_close(turned.score(text), -plain.score(text))
    assert plain.published
    assert plain.template == config.model.template
    other = load_published(replace(config, cost=ScorerConfig(path="x", template="beaver", max_tokens=3)), inference, "cost")
    assert (other.template, other.max_tokens) == ("beaver", 3)
    assert len({scorer.identity for scorer in (plain, turned, other)}) == 3


def test_a_published_scorer_is_checked_on_our_examples_once(inputs, published, monkeypatch):
    given = inputs(stages=["policy"], cost=ScorerConfig(path="x"))
    scorer, quality = make_scorer(given, "cost")
    first, second = scorer.score([("well,", "sure,"), ("well,", "gladly,")]).tolist()
    assert quality["cost/pair_accuracy"] == float(first > second)
    monkeypatch.setattr(ModelScorer, "score", lambda *_: pytest.fail("it was checked already"))
    assert make_scorer(given, "cost")[1] == quality


def test_a_batch_holds_responses_flat_with_pairs_and_signs():
    """Two responses of which the second should score higher; one with a sign alone."""
    both, single = EXAMPLES.train[0], ScoreExample("p", ("x",), None, (-1,))
    batch = scorers._collate([(both, [[5], [6, 7]]), (single, [[8]])])
    ids, mask = batch.input_ids, batch.attention_mask
    assert [row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)] == [[5], [6, 7], [8]]
    assert batch.pairs.tolist() == [[1, 0]], "the preferred one first"
    assert batch.sign.tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("name", "figures", "refused"),
    [
        ("cost", {"auroc": 0.2, "auroc_chance_se": 0.05}, True),
        ("cost", {"auroc": 0.4, "auroc_chance_se": 0.05}, False),  # two standard errors: chance
        ("reward", {"pair_accuracy": 0.3, "pair_accuracy_chance_se": 0.04}, True),
        ("reward", {"pair_accuracy": 0.7, "pair_accuracy_chance_se": 0.04}, False),
        ("cost", {}, False),
    ],
)
def test_a_score_model_that_does_worse_than_chance_is_refused(name, figures, refused):
    quality = {f"{name}/{key}": value for key, value in figures.items()}
    if not refused:
        require_better_than_chance(name, quality)
        return
    with pytest.raises(ModelError, match=rf"^{name}: held-out .* expected above one half.*{name}.sign"):
        require_better_than_chance(name, quality)
