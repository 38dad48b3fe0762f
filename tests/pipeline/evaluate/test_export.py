"""Exported policies and score models, read by plain transformers: the same numbers, however the batch is padded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
)

from cdpo_lightning.config import ModelConfig, ScorerConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.heads.published import load_score_model
from cdpo_lightning.models.heads.score_model import from_causal_lm
from cdpo_lightning.models.lm import causal_lm
from cdpo_lightning.models.lm.causal_lm import word_tokenizer
from cdpo_lightning.pipeline.base_model import make_trainables
from cdpo_lightning.pipeline.evaluate import export
from cdpo_lightning.pipeline.evaluate.export import card, export_policy, export_scorer
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.scorers.oracle import OracleScorer
from cdpo_lightning.text.templates import Encoder, encode_scored
from tests.text.chat_tokenizers import make_tokenizer, published_tokenizer

TEXTS = [("is tea good", "yes"), ("tea", "no tea is good"), ("is tea good", "")]
FAMILIES = pytest.mark.parametrize("family", [LlamaConfig, GPT2Config, MistralConfig], ids=lambda c: c.model_type)


@pytest.fixture
def make_scorer():
    def make(family: type = LlamaConfig, pad: str = "<pad>") -> ModelScorer:
        tokenizer = word_tokenizer(["is", "tea", "good", "yes", "no"])
        tokenizer.pad_token = pad
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 8}
        special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.5}
        torch.manual_seed(0)
        more = {} if family is GPT2Config else {"num_key_value_heads": 2}
        language_model = AutoModelForCausalLM.from_config(family(**sizes, **special, **more))
        model = from_causal_lm(language_model, 1).eval()
        torch.nn.init.normal_(model.head.weight)
        return ModelScorer(model.requires_grad_(False), tokenizer, "plain", 64, 2, "32-true", "x", unit=2.5)

    return make


@FAMILIES
@pytest.mark.parametrize("pad", ["<pad>", "<eos>"], ids=["pad", "pad is eos"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_reads_the_same_scores(tmp_path: Path, make_scorer, family, pad, side):
    """One batch, padded as config.json says; the scores are in units, as the run has them."""
    if side == "left" and family is GPT2Config:
        pytest.skip("GPT-2 counts its positions over the padding unless they are given")
    scorer = make_scorer(family, pad)
    export_scorer(scorer, tmp_path / "cost", "cost")
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cost", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    rows = [encode_scored(*text, "plain", scorer.tokenizer, 64) for text in TEXTS]
    length, filler = max(map(len, rows)), model.config.pad_token_id
    ids = [([filler] * (length - len(r)) + r) if side == "left" else (r + [filler] * (length - len(r))) for r in rows]
    mask = torch.tensor(ids) != filler
    with torch.no_grad():
        result = model.eval()(input_ids=torch.tensor(ids), attention_mask=mask.long()).logits[:, 0]
    assert result.tolist() == pytest.approx(scorer.score(TEXTS).tolist(), abs=1e-5)


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"], ids=["pad", "pad is eos"])
def test_the_exported_tokenizer_goes_with_the_model(tmp_path: Path, make_scorer, pad):
    """Text in, scores out, with nothing but the folder: what TRL does with the path of a reward model."""
    scorer = make_scorer(LlamaConfig, pad)
    export_scorer(scorer, tmp_path / "cost", "cost")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "cost")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cost", num_labels=1).eval()
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    batch = tokenizer([f"{p}\n{r} {tokenizer.eos_token}" for p, r in TEXTS], padding=True, return_tensors="pt")
    with torch.no_grad():
        result = model(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits[:, 0]
    assert result.tolist() == pytest.approx(scorer.score(TEXTS).tolist(), abs=1e-5)


# As Pythia has them: eos is the only special token, and pad; as GPT-2: bos, eos, unk and pad are one; as Qwen's base models: pad
# is eos, and a chat template ends with another token and a line break.
@pytest.mark.parametrize("kind", ["pythia", "gpt2", "qwen", "qwen, chat", "llama3, chat"])
@pytest.mark.parametrize("spare", [0, 8], ids=["full vocabulary", "spare embeddings"])
def test_scores_are_the_same_whatever_special_tokens_there_are(tmp_path: Path, kind: str, spare: int) -> None:
    """Plain transformers on the folder's text, alone and in a padded batch."""
    name, _, template = kind.partition(", ")
    tokenizer = published_tokenizer("llama3" if name == "llama3" else "qwen3")
    tokenizer = make_tokenizer(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token, list(tokenizer.get_added_vocab()))
    if name == "gpt2":
        tokenizer.bos_token = tokenizer.unk_token = tokenizer.eos_token
    tokenizer.pad_token = tokenizer.eos_token
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer) + spare, initializer_range=0.5, pad_token_id=tokenizer.pad_token_id, **sizes)
    model = from_causal_lm(AutoModelForCausalLM.from_config(config), 0).eval()
    torch.nn.init.normal_(model.head.weight)
    scorer = ModelScorer(model.requires_grad_(False), tokenizer, template or "plain", 64, 2, "32-true", "x", unit=2.5)
    export_scorer(scorer, tmp_path / "cost", "cost")
    assert model.backbone.get_input_embeddings().num_embeddings == len(scorer.tokenizer) + spare, "the run's own stays as it is"
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cost").eval()
    own = AutoTokenizer.from_pretrained(tmp_path / "cost")
    turns = [[{"role": "user", "content": p}, {"role": "assistant", "content": r}] for p, r in TEXTS[:2]]
    texts = [own.apply_chat_template(t, tokenize=False) if template else f"{t[0]['content']}\n{t[1]['content']}" for t in turns]
    texts = texts if template else [text + own.eos_token for text in texts]
    expected = pytest.approx(scorer.score(TEXTS[:2]).tolist(), abs=1e-5)
    with torch.no_grad():
        batch = own(texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
        assert exported(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist() == expected
        alone = [own(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]
        assert [float(exported(ids).logits[0, 0]) for ids in alone] == expected


def test_an_export_with_other_scores_is_refused_and_removed(tmp_path: Path, make_scorer, monkeypatch) -> None:
    monkeypatch.setattr(export, "_set_padding", lambda *_: None)
    with pytest.raises(ModelError, match="cost model"):
        export_scorer(make_scorer(pad="<eos>"), tmp_path / "cost", "cost")
    assert list(tmp_path.iterdir()) == []


def test_an_exported_score_model_can_be_a_score_model_from_outside(tmp_path: Path, make_scorer):
    scorer = make_scorer()
    export_scorer(scorer, tmp_path / "reward", "reward")
    model, tokenizer = load_score_model(ScorerConfig(path=str(tmp_path / "reward")), torch.device("cpu"))
    again = ModelScorer(model, tokenizer, "plain", 64, 2, "32-true", "y")
    torch.testing.assert_close(again.score(TEXTS), scorer.score(TEXTS))


def test_the_card_says_the_sign_the_template_and_the_padding(tmp_path: Path, make_scorer):
    export_scorer(make_scorer(pad="<eos>"), tmp_path / "cost", "cost")
    card = (tmp_path / "cost" / "README.md").read_text(encoding="utf-8")
    assert "**Above 0 is harmful**" in card
    assert "`plain`" in card
    assert "the padding token is\n`<unk>`" in card
    assert list(tmp_path.iterdir()) == [tmp_path / "cost"]


def test_only_what_was_trained_here_is_exported(tmp_path: Path, make_scorer):
    export_scorer(replace(make_scorer(), published=True), tmp_path / "a", "cost")
    export_scorer(OracleScorer(None, "cost", "x"), tmp_path / "b", "cost")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# Policies


def rows_of(text: str) -> dict[str, str]:
    """The table of a model card."""
    return dict(line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ") and line != "| | |")


def test_the_card_of_a_policy_says_what_was_measured_and_leaves_out_the_rest(config):
    metrics = {"dual/lambda": 1.5, "eval/cdpo/cost_mean": -0.6, "eval/cdpo/feasible": "yes", "eval/dpo/reward_mean": 2.0}
    assert rows_of(card("cdpo", config, metrics)) == {
        "beta": "0.5", "C_limit": "-0.5", "lambda after the last round": "1.5", "E[cost]": "-0.6", "meets the limit": "yes",
    }  # fmt: skip
    assert rows_of(card("dpo", config, metrics)) == {"beta": "0.5", "C_limit": "-0.5", "E[reward]": "2.0"}
    baseline = {"dual/lambda": 1.5, "dual/cdpo_fixed/lambda": 1.0}
    assert rows_of(card("cdpo_fixed", config, baseline))["lambda after the last round"] == "1.0"


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_an_exported_policy_is_an_ordinary_model_in_the_trainers_type(tmp_path, config, make_model, encoder, precision, dtype):
    config = replace(config, trainer=replace(config.trainer, precision=precision))
    policy = make_model()
    export_policy(policy, encoder, tmp_path / "cdpo", "cdpo", config, {})
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "cdpo", dtype="auto")
    assert {parameter.dtype for parameter in exported.parameters()} == {dtype}
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}, "the policy itself stays as it is"
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(exported.get_parameter(name), weight.to(dtype), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "cdpo").get_vocab() == encoder.tokenizer.get_vocab()
    assert list(tmp_path.iterdir()) == [tmp_path / "cdpo"]


@pytest.mark.parametrize("merge", [True, False])
def test_of_a_policy_with_adapters_the_merged_model_or_the_adapters_are_exported(tmp_path, config, make_model, encoder, merge):
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    model = replace(config.model, lora_rank=2, lora_merge=merge)
    config = replace(config, model=model)
    policy = make_trainables(config, torch.device("cpu")).copy_of(make_model()).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    export_policy(policy, encoder, tmp_path / "cdpo", "cdpo", config, {})
    assert (tmp_path / "cdpo" / "adapter_model.safetensors").exists() != merge
    ids = torch.tensor([[5, 9, 20, 1]])
    if merge:
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "cdpo")
    else:
        from peft import PeftModel

        exported = PeftModel.from_pretrained(make_model(), tmp_path / "cdpo")
    with torch.no_grad():
        torch.testing.assert_close(exported.eval()(ids).logits, policy(ids).logits, rtol=1e-4, atol=1e-4)


def test_an_exported_chat_policy_stops_where_its_samples_did(tmp_path, config, make_model):
    encoder = Encoder(published_tokenizer("gemma"), "chat", 64, 64)
    export_policy(make_model(), encoder, tmp_path / "cdpo", "cdpo", config, {})
    ends = AutoModelForCausalLM.from_pretrained(tmp_path / "cdpo").generation_config.eos_token_id
    assert ends == encoder.tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
    assert list(causal_lm.generation_stops(ModelConfig(path=str(tmp_path / "cdpo")))) == ends


def test_an_older_export_is_replaced_whole(tmp_path, config, make_model, encoder):
    folder = tmp_path / "cdpo"
    folder.mkdir()
    (folder / "left.txt").write_text("old", encoding="utf-8")
    export_policy(make_model(), encoder, folder, "cdpo", config, {})
    assert not (folder / "left.txt").exists()
    assert (folder / "model.safetensors").exists()
    assert list(tmp_path.iterdir()) == [folder]
