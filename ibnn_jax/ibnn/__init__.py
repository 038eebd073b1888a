"""Implicit bias: z = y - lam B(z), on groups of neurons that see each other.

equation.py    the problem: residual, energy, start, step sizes, uniqueness
couplings.py   Uniform, Window, Dense: which neurons see each other
pairwise.py    their sums over pairs of neurons
sigmas.py      the nonlinearity of the coupling
layout.py      axes of y <-> groups
solve.py       solve, implicit_bias, energy, inverse
mean_field/    the solver for uniform coupling
"""
