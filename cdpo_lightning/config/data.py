"""The groups `model` and `dataset`: what is trained and on what."""

from __future__ import annotations

from dataclasses import dataclass, field

from cdpo_lightning.config.checks import choice, require
from cdpo_lightning.errors import ConfigError

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class ModelConfig:
    """The language model: built here (`path` empty), a local folder, `package:NAME` (shipped on PyPI) or a hub name."""

    name: str = "tiny_llama"
    path: str = ""
    gguf_file: str = ""
    revision: str | None = None
    trust_remote_code: bool = False
    architecture: dict[str, int] = field(default_factory=dict)
    template: str = "plain"
    max_prompt_tokens: int = 16
    max_response_tokens: int = 24
    attention: str = "sdpa"
    scorer_layers: int = 0  # how many of the first layers the score models keep; 0: all
    scorer_trainable_layers: int = 0  # how many of those are trained, the rest and the embedding frozen; 0: everything
    trainable_layers: int = 0  # how many of the last layers are trained, the rest and the embedding frozen; 0: everything
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile of the layers, trained and in the reference pass
    lora_rank: int = 0  # rank of low-rank adapters on every linear layer, which alone are trained; 0: none
    lora_alpha: float = 16.0  # their output is scaled by lora_alpha / lora_rank
    lora_merge: bool = True  # export an ordinary model; false: the adapters alone
    quantize: str = ""  # nf4: the weights beside the adapters in 4 bits (QLoRA)

    def __post_init__(self) -> None:
        choice("model.template", self.template, ("plain", "chat", "beaver"))
        choice("model.attention", self.attention, ("sdpa", "eager", "flex_attention"))
        built = not self.path and self.attention == "flex_attention"
        require(
            not built, "model.attention", self.attention, "sdpa or eager with model.path empty, for the small models built here"
        )
        require(self.max_prompt_tokens >= 1, "model.max_prompt_tokens", self.max_prompt_tokens, "at least 1")
        require(self.max_response_tokens >= 2, "model.max_response_tokens", self.max_response_tokens, "at least 2")
        require(self.trainable_layers >= 0, "model.trainable_layers", self.trainable_layers, "0 (everything) or more")
        key, value = "model.scorer_trainable_layers", self.scorer_trainable_layers
        require(value >= 0, key, value, "0 (everything) or more")
        require(self.lora_rank >= 0, "model.lora_rank", self.lora_rank, "0 (no adapters) or more")
        require(self.lora_alpha > 0, "model.lora_alpha", self.lora_alpha, "more than 0")
        both = bool(self.lora_rank and self.trainable_layers)
        require(not both, "model.lora_rank", self.lora_rank, "0 with model.trainable_layers: adapters or layers are trained")
        choice("model.quantize", self.quantize, ("", "nf4"))
        require(
            bool(self.lora_rank) or not self.quantize,
            "model.quantize",
            self.quantize,
            "empty unless model.lora_rank is more than 0",
        )
        require(self.scorer_layers >= 0, "model.scorer_layers", self.scorer_layers, "0 (all) or more")

    def require_architecture(self) -> None:
        """A model built here has every size, or the library would put a seven-billion-parameter Llama's in its place.

        Raises:
            ConfigError: a size is missing, unknown or does not go with the others.
        """
        sizes, key = self.architecture, "model.architecture"
        for name in sorted(sizes.keys() ^ set(_SIZES)):
            raise ConfigError(f"{key}.{name}: expected exactly these, to build a model: {', '.join(_SIZES)}")
        for name, size in sizes.items():
            require(size >= 1, f"{key}.{name}", size, "at least 1")
        hidden, heads, groups = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]
        require(hidden % (2 * heads) == 0, f"{key}.hidden_size", hidden, f"an even multiple of the {heads} heads")
        require(heads % groups == 0, f"{key}.num_key_value_heads", groups, f"a divisor of the {heads} heads")


@dataclass(frozen=True)
class ClosedFormConfig:
    """The world whose optimum is known by enumeration (`dataset=closed_form`)."""

    kind: str = "closed_form"
    name: str = "closed_form"
    prompts: int = 32
    responses: int = 64  # per prompt: a power of 4 from 16 to 4096
    pairs_per_prompt: int = 64
    demonstrations_per_prompt: int = 128
    correlation: float = 0.6  # of true reward and true cost, over all prompts and responses
    risk_share: float = 0.2  # share of the cost's variance that is the topic's own
    off_grammar_share: float = 0.25  # share of pairs with one response outside the grammar
    off_grammar_reward: float = -3.0
    off_grammar_cost: float = 3.0
    withheld: float = 0.0  # share of each prompt's responses, the best by true reward - cost, that no pair holds
    scores: str = "learned"  # learned: the trained score models; oracle: the truth

    def __post_init__(self) -> None:
        allowed = (16, 64, 256, 1024, 4096)
        require(self.responses in allowed, "dataset.responses", self.responses, f"one of {allowed}")
        require(8 <= self.prompts <= 64, "dataset.prompts", self.prompts, "8 to 64")
        require(self.pairs_per_prompt >= 1, "dataset.pairs_per_prompt", self.pairs_per_prompt, "at least 1")
        answers = self.demonstrations_per_prompt
        require(answers >= 1, "dataset.demonstrations_per_prompt", answers, "at least 1")
        require(abs(self.correlation) <= 0.85, "dataset.correlation", self.correlation, "-0.85 to 0.85")
        require(0 <= self.risk_share <= 0.25, "dataset.risk_share", self.risk_share, "0 to 0.25")
        require(0 <= self.off_grammar_share < 1, "dataset.off_grammar_share", self.off_grammar_share, "[0, 1)")
        require(0 <= self.withheld <= 0.5, "dataset.withheld", self.withheld, "0 to 0.5")
        choice("dataset.scores", self.scores, ("learned", "oracle"))


@dataclass(frozen=True)
class FilesConfig:
    """Preference data in files or on a hub; each path is a file, a folder or a hub name, empty where not used."""

    kind: str = "files"
    name: str = "pku_saferlhf"
    pairs: str = ""  # the policy's pairs
    pairs_source: str = "pku_saferlhf"
    reward_pairs: str = ""  # prompt, chosen, rejected; empty: better_response_id of `pairs`
    cost_labels: str = ""  # prompt, response, is_safe; added to the safety labels of `pairs`
    demonstrations: str = ""
    evaluation_prompts: str = ""
    split: str = "train"
    evaluation_split: str = "train"
    revision: str | None = None
    on_conflict: str = "drop"
    held_out: float = 0.1  # share of prompts, by a hash of seed and prompt
    max_pairs: int = 0  # of the policy stage; 0: all
    max_reward_pairs: int = 0
    max_cost_examples: int = 0
    max_demonstrations: int = 0
    max_held_out: int = 0

    def __post_init__(self) -> None:
        require(bool(self.pairs), "dataset.pairs", repr(self.pairs), "a file, a folder or a hub name")
        known = ("pku_saferlhf", "beavertails", "preference", "hh_harmless", "truthfulqa")
        choice("dataset.pairs_source", self.pairs_source, known)
        choice("dataset.on_conflict", self.on_conflict, ("drop", "flip", "keep", "error"))
        require(0 < self.held_out < 1, "dataset.held_out", self.held_out, "between 0 and 1")
        for key in ("max_pairs", "max_reward_pairs", "max_cost_examples", "max_demonstrations", "max_held_out"):
            require(getattr(self, key) >= 0, f"dataset.{key}", getattr(self, key), "0 (all) or more")
