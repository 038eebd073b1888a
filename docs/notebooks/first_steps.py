# %% [markdown]
# # First steps, with pictures
#
# What the coupling does to a channel of an image, what the energy looks like, and how
# three hidden neurons draw their boundary as λ grows. This page is a notebook in the
# percent format (`docs/notebooks/first_steps.py`): open it with jupytext, or run it
# as a program.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import ibnn_jax

# %% [markdown]
# ## A channel of an image
#
# A smooth picture with some noise, as one channel. All its pixels are one coupled
# group: each pixel is moved by all others, relative to itself.

# %%
rows, columns = np.mgrid[-1:1:48j, -1:1:48j]
clean = np.exp(-8 * ((rows + 0.3) ** 2 + columns**2)) + 0.6 * (columns > 0.4)
noise = np.random.default_rng(0).normal(size=clean.shape)
picture = jnp.asarray(clean + 0.1 * noise, jnp.float32)
coupling = ibnn_jax.Uniform((-2, -1))

figure, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
for axis, lam in zip(axes, (0.0, -0.1, -0.5, 0.09)):
    z = ibnn_jax.implicit_bias(picture, lam, 10.0, coupling)
    axis.imshow(z, cmap="gray", vmin=-0.3, vmax=1.3)
    axis.set(title=f"lam = {lam:g}, std {float(z.std()):.2f}", xticks=[], yticks=[])

# %% [markdown]
# For λ < 0 all pixels move towards each other: contrast falls, most between values
# that many pixels have. For λ > 0 contrast grows. The mean stays.
#
# With a window only near pixels see each other, and λ < 0 smooths.

# %%
window = ibnn_jax.Window((5, 5), axes=(-2, -1))
figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axis, lam in zip(axes, (0.0, -0.5, -2.0)):
    z = ibnn_jax.implicit_bias(picture, lam, 10.0, window)
    axis.imshow(z, cmap="gray", vmin=-0.3, vmax=1.3)
    axis.set(title=f"window, lam = {lam:g}", xticks=[], yticks=[])

# %% [markdown]
# ## The energy
#
# The solution minimises an energy. Along the line from the input y to the solution z
# and beyond, it falls to its minimum at z.

# %%
lam, p = -0.5, 10.0
z = ibnn_jax.implicit_bias(picture, lam, p, coupling, solver=ibnn_jax.Newton())
shares = jnp.linspace(0, 1.5, 31)
energies = jax.vmap(
    lambda share: ibnn_jax.energy(
        picture + share * (z - picture), picture, lam, p, coupling
    )
)(shares)
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.plot(shares, energies)
axis.axvline(1, color="grey", lw=0.8)
axis.set(xlabel="0: the input, 1: the solution", ylabel="energy")
print("lowest at", float(shares[energies.argmin()]))

# %% [markdown]
# ## Three hidden neurons
#
# Each neuron of a network in the plane splits it where its own z is zero. With λ = 0
# these are three straight lines. As λ moves away from 0 every line bends where the
# other two neurons change: this is how three neurons draw the boundary of Fig. 2.

# %%
angles = 2 * jnp.pi * jnp.arange(3) / 3 + 0.3
m = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
ticks = jnp.linspace(-1.5, 1.5, 121)
points = jnp.stack(jnp.meshgrid(ticks, ticks), -1)
y = points @ m + 0.3

figure, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
for axis, lam in zip(axes, (0.0, -0.1, -0.3, -1.0)):
    z = ibnn_jax.implicit_bias(
        y, lam, 10.0, ibnn_jax.Uniform((-1,)), solver=ibnn_jax.Newton()
    )
    for neuron, color in enumerate(("tab:blue", "tab:orange", "tab:green")):
        axis.contour(ticks, ticks, z[..., neuron], [0], colors=color)
    active, levels = (z > 0).sum(-1), [-0.5, 0.5, 1.5, 2.5, 3.5]
    axis.contourf(ticks, ticks, active, levels, cmap="Greys", alpha=0.3)
    axis.set(title=f"lam = {lam:g}", aspect="equal", xticks=[], yticks=[])

# %% [markdown]
# ## Training λ
#
# The gradient in λ is exact, so λ can be fitted. Here the target is the same picture
# under λ = -0.3, and gradient descent finds that λ again.

# %%
target = ibnn_jax.implicit_bias(picture, -0.3, p, coupling)


def mismatch(lam):
    return ((ibnn_jax.implicit_bias(picture, lam, p, coupling) - target) ** 2).mean()


optimizer = optax.adam(0.02)
lam = jnp.array(0.0)
state, path = optimizer.init(lam), []
step = jax.jit(jax.value_and_grad(mismatch))
for _ in range(80):
    value, gradient = step(lam)
    updates, state = optimizer.update(gradient, state)
    lam = optax.apply_updates(lam, updates)
    path.append(float(lam))

figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.plot(path)
axis.axhline(-0.3, color="grey", lw=0.8)
axis.set(xlabel="step", ylabel="lam")
print(f"lam = {path[-1]:.3f}")
