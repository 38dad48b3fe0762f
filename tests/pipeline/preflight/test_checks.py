"""The pre-flight by itself, on a configuration that needs no files: what each check says, and what it refuses."""

import re
import shutil
from dataclasses import fields, replace

import pytest
import torch
from huggingface_hub import constants as hub

from cdpo_lightning.config import ConstraintConfig, FilesConfig, ModelConfig, ScorerConfig
from cdpo_lightning.data.corpus import load_corpus
from cdpo_lightning.errors import ConfigError, DataError, ModelError, NumericsError
from cdpo_lightning.pipeline import run as pipeline
from cdpo_lightning.pipeline.base_model import load_base, load_tokenizer, make_encoder, make_trainables, stage_inputs
from cdpo_lightning.pipeline.preflight import checks
from cdpo_lightning.pipeline.preflight.checks import preflight
from cdpo_lightning.pipeline.prepare import open_store
from cdpo_lightning.text.templates import Encoder


@pytest.fixture
def checked(config, tmp_path, screen):
    """What the pre-flight says of a run with these changes."""

    def check(run=None, mode="check", **changes):
        run = replace(run or config, mode=mode, **changes)
        preflight(run, tmp_path / "run", screen)
        return screen.text

    return check


def line(output, start):
    return re.search(rf"^{start}.*$", output, re.MULTILINE).group()


def test_everything_is_checked_and_nothing_is_written(checked, tmp_path):
    output = checked()
    for start in ("data", "tokenizer", "rows", "step 0", "cost sign", "memory", "disk", "run_dir", "stage", "method"):
        assert re.search(rf"^{start}\b", output, re.MULTILINE), start
    assert "not checked" not in output
    assert list(tmp_path.iterdir()) == []


# Refused before anything else


@pytest.mark.parametrize("start", [pipeline.check, pipeline.run])
def test_an_option_that_the_update_does_not_have_is_refused_first(config, start, tmp_path):
    wrong = replace(config, run_dir=str(tmp_path / "run"), constraint=ConstraintConfig(update_options={"speed": 1.0}))
    with pytest.raises(ConfigError, match=r"^constraint.update_options.speed"):
        start(wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_without_data_is_refused(checked, monkeypatch):
    corpus = checks.load_corpus
    monkeypatch.setattr(checks, "load_corpus", lambda *args: replace(corpus(*args), pairs=[]))
    with pytest.raises(DataError, match=r"^dataset.pairs"):
        checked()


def test_lengths_beyond_the_models_context_are_refused(checked, config):
    with pytest.raises(ConfigError, match=r"the model's context of 64"):
        checked(model=replace(config.model, max_prompt_tokens=60))


# Rows


def test_rows_are_the_first_pairs_with_their_lengths_and_what_is_truncated(checked, config, tokenizer):
    """32 pairs; lengths counted here from the tokenizer."""
    short = replace(config.model, max_response_tokens=4)
    output = line(checked(model=short), "rows")
    pairs = load_corpus(config.dataset, config.evaluation, config.seed).pairs[:32]
    lengths = [len(tokenizer(text)["input_ids"]) + 1 for pair in pairs for text in pair.responses]
    prompts = sorted(len(tokenizer(pair.prompt)["input_ids"]) for pair in pairs)
    truncated = sum(length > 4 for length in lengths)
    assert truncated > 0
    assert output.startswith("rows       32 pairs: ")
    assert f"prompts {prompts[0]} to {prompts[-1]}, median {prompts[len(prompts) // 2]} tokens, 0 cut" in output
    assert f", {truncated} cut; " in output


def test_prompts_that_are_rendered_already_are_noted(checked, monkeypatch):
    assert "special tokens" not in checked()
    load = checks.load_corpus

    def rendered(*args):
        corpus = load(*args)
        return replace(corpus, pairs=[replace(pair, prompt=f"<eos>{pair.prompt}") for pair in corpus.pairs])

    monkeypatch.setattr(checks, "load_corpus", rendered)
    assert re.search(r"^note: prompts hold special tokens \(<eos>\)", checked(), re.MULTILINE)


def test_the_ends_of_responses_are_shown(checked, config):
    output = checked(model=replace(config.model, stop=["<pad>"]))
    assert line(output, "ends") == "ends       sampling stops at <eos>, <pad>"


class Unended(Encoder):
    """Leaves out the end of every response that begins with `sure,`."""

    def response(self, text):
        ids = super().response(text)
        return ids[:-1] if text.startswith("sure,") else ids


def test_responses_that_do_not_end_are_refused(checked, config, monkeypatch):
    def made(*args):
        encoder = make_encoder(*args)
        return Unended(**{field.name: getattr(encoder, field.name) for field in fields(encoder)})

    monkeypatch.setattr(checks, "make_encoder", made)
    pairs = load_corpus(config.dataset, config.evaluation, config.seed).pairs[:32]
    count = sum(text.startswith("sure,") for pair in pairs for text in pair.responses)
    with pytest.raises(ModelError, match=rf"^model.template=plain: {count} of 64 responses .*<eos>"):
        checked()


# Step 0


def test_the_loss_before_the_first_step_is_ln_2(checked):
    assert "loss 0.6931, ln 2 = 0.6931" in line(checked(), "step 0")


@pytest.mark.parametrize(("loss", "expected"), [("hinge", "1.0000"), ("ipo", "1.0000")])
def test_the_loss_before_the_first_step_of_other_losses(checked, config, loss, expected):
    """At a log-ratio of 0: max(0, 1 - 0) = 1; IPO's (0 - 1/(2 beta))^2 = 1 at beta 1/2."""
    output = line(checked(policy=replace(config.policy, loss=loss, beta=0.5)), "step 0")
    assert f"loss {expected} (" in output
    assert "ln 2" not in output


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_log_probabilities_that_do_not_fit_are_refused(checked, monkeypatch, wrong):
    right = checks.response_logp_of_rows
    monkeypatch.setattr(checks, "response_logp_of_rows", lambda *args: right(*args) + wrong)
    with pytest.raises(NumericsError, match=rf"^step 0: .*{wrong:g}"):
        checked()


# The cost's sign


class ByTone:
    """Scores a harmless answer, which begins politely, `-sign`, and any other `sign`."""

    def __init__(self, sign):
        self.sign = sign

    def score(self, texts):
        harmless = [answer.startswith(("I ", "Please")) for _, answer in texts]
        return torch.tensor([-self.sign if polite else self.sign for polite in harmless], dtype=torch.float64)


def test_a_cost_model_that_is_trained_here_has_the_right_sign(checked):
    assert "trained in this run" in line(checked(), "cost sign")


def test_the_right_sign_is_told(checked, monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "load_published", lambda *_: ByTone(1.0))
    output = line(checked(cost=ScorerConfig(path=str(tmp_path))), "cost sign")
    assert "+1.00" in output
    assert "-1.00" in output
    assert "4 in order" in output


@pytest.mark.parametrize("sign", [-1.0, 0.0], ids=["turned", "constant"])
def test_a_cost_model_that_does_not_cost_harm_more_is_refused(checked, monkeypatch, tmp_path, sign):
    monkeypatch.setattr(checks, "load_published", lambda *_: ByTone(sign))
    with pytest.raises(ModelError, match=r"^cost.path=.*cost > 0 is harmful"):
        checked(cost=ScorerConfig(path=str(tmp_path)))


def test_weights_of_a_hub_or_too_large_for_a_check_are_not_loaded(checked, monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "load_published", lambda *_: pytest.fail("it was loaded"))
    assert "not checked: cost.path=owner/name is on the hub" in line(checked(cost=ScorerConfig(path="owner/name")), "cost sign")
    large = tmp_path / "large"
    large.mkdir()
    with (large / "model.safetensors").open("wb") as file:
        file.truncate(3_000_000_000)  # a sparse file: nothing is written
    output = checked(cost=ScorerConfig(path=str(large))).splitlines()
    assert any(re.match(r"cost sign +not checked: .* are 3 GB", text) for text in output)


# Without a network


def test_what_is_on_a_hub_that_cannot_be_reached_is_not_checked(checked, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    data, model = FilesConfig(pairs="owner/pairs"), ModelConfig(path="owner/model")
    output = checked(dataset=data, model=model)
    assert "not checked: no network here" in line(output, "data")
    assert "owner/pairs" in line(output, "data")
    assert "not checked: no network here" in line(output, "tokenizer")
    assert "not checked" in line(output, "rows, step 0")
    assert "not checked" in line(output, "memory")


def test_a_file_that_is_missing_is_refused_also_without_a_network(checked, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    data, model = FilesConfig(pairs=str(tmp_path / "gone.jsonl")), ModelConfig(path="owner/model")
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        checked(dataset=data, model=model)


# Resources


def test_a_disk_without_room_is_told_by_a_check_and_stops_a_run(checked, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert "TOO LITTLE" in line(checked(), "disk")
    with pytest.raises(ConfigError, match=r"^run_dir=.*choose another disk"):
        checked(mode="run")


def test_the_store_is_looked_into(checked, config, tmp_path):
    """An artifact of the same inputs is there: SFT has been run, the reward model has not."""
    config = replace(config, stages=["sft", "reward"])
    tokenizer = load_tokenizer(config.model)
    base = load_base(make_trainables(config, torch.device("cpu")), tokenizer)
    corpus = load_corpus(config.dataset, config.evaluation, config.seed)
    made_of = stage_inputs(config, tokenizer, base, config.sft, corpus.demonstrations)
    open_store(config, tmp_path)[0].get("sft", made_of, lambda: ({"x": torch.zeros(1)}, {}))
    output = checked(config)
    assert "the store has it" in line(output, r"stage +sft")
    assert "not in the store" in line(output, r"stage +reward")


def test_without_sft_in_the_stages_the_base_model_is_the_reference(checked, config):
    output = checked(replace(config, stages=["reward", "cost", "policy"]))
    assert re.search(r"^stage +reward\b", output, re.MULTILINE)


def test_a_score_model_that_is_neither_trained_nor_stored_is_refused(checked, config):
    with pytest.raises(ConfigError, match=r"^stages: cost is not among them"):
        checked(replace(config, stages=["sft", "reward", "policy"]))
