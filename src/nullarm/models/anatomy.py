"""Where a causal LM keeps its parts: embedding, blocks, final norm and head, by the class of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nullarm.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Layout:
    """Names, inside the trunk, of what transformers has no common accessor for.

    Attributes:
        blocks: The list of blocks.
        final_norm: The norm after the last block.
    """

    blocks: str = "layers"
    final_norm: str = "norm"


LAYOUTS: Mapping[str, Layout] = {
    "LlamaForCausalLM": Layout(),
    "MistralForCausalLM": Layout(),
    "Qwen2ForCausalLM": Layout(),
    "Qwen3ForCausalLM": Layout(),
    "GemmaForCausalLM": Layout(),
    "Gemma2ForCausalLM": Layout(),
    "Gemma3ForCausalLM": Layout(),
    "GPT2LMHeadModel": Layout("h", "ln_f"),
    "GPTNeoXForCausalLM": Layout("layers", "final_layer_norm"),
}
SUPPORTED = tuple(LAYOUTS)
"""Names of the classes whose parts are known."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal LM; none of them is a copy.

    Attributes:
        model: The whole causal LM.
        trunk: Maps `input_ids` or `inputs_embeds` to the normed last hidden states; calling it skips the head.
        embedding: Maps `[batch, position]` token ids to what the trunk takes as `inputs_embeds`, scaled if the model
            scales its embeddings, before position embeddings if it adds any.
        blocks: The blocks, in order.
        final_norm: The norm between the last block and the head.
        head: Maps normed hidden states to logits, before any softcap.
        softcap: c where the model's logits are c · tanh(logits / c).
    """

    model: Any
    trunk: nn.Module
    embedding: nn.Module
    blocks: nn.ModuleList
    final_norm: nn.Module
    head: nn.Linear
    softcap: float | None


def anatomy(model: Any) -> Anatomy:
    """The parts of a causal LM, or of the model inside of a PEFT wrapper.

    Raises:
        ModelError: The class of the model is not known, or an adapter changes its head or its input.
    """
    from torch import nn

    if type(model).__name__ not in LAYOUTS:
        model = _inside_peft(model)
    layout = LAYOUTS[type(model).__name__]
    trunk, head = model.base_model, model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(
            "the head is no plain linear layer, as when an adapter changes it",
            value=type(head).__name__,
            valid="a model into which the adapter is merged",
            next_command="model.merge_and_unload()",
        )
    return Anatomy(
        model=model,
        trunk=trunk,
        embedding=model.get_input_embeddings(),
        blocks=getattr(trunk, layout.blocks),
        final_norm=getattr(trunk, layout.final_norm),
        head=head,
        softcap=getattr(model.config, "final_logit_softcapping", None),
    )


def unknown_architecture(name: str) -> ModelError:
    """The refusal of a class whose parts are not known, with the way to add it."""
    return ModelError(
        "the parts of a model of this class are not known",
        value=name,
        valid=SUPPORTED,
        next_command='"Add an architecture" in CONTRIBUTING.md',
    )


def _inside_peft(model: Any) -> Any:
    from peft import PeftModel

    inside = model.get_base_model() if isinstance(model, PeftModel) else model
    if type(inside).__name__ not in LAYOUTS:
        raise unknown_architecture(type(inside).__name__)
    if inside is not model and model.active_peft_config.is_prompt_learning:
        raise ModelError(
            "the adapter adds virtual tokens, which the model inside does not see",
            value=model.active_peft_config.peft_type.value,
            valid="LoRA and other adapters of weights",
        )
    return inside
