"""Temperature: how boldly a language model chooses its next token."""

from jaxtyping import Float
from torch import Tensor

__all__ = ["softmax_with_temperature"]


def softmax_with_temperature(logits: Float[Tensor, "*batch vocab"], temperature: float) -> Float[Tensor, "*batch vocab"]:
    """Probabilities of the next token; raises ValueError unless `temperature` is positive."""
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive; for the limit 0 take logits.argmax(-1)")
    return (logits / temperature).softmax(dim=-1)
