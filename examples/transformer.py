"""A small Transformer on patches of images; its MLPs have IBNN neurons."""

from flax import nnx

import ibnn_jax
from examples.quickstart import train


class Block(nnx.Module):
    """Attention, then an MLP whose hidden features are coupled, token by token."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.hidden = ibnn_jax.IBNNLinear(
            width, 2 * width, activation=nnx.gelu, rngs=rngs
        )
        self.out = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.out(self.hidden(self.norm2(x)))


class Transformer(nnx.Module):
    """Images [N, H, W, 1] -> logits [N, classes]."""

    def __init__(self, classes: int, width: int, blocks: int, *, rngs: nnx.Rngs):
        patch = (4, 4)
        self.embed = nnx.Conv(1, width, patch, patch, padding="VALID", rngs=rngs)
        places = 0.02 * rngs.params.normal((1, 16, width))
        self.places = nnx.Param(places)
        self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images):
        x = self.embed(images)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.places[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def main(steps: int = 200, width: int = 32, blocks: int = 2) -> float:
    """Test accuracy."""
    model = Transformer(3, width, blocks, rngs=nnx.Rngs(0))
    accuracy = train(model, steps)
    print(f"accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
