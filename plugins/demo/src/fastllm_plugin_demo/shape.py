"""How large a grown model is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama that growth changes; head size, vocabulary and context stay the small model's."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int

    def parameters(self, *, head_dim: int, vocabulary: int) -> int:
        """Parameters of such a model with tied embeddings and without biases."""
        attention = 2 * self.hidden * head_dim * (self.heads + self.kv_heads)
        mlp = 3 * self.hidden * self.intermediate
        norms = 2 * self.hidden
        return vocabulary * self.hidden + self.layers * (attention + mlp + norms) + self.hidden
