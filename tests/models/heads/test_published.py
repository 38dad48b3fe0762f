"""Score models in their published layouts, each compared with a forward pass written here from the weights alone."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)

from cdpo_lightning.config import ScorerConfig
from cdpo_lightning.errors import ConfigError, ModelError
from cdpo_lightning.models.heads.published import load_score_model, local_folder
from cdpo_lightning.models.heads.score_model import pad
from cdpo_lightning.models.lm.causal_lm import word_tokenizer
from cdpo_lightning.scorers.model_scorer import ModelScorer

WORDS = [
    "BEGINNING",
    "OF",
    "CONVERSATION:",
    "USER:",
    "ASSISTANT:",
    "is",
    "tea",
    "good",
    "yes",
    "no",
    "ASSISTANT:yes",
    "ASSISTANT:no",
]
TEXTS = [("is tea good", "yes"), ("tea", "no tea is good"), ("is tea good", "no")]
CPU = torch.device("cpu")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}


def scorer_of(folder: Path, template: str, **options) -> ModelScorer:
    config = ScorerConfig(path=str(folder), template=template, max_tokens=64, **options)
    model, tokenizer = load_score_model(config, CPU)
    return ModelScorer(model, tokenizer, template, 64, 2, "32-true", "x", float(config.sign))


def test_scores_in_bf16_are_nearly_those_in_float32(beaver):
    """A run in bf16 loads a published model so; the scores of this untrained one are of order 1."""
    folder = beaver()
    full, config = scorer_of(folder, "beaver"), ScorerConfig(path=str(folder), template="beaver", max_tokens=64)
    model, tokenizer = load_score_model(config, CPU, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    half = ModelScorer(model, tokenizer, "beaver", 64, 2, "bf16-mixed", "x", 1.0)
    torch.testing.assert_close(half.score(TEXTS), full.score(TEXTS), rtol=0.05, atol=0.05)


def decoder_config(family: type = LlamaConfig, **changes):
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    more = {} if family is GPT2Config else {"num_key_value_heads": 2, "max_position_embeddings": 64}
    return family(**SIZES, **special, **more, initializer_range=0.5, **changes)


@pytest.fixture
def beaver(tmp_path):
    """Save a tiny random score model as safe-rlhf does, its weights' names with the given prefix."""

    def make(prefix: str = "model.", binary: bool = False, **changes) -> Path:
        torch.manual_seed(1)
        config = decoder_config(architectures=["LlamaModelForScore"], score_dim=1, bias=False, **changes)
        weights = {f"{prefix}{name}": value for name, value in LlamaModel(config).state_dict().items()}
        head = prefix.removesuffix("model.")
        weights[f"{head}score_head.weight"] = torch.randn(1, 16)
        weights[f"{head}normalizer.mean"], weights[f"{head}normalizer.var"] = torch.zeros(1), torch.ones(1)
        folder = tmp_path / f"beaver{len(list(tmp_path.iterdir()))}"
        config.save_pretrained(folder)
        word_tokenizer(WORDS).save_pretrained(folder)
        if binary:
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def by_hand(folder: Path, prompt: str, response: str) -> float:
    """Return the score from the template, an eos token, a Llama with the file's weights, and the head times its last state."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    text = f"BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}"
    ids = [tokenizer.convert_tokens_to_ids(word) for word in text.split()] + [tokenizer.eos_token_id]
    assert tokenizer.unk_token_id not in ids
    file = folder / "model.safetensors"
    weights = load_file(file) if file.exists() else torch.load(folder / "pytorch_model.bin")
    plain = LlamaModel(LlamaConfig.from_pretrained(folder)).eval()
    plain.load_state_dict({k.split("model.")[-1]: v for k, v in weights.items() if not re.search("score_head|normalizer", k)})
    head = next(v for name, v in weights.items() if name.endswith("score_head.weight"))
    with torch.no_grad():
        return float(plain(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] @ head[0])


BEAVER_TEXTS = [("is tea good", "yes"), ("tea", "no tea is good"), ("is tea good", "no")]


@pytest.mark.parametrize("prefix", ["model.", "model.model.", "module.model."])
@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_the_published_beaver_layout(beaver, prefix, binary):
    """The three texts have different lengths, so that two of them are padded in a batch."""
    folder = beaver(prefix, binary)
    expected = [by_hand(folder, *text) for text in BEAVER_TEXTS]
    assert len({round(score, 3) for score in expected}) == 3
    assert scorer_of(folder, "beaver").score(BEAVER_TEXTS).tolist() == pytest.approx(expected, abs=1e-5)


def test_sign_minus_one_makes_a_cost_of_a_safety_score(beaver):
    folder = beaver()
    expected = [-by_hand(folder, *text) for text in BEAVER_TEXTS]
    assert scorer_of(folder, "beaver", sign=-1).score(BEAVER_TEXTS).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", [LlamaConfig, GPT2Config, Qwen2Config, MistralConfig], ids=lambda c: c.model_type)
def test_decoders_that_classify_with_one_label(tmp_path, family):
    """The expected scores come from transformers' own class, one sequence at a time, without padding."""
    torch.manual_seed(1)
    theirs = AutoModelForSequenceClassification.from_config(decoder_config(family, num_labels=1)).eval()
    theirs.save_pretrained(tmp_path)
    word_tokenizer(WORDS).save_pretrained(tmp_path)
    texts = [[3, 4, 5, 1], [6, 7, 1], [9, 8, 7, 6, 5, 1]]
    with torch.no_grad():
        expected = [float(theirs(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in texts]
        model, _ = load_score_model(ScorerConfig(path=str(tmp_path)), CPU)
        result = model(*pad(texts)).tolist()
    assert len({round(score, 3) for score in expected}) == 3
    assert result == pytest.approx(expected, abs=1e-5)


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """[CLS] first [SEP] second [SEP], as BERT reads two texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


@pytest.mark.parametrize("family", [BertConfig, RobertaConfig], ids=lambda c: c.model_type)
def test_encoders_that_classify_two_texts_with_one_label(tmp_path, family):
    """The expected scores come from transformers' own class on the tokenizer's output for two texts, one at a time."""
    torch.manual_seed(1)
    segments = 2 if family is BertConfig else 1
    config = family(
        **SIZES, num_labels=1, type_vocab_size=segments, pad_token_id=0, max_position_embeddings=64, initializer_range=0.5
    )
    theirs = AutoModelForSequenceClassification.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer = pair_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    expected = []
    for text in TEXTS:
        read = tokenizer(*text, return_tensors="pt")
        with torch.no_grad():
            expected.append(
                float(theirs(**(read if segments == 2 else {k: read[k] for k in ("input_ids", "attention_mask")})).logits)
            )
    assert len({round(score, 3) for score in expected}) == 3
    assert scorer_of(tmp_path, "pair").score(TEXTS).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_given_revision_of_a_hub_name_is_fetched(monkeypatch, tmp_path):
    requested = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda path, revision: requested.append((path, revision)) or str(tmp_path)
    )
    assert local_folder("owner/name", "v1") == tmp_path
    assert requested == [("owner/name", "v1")]


# Refusals


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_score_model(ScorerConfig(path=str(folder)), CPU)
    return str(caught.value)


def test_missing_weights_are_refused(beaver):
    """transformers would fill them with random numbers."""
    folder = beaver()
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layers.1.mlp.up_proj" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert "no weights for layers.1.mlp.up_proj.weight and 0 more" in refused(folder)
    save_file({"score_head.weight": weights["score_head.weight"]}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "no weights for embed_tokens.weight" in refused(folder)


def test_a_head_of_several_scores_is_refused(beaver):
    folder = beaver()
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"score_head.weight": torch.ones(2, 16)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "expected a head with one output, got 2" in refused(folder)


def test_a_model_that_normalizes_its_scores_is_refused(beaver):
    assert "do_normalize=true" in refused(beaver(do_normalize=True))


def test_a_language_model_is_refused(tmp_path):
    """Whatever the number of labels in its config.json."""
    for labels, says in ((2, "got num_labels=2"), (1, "no weights for score.weight")):
        folder = tmp_path / str(labels)
        config = decoder_config(num_labels=labels)
        LlamaModel(config).save_pretrained(folder)
        word_tokenizer(WORDS).save_pretrained(folder)
        assert says in refused(folder)


def test_a_folder_without_weights_or_tokenizer_is_refused(beaver, tmp_path):
    folder = beaver()
    (folder / "tokenizer.json").unlink()
    assert "no score model could be loaded" in refused(folder)
    (tmp_path / "empty").mkdir()
    assert "no score model could be loaded" in refused(tmp_path / "empty")
    assert "no such folder" in refused(tmp_path / "gone")


def test_a_truncated_weight_file_is_refused(beaver):
    folder = beaver()
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    assert "no score model could be loaded" in refused(folder)


def test_a_failed_download_is_reported(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match="neither a folder nor a hub name that can be fetched"):
        local_folder("owner/name", None)


@pytest.mark.parametrize(
    ("keys", "says"),
    [({"sign": 2}, "sign=2"), ({"sign": -1, "path": ""}, "sign=-1"), ({"template": "pair", "path": ""}, "template=pair")],
)
def test_an_invalid_sign_or_template_is_refused(keys, says):
    with pytest.raises(ConfigError, match=says):
        ScorerConfig(**{"path": "x", **keys})


def test_config_json_decides_the_architecture(beaver):
    """The layout does not: weights with the config.json of another family are refused."""
    folder = beaver()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert "no weights for" in refused(folder)
