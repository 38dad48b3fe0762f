"""A score depends on the text alone, not on its padding or its batch."""

import copy

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, OPTConfig

from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.heads.score_model import from_causal_lm, pad

EOS = 1  # also the pad token of these models: only the mask distinguishes them
ROUNDING = 1e-5  # most families compute norms or positions in float32 in a float64 model, too
TEXTS = [[2, 3, EOS], [4, 5, 6, 7, EOS], [8, EOS], [EOS, EOS, EOS]]


@pytest.fixture
def scorer(any_model):
    """A score model of each family with a random head, float64."""
    model = from_causal_lm(any_model, layers=0).double()
    torch.nn.init.normal_(model.head.weight)
    return model.eval()


def read(model, text, left=0, right=0, filler=EOS):
    ids = [filler] * left + text + [filler] * right
    return model(torch.tensor([ids]), torch.tensor([[0] * left + [1] * len(text) + [0] * right]))


@pytest.mark.parametrize(("left", "right"), [(0, 1), (0, 6), (1, 0), (6, 0), (3, 3)])
def test_the_score_does_not_depend_on_padding(scorer, left, right):
    for text in TEXTS:
        torch.testing.assert_close(read(scorer, text, left, right), read(scorer, text), rtol=0, atol=ROUNDING)


def test_the_score_does_not_depend_on_the_padding_token(scorer):
    for filler in (0, 5, EOS):
        torch.testing.assert_close(read(scorer, TEXTS[0], 2, 3, filler), read(scorer, TEXTS[0]), rtol=0, atol=ROUNDING)


def test_the_score_does_not_depend_on_the_batch(scorer):
    each = torch.cat([read(scorer, text) for text in TEXTS])
    torch.testing.assert_close(scorer(*pad(TEXTS)), each, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(scorer(*pad(TEXTS[::-1])), each.flip(0), rtol=0, atol=ROUNDING)
    assert len(set(each.tolist())) == len(TEXTS)


def test_the_score_is_read_at_the_last_attended_token(make_model):
    """The head doubles the first hidden unit, so the score is twice that unit of the plain model's last state."""
    language_model = make_model().double()
    scorer = from_causal_lm(language_model, 0).double()
    with torch.no_grad():
        scorer.head.weight[0, 0] = 2.0
    last = language_model.model(input_ids=torch.tensor([TEXTS[1]])).last_hidden_state[0, -1, 0]
    torch.testing.assert_close(read(scorer, TEXTS[1], left=2), 2 * last[None].float())


def test_every_score_is_zero_before_training(any_model):
    assert from_causal_lm(any_model, 0)(*pad(TEXTS)).tolist() == [0.0] * len(TEXTS)


def test_the_backbone_is_a_copy(make_model):
    language_model = make_model()
    before = copy.deepcopy(language_model.state_dict())
    scorer = from_causal_lm(language_model, 1)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in language_model.state_dict().items())
    assert language_model.config.num_hidden_layers == 2


@pytest.mark.parametrize("family", [LlamaConfig, GPT2Config])
def test_fewer_layers_are_the_first_ones(make_model, family):
    """Truth: the first layer's output of the whole model, under the same final norm."""
    language_model = make_model(family)
    scorer = from_causal_lm(language_model, 1)
    states = []
    whole = language_model.base_model
    layers, norm = (whole.layers, whole.norm) if family is LlamaConfig else (whole.h, whole.ln_f)
    hook = layers[0].register_forward_hook(lambda _, __, out: states.append(out if torch.is_tensor(out) else out[0]))
    ids = torch.tensor([TEXTS[1]])
    whole(input_ids=ids)
    hook.remove()
    torch.testing.assert_close(scorer.backbone(input_ids=ids).last_hidden_state, norm(states[0]))
    assert scorer.backbone.config.num_hidden_layers == 1


def test_more_layers_than_the_model_has_are_refused(make_model):
    with pytest.raises(ModelError, match=r"scorer_layers=3: LlamaModel has 2 layers"):
        from_causal_lm(make_model(), 3)
    opt = make_model(OPTConfig, ffn_dim=16, word_embed_proj_dim=16)
    with pytest.raises(ModelError, match="no list of layers under a known name"):
        from_causal_lm(opt, 1)


def test_pad_by_hand():
    ids, mask = pad([[5], [6, 7, 8]])
    assert ids.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]
