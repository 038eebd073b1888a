"""The paper's network beside its standard twin, on three classes of small images."""

import optax
from flax import nnx

import ibnn_jax
from examples.data import shapes


@nnx.jit
def train_step(model, optimizer, images, labels):
    """One update; lam is brought back to where the solution is unique."""

    def loss(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    ibnn_jax.project(model)
    return value


def train(model, steps: int, batch: int = 64) -> float:
    """Accuracy on images it was not trained on."""
    optimizer = nnx.Optimizer(model, optax.sgd(0.05, 0.9), wrt=nnx.Param)
    images, labels = shapes(1024)
    for step in range(steps):
        rows = slice(step * batch % 1024, step * batch % 1024 + batch)
        train_step(model, optimizer, images[rows], labels[rows])
    model.eval()
    images, labels = shapes(256, seed=1)
    return float((model(images).argmax(-1) == labels).mean())


def main(steps: int = 200) -> dict[str, float]:
    """Accuracy of both."""
    accuracies = {}
    for name, options in (("standard", {"neuron": None}), ("IBNN", {})):
        model = ibnn_jax.UCN((16, 16, 1), 3, layers=1, rngs=nnx.Rngs(1), **options)
        accuracies[name] = train(model, steps)
        lams = ", ".join(f"{float(lam):.3f}" for lam in model.lams())
        shown = f", lam {lams}" if lams else ""
        print(f"{name}: accuracy {accuracies[name]:.3f}{shown}")
    return accuracies


if __name__ == "__main__":
    main()
