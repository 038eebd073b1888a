# %% [markdown]
# # Train and attack
#
# Train an IBNN and its standard twin on small images, then attack both: with
# gradients (PGD) and by moving pixels (Pixle). The data is made here, so the page
# needs none. Set the environment variable `STEPS` for another budget.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import ibnn_jax
from ibnn_jax.attacks import pgd, pixle

STEPS = int(os.environ.get("STEPS", 150))

# %% [markdown]
# ## Data
#
# Three classes of blobs, rings and crosses at random places, with noise.

# %%
rng = np.random.default_rng(0)


def draw(count, size=12):
    rows, columns = np.mgrid[:size, :size]
    labels = rng.integers(0, 3, count)
    centre = rng.uniform(4, 7, (count, 2, 1, 1))
    dy, dx = rows - centre[:, 0], columns - centre[:, 1]
    distance = np.hypot(dy, dx)
    blob = np.exp(-(distance**2) / 6)
    ring = np.exp(-((distance - 3.2) ** 2))
    cross = np.exp(-(np.minimum(abs(dy), abs(dx)) ** 2)) * (distance < 4.5)
    shape = np.choose(labels[:, None, None], [blob, ring, cross])
    images = np.clip(0.7 * shape + rng.normal(0.15, 0.1, shape.shape), 0, 1)
    return jnp.asarray(images[..., None], jnp.float32), jnp.asarray(labels)


images, labels = draw(512)
test_images, test_labels = draw(64)
figure, axes = plt.subplots(1, 8, figsize=(12, 1.6), layout="constrained")
for axis, image, label in zip(axes, images, labels):
    axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
    axis.set(title=int(label), xticks=[], yticks=[])

# %% [markdown]
# ## Two networks, paired
#
# From the same `rngs` both start with the same weights.

# %%
SIZE = dict(image_shape=(12, 12, 1), classes=3, layers=1, channels=3)
models = {
    "standard": ibnn_jax.UCN(**SIZE, neuron=None, rngs=nnx.Rngs(0)),
    "IBNN": ibnn_jax.UCN(**SIZE, rngs=nnx.Rngs(0)),
}


@nnx.jit
def step(model, optimizer, images, labels):
    def loss(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    ibnn_jax.project(model)
    return value


def accuracy(model, images, labels):
    return float((model(images).argmax(-1) == labels).mean())


figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for name, model in models.items():
    optimizer = nnx.Optimizer(model, optax.sgd(0.05, 0.9), wrt=nnx.Param)
    losses = []
    for number in range(STEPS):
        batch = (np.arange(64) + 64 * number) % len(images)
        losses.append(float(step(model, optimizer, images[batch], labels[batch])))
    model.eval()
    axis.plot(losses, label=name)
    print(f"{name}: test accuracy {accuracy(model, test_images, test_labels):.3f}")
axis.set(xlabel="step", ylabel="loss", yscale="log")
axis.legend()
print("lam =", [round(float(lam), 3) for lam in models["IBNN"].lams()])

# %% [markdown]
# ## PGD
#
# The gradient of the IBNN is implicit and exact, so this is a true white-box attack.

# %%
STRENGTHS = (0.0, 0.05, 0.1, 0.2)
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for name, model in models.items():
    kept = []
    for eps in STRENGTHS:
        attacked = pgd(
            model, test_images, test_labels, jax.random.key(0), eps=eps, steps=5
        )
        kept.append(1 - float(attacked.fooled.mean()))
    axis.plot(STRENGTHS, kept, "o-", label=name)
    print(name, [f"{share:.2f}" for share in kept])
axis.set(xlabel="eps", ylabel="accuracy under attack", ylim=(0, 1.02))
axis.legend()

# %% [markdown]
# ## Pixle
#
# Pixle asks the network nothing but its outputs, and copies a few pixels to other
# places.

# %%
moved = pixle(
    models["IBNN"],
    test_images,
    test_labels,
    jax.random.key(1),
    restarts=4,
    iterations=3,
)
print(f"IBNN under Pixle: {1 - float(moved.fooled.mean()):.2f}")
figure, axes = plt.subplots(2, 6, figsize=(9, 3), layout="constrained")
for above, below, before, after in zip(axes[0], axes[1], test_images, moved.images):
    above.imshow(before[..., 0], cmap="gray", vmin=0, vmax=1)
    below.imshow(after[..., 0], cmap="gray", vmin=0, vmax=1)
    above.set(xticks=[], yticks=[])
    below.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("before")
axes[1, 0].set_ylabel("after")

# %% [markdown]
# ## What this shows
#
# With the default budget, on two CPU cores: PGD at eps = 0.05 leaves the IBNN 0.41 of
# its images and its twin 0.94; at eps = 0.2 it leaves 0.28 and 0.11. That 0.2 leaves
# the IBNN more than 0.1 does shows that the attack fails there; `restarts=4` finds
# more. Pixle fools the IBNN on no image that it got right. One seed and 64 images show
# how to attack, not which network is the more robust: the experiments `pgd` and `pixle`
# compare many seeds, with intervals (`python -m train experiments pgd`).
