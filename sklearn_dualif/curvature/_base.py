r"""What both forms of the inverse Hessian share.

The Hessian is ``H = sum_i J_i^T S_i S_i^T J_i + rho R`` with ``R`` the identity on feature weights
and zero on free parameters. A *state* is a change of the parameters in the coordinates of the
form: a (G, D, m) tensor with the ``f`` free parameters first, then ``D - f`` feature weights
(primal) or coefficients of the training rows (dual); ``m`` columns are ``m`` states. A *gradient*
is laid out alike, in the coordinates in which the ridge term of a state is ``rho`` times itself.

Removing rows with penalty share ``tau`` (mean-form penalties shrink with the rows) leaves the
gradient ``-(J_G^T r_G + tau R theta)`` and the Hessian ``H - J_G^T S_G S_G^T J_G - tau R``; a
Newton step from there is the removal effect, exact for squared loss.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from sklearn.utils import gen_batches

DEGENERATE = 1e-10
"""Eigenvalues of I - h below this belong to rows that alone fix a direction."""
_SAFE_PIVOT = 1e-8


class LeaveOneOut(NamedTuple):
    """Every training row's own removal.

    Attributes
    ----------
    coefficients : (G, n, k) tensor
        The states of `Curvature.removal_states` are linear in these.
    own : (G, n, k) tensor
        Change of row i's outputs when row i is removed.
    leverage : (n,) tensor or None
        Trace of the hat matrix block of each row.
    degenerate : (n,) bool tensor
        Rows that alone determine a direction of the parameters (leverage 1 without a ridge).
    spread : (n,) tensor or None
        ``r_i^T Q_ii r_i``: squared length of each row's first-order removal in the Hessian's norm.
    """

    coefficients: torch.Tensor
    own: torch.Tensor
    leverage: torch.Tensor
    degenerate: torch.Tensor
    spread: torch.Tensor


class Curvature(ABC):
    """Inverse Hessian at one expansion of the losses.

    Parameters
    ----------
    features : LinearFeatures or KernelFeatures
        The training rows.
    layout : OutputLayout
        How outputs split into blocks of coupled coordinates.
    free : (k, f) tensor
        Jacobian of a row's block coordinates with respect to the free parameters; orthonormal
        columns.
    expansion : Expansion
        Gradients and curvature roots of the weighted losses.
    ridge : (Gs,) tensor
        ``rho`` of each block that is factorised.
    shiftable : bool
        Whether ``tau`` differs from zero anywhere: asks for a spectral factorization.
    single : bool
        Whether single precision does, where it saves time: for steps, which gradients correct.
        The attribute says whether it was taken.
    """

    def __init__(self, features, layout, free, expansion, ridge, *, shiftable, single=False):
        self.features = features
        self.layout = layout
        self.free = free
        self.expansion = expansion
        self.ridge = ridge
        self.shiftable = shiftable
        self.n_free = free.shape[1]
        self.single = single and self._may_be_single()
        self.parameters = None
        self.shares = None
        self._factorize()

    def _may_be_single(self):
        """Tell whether single precision saves time."""
        return False

    def anchor(self, parameters, shares):
        """Say where the expansion was made, which removals of penalty shares need.

        Parameters
        ----------
        parameters : (G, D, 1) tensor
            ``theta`` as a state.
        shares : (n,) tensor or None
            ``tau_i``, the ridge that row i takes along; None for sum-form objectives.
        """
        self.parameters = parameters
        self.shares = shares
        return self

    def refresh(self, expansion):
        """Take gradients from an expansion whose curvature is that of the factorization."""
        self.expansion = expansion
        return self

    @abstractmethod
    def _factorize(self):
        """Compute the factorization from the attributes."""

    @property
    @abstractmethod
    def width(self):
        """Number of feature weights or row coefficients of each penalised output."""

    @abstractmethod
    def design(self, features):
        """Return what maps states to the outputs of these rows (see `outputs`)."""

    @abstractmethod
    def row_design(self, rows):
        """Return `design` of some training rows as a dense tensor."""

    @abstractmethod
    def row_gradients(self, rows, output_gradients):
        """Return J_i^T u_i of each row i, one column a row; (G, b, k) to (G, D, b)."""

    @abstractmethod
    def sum_gradients(self, output_gradients):
        """Return sum_i J_i^T u_i over all training rows; (G, n, k, m) to (G, D, m)."""

    @abstractmethod
    def solve(self, gradients, shift=None):
        """Return ``(H - shift R)^+ gradients``; ``shift`` None or one value a column."""

    @abstractmethod
    def dual_vector(self, gradient):
        """Return the covector whose plain inner product with a state is <gradient, state>."""

    @abstractmethod
    def row_quadratics(self, rows, shift=None):
        """Return Q_ii = J_i (H - shift_i R)^+ J_i^T of each row, (Gs, b, k, k)."""

    @abstractmethod
    def remove(self, rows, *, first_order=False):
        """Return the state of removing ``rows`` together, (G, D, 1)."""

    @property
    @abstractmethod
    def factor_rows(self):
        """Number of rows of the matrix that is factorised."""

    @property
    def factor_steps(self):
        """About how many steps with a factorization take as long as making it."""
        # Cubes against squares; a step's own overhead is worth some ten million operations.
        return self.factor_rows**3 / (10 * self.factor_rows**2 + 1e7)

    @property
    def n_rows(self):
        """Number of training rows."""
        return self.features.shape[0]

    @property
    def may_vanish(self):
        """Whether removals can leave a direction of the parameters undetermined."""
        return bool((self.ridge == 0).any())

    def weights_of(self, state):
        """Return the penalised part of states as (G, width, k_p, m)."""
        return state[:, self.n_free :].reshape(state.shape[0], self.width, -1, state.shape[2])

    def outputs(self, design, state):
        """Return the outputs of rows under states: block coordinates (G, n, k, m)."""
        blocks, m = state.shape[0], state.shape[2]
        weights = self.weights_of(state)
        flat = weights.permute(1, 0, 2, 3).reshape(self.width, -1)
        values = design @ flat if torch.is_tensor(design) else design.dot(flat)
        values = values.reshape(values.shape[0], blocks, -1, m).transpose(0, 1)
        if values.shape[2] != self.layout.n_coordinates:
            values = torch.einsum("ko,gnom->gnkm", self.layout.selector, values)
        if self.n_free:
            values = values + (self.free @ state[:, : self.n_free])[:, None]
        return values

    def output_changes(self, design, state):
        """Return the latent outputs of rows under states, (n, m, C)."""
        weights, layout, m = self.weights_of(state), self.layout, state.shape[2]
        if layout.basis.shape == (1, 1):
            flat = weights[:, :, 0].permute(1, 2, 0)
        else:
            outward = layout.basis @ layout.selector
            flat = torch.einsum("co,gdom->dmgc", outward, weights)
        flat = flat.reshape(self.width, -1)
        if self.n_free:
            shifts = (layout.basis @ self.free) @ state[:, : self.n_free]
            shifts = shifts.permute(2, 0, 1).reshape(-1)
        else:
            shifts = flat.new_zeros(1)
        if torch.is_tensor(design):
            values = torch.addmm(shifts, design, flat)
        else:
            values = design.shifted_dot(flat, shifts)
        return values.reshape(-1, m, layout.n_outputs)

    def ridge_gradient(self, state, ridge):
        """Return the gradient of ``ridge ||weights||^2 / 2`` at a state; one ridge a column."""
        gradient = state * ridge
        gradient[:, : self.n_free] = 0.0
        return gradient

    # Leave-one-out -----------------------------------------------------------------------------

    def leave_one_out(self, *, first_order=False, measured=True):
        """Prepare every single removal: coefficients, own output changes and leverages.

        With ``first_order`` the classical infinitesimal coefficients, else Newton's. Not
        ``measured``, leverage and spread are left out where they cost more.
        """
        parts = [
            self._leave_out_block(rows, first_order, measured)
            for rows in gen_batches(self.n_rows, self._rows_per_block())
        ]
        coefficients, own, *rest = zip(*parts, strict=True)
        rest = [None if part[0] is None else torch.cat(part) for part in rest]
        result = LeaveOneOut(torch.cat(coefficients, 1), torch.cat(own, 1), *rest)
        if bool(result.degenerate.any()) and not first_order:
            rows = torch.nonzero(result.degenerate)[:, 0]
            states = self.removal_states(rows, result)
            result.own[:, rows] = self.own_outputs(rows, states)
        return result

    def own_outputs(self, rows, states):
        """Return J_i state_i of each row under its own state: (G, b, k)."""
        weights = self.weights_of(states)
        values = torch.einsum("nd,gdon->gno", self.row_design(rows), weights)
        values = values @ self.layout.selector.T
        if self.n_free:
            values = values + torch.einsum("kf,gfn->gnk", self.free, states[:, : self.n_free])
        return values

    def _leave_out_block(self, rows, first_order, measured):
        root = self.expansion.root[:, rows]
        gradient = self.expansion.gradient[:, rows]
        shift = None if first_order or self.shares is None else self.shares[rows]
        leverage = spread = None
        if measured or shift is None:
            quadratics = self.row_quadratics(rows)
            hat, first = _sandwich(root, quadratics), _apply(quadratics, gradient)
            leverage = _trace(hat).sum(0) * self._outputs_per_factor()
            spread = (first * gradient).sum((0, 2))
        pull = 0.0
        if self.shares is not None:
            pull = self.own_outputs(rows, self.solve(self._pull(self.shares[rows]), shift))
        if shift is not None:
            quadratics = self.row_quadratics(rows, shift)
            hat, first = _sandwich(root, quadratics), _apply(quadratics, gradient)
        own = first + pull
        degenerate = torch.zeros(own.shape[1], dtype=torch.bool)
        if first_order:
            return gradient, own, leverage, degenerate, spread
        eye = torch.eye(hat.shape[-1], dtype=hat.dtype)
        inverse, null = complement_inverse(eye - hat, may_vanish=self.may_vanish)
        coefficients = gradient + _apply(root, _apply(inverse, _apply(root.mT, own)))
        degenerate = null.any(0)
        own = _apply(quadratics, coefficients) + pull
        return coefficients, own, leverage, degenerate, spread

    def removal_states(self, rows, leave_one_out, *, first_order=False):
        """Return the state of each single removal of ``rows``, (G, D, b)."""
        gradients = self.row_gradients(rows, leave_one_out.coefficients[:, rows])
        shift = None
        if self.shares is not None:
            gradients = gradients + self._pull(self.shares[rows])
            shift = None if first_order else self.shares[rows]
        states = self.solve(gradients, shift)
        flagged = leave_one_out.degenerate[rows]
        if bool(flagged.any()) and not first_order:
            states = self._to_least_norm(states, rows, flagged)
        return states

    def _to_least_norm(self, states, rows, flagged):
        """Project degenerate removals to the least-norm optimum; only the primal form has any."""
        return states

    def training_scores(self, slopes, leave_one_out, *, first_order=False):
        """Return `scores` of the target with slopes (G, n, k, 1) in the training rows' outputs."""
        target = self.sum_gradients(slopes)
        return self.scores(target, leave_one_out, first_order=first_order)

    def scores(self, target, leave_one_out, *, first_order=False):
        """Return <target, state_i> of every single removal, (n,), from one solve where possible."""
        if self.shares is None or first_order:
            scores = self._scores_by_one_solve(target, leave_one_out)
            rest = torch.nonzero(leave_one_out.degenerate)[:, 0]
        else:
            scores = torch.zeros(self.n_rows, dtype=torch.float64)
            rest = torch.arange(self.n_rows)
        if not len(rest):
            return scores
        covector = self.dual_vector(target)
        for chunk in rest.split(self.columns_per_block()):
            states = self.removal_states(chunk, leave_one_out, first_order=first_order)
            scores[chunk] = (covector * states).sum((0, 1))
        return scores

    def _scores_by_one_solve(self, target, leave_one_out):
        moved = self.outputs(self.design(self.features), self.solve(target))[..., 0]
        scores = (moved * leave_one_out.coefficients).sum((0, 2))
        if self.shares is not None:
            pulled = self.solve(self._pull(self.shares.new_ones(1)))
            scores = scores + self.shares * (self.dual_vector(target) * pulled).sum()
        return scores

    def _pull(self, shares):
        """Return the gradients ``tau R theta``, one column a share."""
        return self.ridge_gradient(self.parameters, shares)

    def group_share(self, rows):
        """Return the ridge that a group takes along."""
        return 0.0 if self.shares is None else float(self.shares[rows].sum())

    def _outputs_per_factor(self):
        """How many independent outputs one factorization serves."""
        return self.layout.n_blocks if self.expansion.root.shape[0] == 1 else 1

    def _rows_per_block(self):
        """How many rows' Jacobians take a few tens of megabytes."""
        width = (self.n_free + self.width) * self.layout.n_coordinates**2
        return max(1, min(self.n_rows, 4 * 2**20 // width))

    def columns_per_block(self):
        """How many states take a few tens of megabytes."""
        dimension = (
            self.n_free + self.width * self.layout.selector.shape[1]
        ) * self.layout.n_blocks
        return max(1, min(self.n_rows, 4 * 2**20 // max(dimension, 1)))

    # Several rows at once ----------------------------------------------------------------------

    def edit(self, rows, gradient_change, curvature_change):
        """Return the state after rows changed their gradients and curvatures, (G, D, 1).

        ``-Q_E (I + D Q_EE)^{-1} gamma`` with ``gamma`` (G, e, k) and ``D`` (Gs, e, k, k) or None.
        """
        coefficients = gradient_change
        if curvature_change is not None:
            q, e, k = self._group_quadratics(rows)
            change = _block_diagonal(curvature_change)
            eye = torch.eye(e * k, dtype=q.dtype)
            flat = gradient_change.reshape(gradient_change.shape[0], e * k, 1)
            coefficients = torch.linalg.solve(eye + change @ q, flat).reshape(gradient_change.shape)
        gradients = self.row_gradients(rows, coefficients).sum(-1, keepdim=True)
        return -self.solve(gradients)

    def _group_quadratics(self, rows, shift=None):
        """Return Q_EE as (G, e k, e k) by solving for every unit output gradient."""
        e, k = len(rows), self.layout.n_coordinates
        design = self.row_design(rows)
        blocks = self.layout.n_blocks if self.expansion.root.shape[0] > 1 else 1
        columns = []
        for coordinate in range(k):
            unit = torch.zeros(blocks, e, k, dtype=torch.float64)
            unit[:, :, coordinate] = 1.0
            gradients = self.row_gradients(rows, unit)
            shifts = None if shift is None else shift.expand(e)
            columns.append(self.outputs(design, self.solve(gradients, shifts)))
        stacked = torch.stack(columns, -1)  # (G, e, k, e, k)
        return stacked.reshape(blocks, e * k, e * k), e, k


def _apply(matrices, vectors):
    """Return matrices (Gs, b, p, q) times vectors (G, b, q)."""
    if matrices.shape[-2:] == (1, 1):
        return matrices[..., 0] * vectors
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _sandwich(root, quadratics):
    """Return ``S^T Q S`` (Gs, b, q, q)."""
    if root.shape[-2:] == (1, 1):
        return root**2 * quadratics
    return root.mT @ quadratics @ root


def _trace(matrices):
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def _block_diagonal(blocks):
    """Return (G, e k, e k) from (G, e, k, k)."""
    return torch.stack([torch.block_diag(*block) for block in blocks])


def definite_solve(matrices, columns):
    """Return ``matrices^{-1} columns``, or None unless all are far from singular."""
    lower, info = torch.linalg.cholesky_ex(matrices)
    pivots = lower.diagonal(dim1=-2, dim2=-1)
    if bool(info.any()) or bool((pivots**2 < _SAFE_PIVOT).any()):
        return None
    return torch.cholesky_solve(columns, lower)


def span(directions):
    """Return an orthonormal basis (f, r) of the span of directions (f, m)."""
    basis, sizes, _ = torch.linalg.svd(directions, full_matrices=False)
    return basis[:, sizes > 1e-8 * sizes.amax()] if directions.numel() else basis


def _definite_inverse(matrices):
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype)
    return definite_solve(matrices, eye.expand_as(matrices))


def _plain_inverse(matrices):
    inverse, info = torch.linalg.inv_ex(matrices)
    return None if bool(info.any()) else inverse


def complement_inverse(complement, *, may_vanish):
    """Return the inverse of ``I - h`` (..., q, q) and which blocks are singular, (...).

    A singular block is a row that alone determines some direction of the parameters; its inverse
    leaves that direction out. ``may_vanish`` says that such rows are to be looked for.
    """
    if complement.shape[-1] == 1:
        # A ridge holds every direction: what it leaves may be small, but not zero.
        null = complement < (DEGENERATE if may_vanish else torch.finfo(complement.dtype).tiny)
        inverse = torch.where(null, 0.0, 1.0 / torch.where(null, 1.0, complement))
        return inverse, null[..., 0, 0]
    inverse = _definite_inverse(complement) if may_vanish else _plain_inverse(complement)
    if inverse is not None:
        return inverse, torch.zeros(complement.shape[:-2], dtype=torch.bool)
    values, vectors = torch.linalg.eigh(complement)
    null = values < DEGENERATE
    inverse = torch.where(null, 0.0, 1.0 / torch.where(null, 1.0, values))
    return (vectors * inverse.unsqueeze(-2)) @ vectors.mT, null.any(-1)
