"""A model with Gemma's template, whose end of a turn is not its eos, learns to end its turns, and is sampled to their end."""

import pytest
import torch
from transformers import GenerationConfig

from cdpo_lightning.models.lm.causal_lm import build
from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.models.sampling.generation import sample
from cdpo_lightning.text.packing import pack
from cdpo_lightning.text.templates import Encoder
from tests.text.chat_tokenizers import published_tokenizer

DIALOGUES = {"Is tea good?": ["Yes, very.", "Yes", "Yes, very."], "Name two!": ["tea, tea", "user model", "tea, tea"]}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(published_tokenizer("gemma"), "chat", 64, 32)


@pytest.fixture(scope="module")
def policy(encoder: Encoder) -> torch.nn.Module:
    """Return a tiny Llama trained on the dialogues."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 4, "max_position_embeddings": 128}  # fmt: skip
    model = build(sizes, len(encoder.tokenizer), 0, encoder.tokenizer.eos_token_id, 0)
    rows = pack([(encoder.prompt(q), [encoder.response(a) for a in answers]) for q, answers in DIALOGUES.items()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = -response_logp(model, rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_samples_end_where_the_turn_ends_and_are_answers_of_the_dialogues(encoder: Encoder, policy: torch.nn.Module) -> None:
    questions = list(DIALOGUES)
    drawn = sample(policy, [encoder.prompt(q) for q in questions], 50, 32, encoder.stops, 0, 64)
    unfinished = sum(not s.finished for s in drawn)
    assert unfinished < 0.05 * len(drawn)
    end = encoder.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert sum(s.tokens[-1] == end for s in drawn) > 0.95 * len(drawn)
    right = sum(encoder.decode(s.tokens) in DIALOGUES[questions[s.prompt]] for s in drawn)
    assert right > 0.9 * len(drawn)


def test_the_likeliest_answer_ends_where_generate_ends_it(encoder: Encoder, policy: torch.nn.Module) -> None:
    """`generate` stops as Gemma's generation_config has it; greedy, by a temperature of nearly zero in the model itself."""
    tokenizer = encoder.tokenizer
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    assert set(ends) == set(encoder.stops)
    settings = GenerationConfig(eos_token_id=ends, pad_token_id=0, do_sample=False, max_new_tokens=32)
    for question in DIALOGUES:
        prompt = encoder.prompt(question)
        theirs = policy.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()
        assert theirs[-1] == ends[1]
        head = policy.get_output_embeddings()
        handle = head.register_forward_hook(lambda _module, _inputs, logits: logits * 1e4)
        ours = sample(policy, [prompt], 1, 32, encoder.stops, 0, 1)[0]
        handle.remove()
        assert list(ours.tokens) == theirs
