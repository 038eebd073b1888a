"""A residual network of one's own: `ImplicitBias` between convolution and ReLU."""

import jax.numpy as jnp
from flax import nnx

import ibnn_jax
from examples.quickstart import train


class Block(nnx.Module):
    """x + conv(relu(bias(conv(x)))), then the bias and ReLU of the sum."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        convolution = ibnn_jax.fast_convolution()
        options = {"conv_general_dilated": convolution, "rngs": rngs}
        self.conv1 = nnx.Conv(channels, channels, (3, 3), **options)
        self.conv2 = nnx.Conv(channels, channels, (3, 3), **options)
        self.norm1 = nnx.BatchNorm(channels, rngs=rngs)
        self.norm2 = nnx.BatchNorm(channels, rngs=rngs)
        self.bias1 = ibnn_jax.ImplicitBias(rngs=rngs)  # pixels of each channel
        self.bias2 = ibnn_jax.ImplicitBias(rngs=rngs)

    def __call__(self, x):
        v = nnx.relu(self.bias1(self.norm1(self.conv1(x))))
        return nnx.relu(self.bias2(x + self.norm2(self.conv2(v))))


class ResNet(nnx.Module):
    """Images [N, H, W, 1] -> logits [N, classes]."""

    def __init__(self, classes: int, channels: int, blocks: int, *, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, channels, (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.List([Block(channels, rngs=rngs) for _ in range(blocks)])
        self.head = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, (1, 2)))


def main(steps: int = 400, channels: int = 8, blocks: int = 2) -> float:
    """Test accuracy."""
    model = ResNet(3, channels, blocks, rngs=nnx.Rngs(0))
    accuracy = train(model, steps)
    lams = [float(layer.lam[...]) for layer in ibnn_jax.implicit_layers(model)]
    print(f"accuracy {accuracy:.3f}, lam", " ".join(f"{lam:.3f}" for lam in lams))
    return accuracy


if __name__ == "__main__":
    main()
