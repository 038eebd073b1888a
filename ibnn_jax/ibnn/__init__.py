"""Implicit bias: z = y - lam B(z), on groups of neurons that see each other.

equation.py    the problem: residual, energy, start, step sizes, uniqueness
couplings.py   Uniform, Window, Dense: which neurons see each other
uniqueness.py  up to which lam the solution is unique, and how lam is kept there
pairwise.py    their sums over pairs of neurons
sigmas.py      the nonlinearity of the coupling
layout.py      axes of y <-> groups
sharding.py    groups spread over explicit meshes
solve.py       solve, implicit_bias, solve_adjoint, what "auto" stands for
evaluate.py    energy, inverse, one_step: the equation evaluated, not solved
mean_field/    the solver for uniform coupling
"""
