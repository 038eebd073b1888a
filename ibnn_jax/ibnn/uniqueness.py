"""Up to which lam the solution is unique, and how lam is kept there."""

import jax.numpy as jnp

from ibnn_jax.core.options import real_array
from ibnn_jax.ibnn.couplings import Coupling, Dense, check_coupling, check_slope

CONSTRAINTS = ("unique", "nonpositive", None)
MARGIN = 0.95  # "unique" keeps lam below this share of the uniqueness bound


def uniqueness_bound(p, coupling: Coupling):
    """The lam below which Eq. (4) has exactly one solution, of the shape of p.

    Let R be the largest row sum of w and m = max(0, -smallest eigenvalue of w). For
    tanh, whose derivative is a positive definite function, the bound is

        1 / (p (R + m))

    sigma(0) = 0, so the diagonal of w is free: with m added to it w is positive
    semidefinite, and so is K_ik = w_ik p sigma'(p (z_k - z_i)), a Schur product.
    Hence -DB = diag(d) - K <= diag(d) <= p (R + m), and the Hessian of the energy
    I + lam DB stays positive definite below the bound. Uniform has R = 1, m = 0; a
    Window has m at most 1/3 (side 3) or 1/4 (side 5); two rival populations have m = R,
    which is the paper's 1 / (2 p) (Corollary 3.1). Other sigmas, and a traced w, keep
    1 / (2 max sigma' p R).

    Raises:
        ValueError: what is given is no coupling, or p <= 0.
    """
    check_coupling(coupling)
    check_slope(p)
    p = real_array("p", p)
    if isinstance(coupling, Dense):
        shape = coupling.w.shape[:1]
    else:  # of any size: the bound does not depend on it
        shape = (10**9,) * len(coupling.axes)
    return coupling.bind(shape).bound(p)


def project_lam(lam, p, coupling: Coupling, constraint: str | None = "unique"):
    """lam brought back inside its constraint, elementwise: a pure function.

    For training outside Flax NNX: call it on lam after every optimiser update.

    Args:
        lam, p: scalars or arrays that broadcast. coupling: of the layer.
        constraint: "unique", at most 0.95 of `uniqueness_bound`; "nonpositive", at
            most 0; None, free.

    Raises:
        ValueError: an unknown constraint or coupling, or p <= 0.
    """
    check_coupling(coupling)
    check_slope(p)
    if constraint not in CONSTRAINTS:
        raise ValueError(f"constraint must be one of {CONSTRAINTS}; got {constraint!r}")
    if constraint is None:
        return lam
    if constraint == "nonpositive":
        return jnp.minimum(real_array("lam", lam), 0)
    lam, limit = real_array("lam", lam), MARGIN * uniqueness_bound(p, coupling)
    if not jnp.issubdtype(lam.dtype, jnp.floating):
        lam = lam.astype(float)
    return jnp.minimum(lam, limit.astype(lam.dtype))
