"""The groups `model` and `dataset`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cdpo_lightning.config.fields import AtLeastTwo, CountOrAll, OneOf, Share, require, settings
from cdpo_lightning.config.messages import Expected
from cdpo_lightning.errors import ConfigError

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
LayersOrAll = Annotated[NonNegativeInt, Expected("0 (everything) or more")]


@settings
class ModelConfig:
    """The language model: built here (`path` empty), a local folder, `package:NAME` (shipped on PyPI) or a hub name."""

    name: str = "tiny_llama"
    path: str = ""
    gguf_file: str = ""
    revision: str | None = None
    trust_remote_code: bool = False
    architecture: dict[str, int] = field(default_factory=dict)
    template: Literal["plain", "chat", "beaver"] = "plain"
    template_options: dict[str, Any] = field(default_factory=dict)  # for the chat template, such as enable_thinking: false
    stop: list[str] = field(default_factory=list)  # tokens that end a response, besides those of template, model and tokenizer
    max_prompt_tokens: PositiveInt = 16
    max_response_tokens: AtLeastTwo = 24
    attention: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    scorer_layers: CountOrAll = 0  # the first layers that the score models keep; 0: all
    scorer_trainable_layers: LayersOrAll = 0  # the last of those layers that are trained, the rest and the embedding are frozen
    trainable_layers: LayersOrAll = 0  # the last layers that are trained, the rest and the embedding are frozen
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile of the layers, in training and in the reference pass
    lora_rank: Annotated[NonNegativeInt, Expected("0 (no adapters) or more")] = 0  # of adapters on every linear layer
    lora_alpha: PositiveFloat = 16.0  # the adapters' output is scaled by lora_alpha / lora_rank
    lora_merge: bool = True  # export an ordinary model; false: the adapters alone
    quantize: Literal["", "nf4"] = ""  # nf4: the frozen weights under the adapters in 4 bits (QLoRA)

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        built = not self.path and self.attention == "flex_attention"
        require(not built, "attention", self.attention, "sdpa or eager with model.path empty, for the small models built here")
        both = bool(self.lora_rank and self.trainable_layers)
        require(not both, "lora_rank", self.lora_rank, "0 with model.trainable_layers: adapters or layers are trained")
        adapted = bool(self.lora_rank) or not self.quantize
        require(adapted, "quantize", self.quantize, "empty unless model.lora_rank is more than 0")
        return self

    def require_architecture(self) -> None:
        """Check the sizes of a model built here; for a missing one transformers would use that of Llama-7B.

        Raises:
            ConfigError: a size is missing, unknown or incompatible with the others.
        """
        sizes, key = self.architecture, "model.architecture"
        for name in sorted(sizes.keys() ^ set(_SIZES)):
            raise ConfigError(f"{key}.{name}: expected exactly these, to build a model: {', '.join(_SIZES)}")
        for name, size in sizes.items():
            require(size >= 1, f"{key}.{name}", size, "at least 1")
        hidden, heads, groups = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]
        require(hidden % (2 * heads) == 0, f"{key}.hidden_size", hidden, f"an even multiple of the {heads} heads")
        require(heads % groups == 0, f"{key}.num_key_value_heads", groups, f"a divisor of the {heads} heads")


@settings
class ClosedFormConfig:
    """The closed-form world, whose optimum is known by enumeration (`dataset=closed_form`)."""

    kind: Literal["closed_form"] = "closed_form"
    name: str = "closed_form"
    prompts: Annotated[int, Field(ge=8, le=64)] = 32
    responses: Annotated[int, OneOf((16, 64, 256, 1024, 4096))] = 64  # per prompt
    pairs_per_prompt: PositiveInt = 64
    demonstrations_per_prompt: PositiveInt = 128
    correlation: Annotated[float, Field(ge=-0.85, le=0.85)] = 0.6  # of true reward and true cost, over all prompts and responses
    risk_share: Annotated[float, Field(ge=0, le=0.25)] = 0.2  # share of the cost's variance that the topic explains
    off_grammar_share: Share = 0.25  # share of pairs with one response outside the grammar
    off_grammar_reward: float = -3.0
    off_grammar_cost: float = 3.0
    withheld: Annotated[float, Field(ge=0, le=0.5)] = (
        0.0  # share of each prompt's best responses (reward - cost) left out of the pairs
    )
    scores: Literal["learned", "oracle"] = "learned"  # learned: the trained score models; oracle: the true scores


@settings
class FilesConfig:
    """Preference data in files or on the hub; each path is a file, a folder or a hub name, empty if not used."""

    kind: Literal["files"] = "files"
    name: str = "pku_saferlhf"
    # The policy's pairs.
    pairs: Annotated[str, Field(min_length=1), Expected("a file, a folder or a hub name")] = field(kw_only=True)
    pairs_source: str = "pku_saferlhf"  # a data source; its registry refuses an unknown one
    reward_pairs: str = ""  # prompt, chosen, rejected; empty: better_response_id of `pairs`
    cost_labels: str = ""  # prompt, response, is_safe; added to the safety labels of `pairs`
    demonstrations: str = ""
    evaluation_prompts: str = ""
    split: str = "train"
    evaluation_split: str = "train"
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)  # column of a source: column of your files
    on_unusable: Literal["error", "drop"] = "error"  # of rows that no record can be made of; dropped ones are counted by reason
    on_conflict: Literal["drop", "flip", "keep", "error"] = "drop"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of prompts, by a hash of seed and prompt
    max_pairs: CountOrAll = 0  # of the policy stage; 0: all
    max_reward_pairs: CountOrAll = 0
    max_cost_examples: CountOrAll = 0
    max_demonstrations: CountOrAll = 0
    max_held_out: CountOrAll = 0
