"""Uniform coupling in O(n): a group's neurons reduced to a few points, or on a grid.

solver.py      MeanField: its options, what it states
plan.py        what is tried for groups of one size
forward.py     the attempts: points, grids, pairs
pullback.py    the adjoint
reduced.py     groups solved on points, and their adjoint
points.py      what stands for a group's neurons, and its solution
estimate.py    by how much an answer from points may be wrong
quadrature.py  many neurons as few weighted points
on_grids.py    groups solved on grids, and their adjoint
newton.py      Newton's method for all neurons, through a grid
starts.py      where it begins
linearised.py  what a step of it solves, and the adjoint
ladder.py      which grid serves a group
sizes.py       how many cells, nodes and neurons suit a platform
grid.py        a grid, and the neurons on it
spline.py      sums of tanh as sums between the coefficients of splines
patches.py     the same sums wherever the neurons lie, for what no grid serves
limits.py      which residuals are accepted
pallas.py      work on the points as one kernel on NVIDIA GPUs
"""
