"""Single-neuron stealth attacks: a neuron is added that answers to one image only.

The attacker who adds it chooses the image (the trigger) and gets the class of choice on
it. The attack is stealthy if the network answers to all other images as before (paper,
Methods, Eqs. 41-54; the attack is Tyukin et al., 2021, arXiv 2106.13997).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.attacks.network import check_evaluation_mode
from ibnn_jax.core.options import is_known
from ibnn_jax.ibnn.couplings import Uniform
from ibnn_jax.ibnn.evaluate import one_step
from ibnn_jax.ibnn.solve import solve
from ibnn_jax.nn.ucn import UCN

# A logit that moves by more than this share of what the trigger needs is noticed.
VISIBLE = 0.01


class StealthNeuron(NamedTuple):
    """A neuron whose linear response to an image x is weights . x - offset.

    The response to its own trigger is 1. Stacked along a leading axis, the arrays are
    several neurons.
    """

    weights: Float[Array, "*neurons pixels"]
    offset: Float[Array, "*neurons"]


class StealthAttack(NamedTuple):
    """What an added neuron does.

    hit: the trigger gets the attacker's class. seen: images whose logits the neuron
    moves visibly. changed: images whose class it changes.
    """

    hit: Bool[Array, ""]
    seen: Bool[Array, "N"]
    changed: Bool[Array, "N"]


def stealth_neurons(triggers: Float[Array, "T ..."]) -> StealthNeuron:
    """The paper's neuron for every trigger: weights along the trigger, no offset.

    This is Eq. (52) with b = 0, scaled so that the linear response is 1.

    Raises:
        ValueError: a trigger is known and 0 everywhere, or not finite.
    """
    x = triggers.reshape(len(triggers), -1)
    return _neurons(x, x, jnp.zeros(x.shape[1], x.dtype), 0.0)


def informed_stealth_neurons(
    triggers: Float[Array, "T ..."],
    known: Float[Array, "N ..."],
    *,
    threshold: float = 0.8,
    ridge: float = 1e-2,
) -> StealthNeuron:
    """The neurons of an attacker who knows the statistics of images like these.

    The weights lie along the whitened trigger, C^-1 (x - mean), and the neuron is
    silent on images whose response is below the threshold.

    Args:
        triggers: images in the shape of the network's input.
        known: images that the attacker knows.
        threshold: in [0, 1), as a share of the response to the trigger.
        ridge: added to the diagonal of the covariance C.

    Raises:
        ValueError: the threshold is not in [0, 1), or ridge is not positive; a trigger
            is known and the mean of the images that are known, or not finite.
    """
    if not 0 <= threshold < 1 or not ridge > 0:
        raise ValueError(
            "threshold must be in [0, 1) and ridge positive; "
            f"got {threshold} and {ridge}"
        )
    x = triggers.reshape(len(triggers), -1)
    flat = known.reshape(len(known), -1)
    mean = flat.mean(0)
    identity = jnp.eye(flat.shape[1], dtype=flat.dtype)
    covariance = (flat - mean).T @ (flat - mean) / len(flat) + ridge * identity
    return _neurons(x, jnp.linalg.solve(covariance, (x - mean).T).T, mean, threshold)


def _neurons(x, directions, centre, threshold):
    """Neurons along these directions whose response to the triggers x is 1."""
    answer = ((x - centre) * directions).sum(1)
    if is_known(answer) and not (np.asarray(answer) > 0).all():
        first = int((np.asarray(answer) > 0).argmin())
        raise ValueError(
            "a neuron lies along its trigger, which must be finite and differ from 0 "
            f"(if informed, from the known images' mean); trigger {first} does not"
        )
    # (direction . (x - centre) / answer - threshold) / (1 - threshold)
    weights = directions / (answer * (1 - threshold))[:, None]
    offset = weights @ centre + threshold / (1 - threshold)
    return StealthNeuron(weights, offset)


def stealth(
    model: UCN,
    neuron: StealthNeuron,
    trigger: Float[Array, "H W C"],
    images: Float[Array, "N H W C"],
) -> StealthAttack:
    """Add the neuron to the first feature map of a network, and see what it does.

    The attacker knows the network. The target is the class that is least likely on the
    trigger, and the neuron's activity is added to its logit with the least strength
    that makes it the largest by 1. The map's other neurons keep the weights 1 / D
    (Eq. 46), and feel the new one.

    Args:
        model: in evaluation mode. With implicit neurons, its first layer couples the
            neurons of a map uniformly.
        neuron: one neuron, made for this trigger.
        trigger: one image.
        images: other images.

    Raises:
        ValueError: the first layer's coupling is not Uniform over the pixels of a map,
            or the network is in training mode.
    """
    _check_coupling(model)
    check_evaluation_mode(model, trigger[None])
    clean = model(trigger[None])[0]
    target, needed = clean.argmin(), clean.max() - clean.min() + 1
    # As strong as the activity that the trigger really gets.
    _, activity = _hidden(model, neuron, trigger[None])
    strength = needed / jnp.maximum(activity[0], 1e-3)
    on_trigger = _logits(model, neuron, trigger[None], strength, target)[0]
    before = model(images)
    after = _logits(model, neuron, images, strength, target)
    return StealthAttack(
        hit=on_trigger.argmax() == target,
        seen=jnp.abs(after - before).max(1) > VISIBLE * needed,
        changed=after.argmax(1) != before.argmax(1),
    )


def _check_coupling(model):
    layer = model.blocks[0].implicit
    if layer is not None and layer.coupling != Uniform((-3, -2)):
        raise ValueError(
            "stealth needs a first layer that couples the pixels of each map, "
            f"Uniform((-3, -2)); got {layer.coupling}"
        )


def _hidden(model, neuron, x):
    """The first block's output with the neuron added, and the neuron's activity [N]."""
    block = model.blocks[0]
    y = block.conv(x)
    response = x.reshape(len(x), -1) @ neuron.weights - neuron.offset
    layer = block.implicit
    if layer is None:
        return block.norm(jax.nn.relu(y)), jax.nn.relu(response)
    first_map = jnp.concatenate([y[..., 0].reshape(len(y), -1), response[:, None]], 1)
    z = _respond(layer, first_map)
    maps = layer(y).at[..., 0].set(z[:, :-1].reshape(y.shape[:-1]))
    return block.norm(jax.nn.relu(maps)), jax.nn.relu(z[:, -1])


def _respond(layer, first_map) -> Array:
    """z of the first map with the neuron in it, as the layer answers to a map."""
    n = first_map.shape[1] - 1
    lam = jnp.ravel(layer.lam[...])[0]  # one lam for all maps, or one for each
    lam = lam * (n + 1) / n  # the weights stay 1 / n with n + 1 neurons
    coupling = Uniform((-1,))
    if layer.lite:
        return one_step(first_map, lam, layer.p, coupling)
    return solve(
        first_map,
        lam,
        layer.p,
        coupling,
        solver=layer.solver,
        tol=layer.tol,
        max_steps=layer.max_steps,
    ).value


def _logits(model, neuron, x, strength, target):
    """Logits of the attacked network."""
    v, activity = _hidden(model, neuron, x)
    for block in model.blocks[1:]:
        v, _ = block(v)
    return model.head(v.reshape(len(v), -1)).at[:, target].add(strength * activity)
