r"""The inverse Gauss-Newton matrix of a network in row space: n q x n q.

With ``X = S^T J`` the root-weighted Jacobian of the penalised parameters, ``Y = S^T B`` that of the
free ones, ``A = X X^T`` the kernel and ``M = rho I + A``, the gradient ``[X Y]^T v`` is solved by

.. math:: \delta w = X^\top P v, \quad \delta b = N v, \qquad
          N = (Y^\top M^{-1} Y)^+ Y^\top M^{-1}, \quad P = M^{-1} (I - Y N),

and ``I - h = rho P`` is what the hat matrix leaves. A gradient along the fitted parameters ``w``
(what a lost share of the penalty pulls with) is ``t w`` and the source ``-t X w``, ``t`` its size
over the ridge. States are ``(b, p, t)``: free parameters, row coefficients, multiple of ``w``
(Sun and Valaee, arXiv 2605.11239, with free parameters by a Schur complement).
"""

import torch
from sklearn.utils import gen_batches

from ..exceptions import SingularCurvatureError
from ..linalg import inverse_from_cholesky, symmetric_pseudo_inverse
from ._base import DEGENERATE, LeaveOneOut, complement_inverse, span

_BLOCK_DOUBLES = 2**24
_KEPT_DOUBLES = 2**25
_SHIFT_STEPS = 2000
_SHIFT_TOLERANCE = 1e-14


class KernelDual:
    """``M`` factorised, for a network's rows.

    Parameters
    ----------
    features : TangentFeatures
        Of the training rows.
    expansion : Expansion
        Of the weighted losses in the coupled layout, with coefficients.
    ridge : float
    shares : (n,) tensor or None
        Ridge that each row takes along when removed.
    parameters : (d,) tensor
        Penalised parameters that the ridge pulls at, from its center.
    """

    name = "dual"

    def __init__(self, features, expansion, ridge, shares, parameters):
        self.features = features
        self.expansion = expansion
        self.ridge = torch.tensor([ridge], dtype=torch.float64)
        self.shares = shares
        self.parameters = parameters[:, None]
        root = expansion.root[0]
        self.n_rows, self.n_outputs, self.rank_per_row = root.shape
        self.heads = features.output_heads.mixed(root)
        free = self.heads.free_jacobian.double().cpu().flatten(0, 1)
        self.n_free = free.shape[1]
        self.pull = self.heads.push(self.parameters).double().cpu().flatten(0, 1)
        self._invert(self.heads.gram(self.heads).double(), free)
        self.pull_image = self.inverse @ self.pull
        self._kept = {}

    def _invert(self, kernel, free):
        kernel.diagonal().add_(float(self.ridge))
        lower, info = torch.linalg.cholesky_ex(kernel)
        if int(info) != 0:
            raise SingularCurvatureError(
                f"The kernel matrix plus ridge {float(self.ridge):.3g} is not positive definite to "
                "working precision. Use a larger ridge (weight decay), or dtype='float64'."
            )
        inverse = inverse_from_cholesky(lower)
        self.free, self.free_image = free, inverse @ free
        self.free_inverse = symmetric_pseudo_inverse(free.T @ self.free_image)
        self.free_map = self.free_inverse @ self.free_image.T
        self.inverse = inverse
        if self.n_free:
            self.inverse.addmm_(self.free_image, self.free_map, alpha=-1.0)

    @property
    def width(self):
        """Number of row coefficients."""
        return self.n_rows * self.rank_per_row

    def columns_per_block(self):
        """How many states take a few tens of megabytes."""
        return max(1, min(self.n_rows, _BLOCK_DOUBLES // (self.width * self.rank_per_row)))

    # Outputs -----------------------------------------------------------------------------------

    def design(self, features):
        """Return what maps states to outputs of rows, (t, C, D)."""
        return self.design_of(features.heads())

    def design_of(self, heads):
        """Return what maps states to heads, (t, h, D)."""
        kernel = heads.gram(self.heads).double().cpu()
        t, h = heads.shape
        free = heads.free_jacobian.double().cpu()
        pull = heads.push(self.parameters).double().cpu()
        return torch.cat([free, kernel.view(t, h, -1), pull], 2)

    def output_changes(self, design, state):
        """Return the outputs of rows under states, (t, m, C)."""
        flat = design.flatten(0, 1) @ state[0]
        return flat.view(*design.shape[:2], -1).transpose(1, 2)

    def _design_blocks(self):
        """Yield slices of training rows and their designs."""
        step = max(1, _BLOCK_DOUBLES // (self.n_outputs * self.width))
        step = min(step, self.columns_per_block())
        for rows in gen_batches(self.n_rows, step):
            yield rows, self.design(self.features.take(rows))

    def sum_gradients(self, output_gradients):
        """Return the covector of ``sum_i u_i^T z_i`` on states, (1, D, m); u (1, n, C, m)."""
        total = 0.0
        for rows, design in self._design_blocks():
            total = total + design.flatten(0, 1).T @ output_gradients[0, rows].flatten(0, 1)
        return total[None]

    # Solutions ---------------------------------------------------------------------------------

    def _without(self, positions, lost, shares, *, first_order=False):
        """Return states (1, D, m) of objectives that lost rows and shares of the penalty.

        Parameters
        ----------
        positions : (m, g) integer tensor
            Row coefficients that each column loses.
        lost : (m, g) tensor
            Their loss coefficients ``c``.
        shares : (m,) tensor
            Ridge that goes along.
        first_order : bool
            Keep the curvature of all rows and the whole ridge.

        Without the rows, but with the whole ridge, the Hessian has a closed inverse. The lost share
        is iterated on top of it; each step is smaller by the share over the ridge. Free parameters
        that no other row determines stay as they are.
        """
        ridge, columns = self.ridge, torch.arange(len(positions))[:, None]
        rows = self.inverse[positions]  # (m, g, N)
        from_lost = torch.einsum("mgn,mg->nm", rows, lost)
        own = rows.gather(2, positions[:, None].expand(-1, positions.shape[1], -1))
        complement = ridge * own
        inverse, singular = complement_inverse(complement, may_vanish=self.n_free > 0)
        base = torch.zeros(self.width, len(positions), dtype=torch.float64)
        base[positions, columns] = lost
        free, undetermined = torch.zeros(self.n_free, len(positions), dtype=torch.float64), {}
        if not first_order:
            for column in torch.nonzero(singular)[:, 0].tolist():
                basis = self._undetermined(complement[column], positions[column])
                undetermined[column] = basis
                gradient = self.free[positions[column]].T @ lost[column]
                free[:, column] = -self.free_inverse @ (basis @ (basis.T @ gradient)) / ridge
                from_lost[:, column] -= self.free_image @ free[:, column]
        sources, image, multiple = base, from_lost, shares / ridge
        previous = None
        for _ in range(_SHIFT_STEPS):
            direct = sources - self.pull * multiple
            p = image - self.pull_image * multiple
            if not first_order:
                gap = sources[positions, columns] - ridge * p[positions, columns]
                regained = (inverse @ gap[..., None])[..., 0]
                p = p + torch.einsum("mgn,mg->nm", rows, regained)
                direct = direct.clone()
                direct[positions, columns] += regained
            if first_order or _settled(p, previous, shares):
                break
            previous = p
            sources, image = base + shares * p, from_lost + shares * (self.inverse @ p)
            multiple = shares * (1.0 + multiple) / ridge
        free += self.free_map @ direct
        for column, basis in undetermined.items():
            free[:, column] -= basis @ (basis.T @ free[:, column])
        return torch.cat([free, p, multiple[None]])[None]

    def _undetermined(self, complement, positions):
        """Return a basis of the free parameters (f, m) that only these rows' curvature sees."""
        values, vectors = torch.linalg.eigh(complement)
        return span(self.free_map[:, positions] @ vectors[:, values < DEGENERATE])

    # Removals ----------------------------------------------------------------------------------

    def _positions(self, rows):
        """Return the positions (m, q) of the coefficients of rows."""
        return rows[:, None] * self.rank_per_row + torch.arange(self.rank_per_row)

    def _share(self, rows):
        return (
            torch.zeros(len(rows), dtype=torch.float64)
            if self.shares is None
            else self.shares[rows]
        )

    def leave_one_out(self, *, first_order=False):
        """Prepare every single removal; see `Curvature.leave_one_out`."""
        n, coefficient = self.n_rows, self.expansion.coefficient[0]
        positions = self._positions(torch.arange(n))
        own = self.inverse[positions[:, :, None], positions[:, None]]
        hat = torch.eye(self.rank_per_row, dtype=torch.float64) - self.ridge * own
        leverage = hat.diagonal(dim1=1, dim2=2).sum(1)
        spread = torch.einsum("nq,nqp,np->n", coefficient, hat, coefficient)
        self._kept[first_order] = None
        blocks = []
        own_changes = torch.empty(n, self.n_outputs, dtype=torch.float64)
        for rows, design in self._design_blocks():
            index = torch.arange(n)[rows]
            states = self._without(
                positions[rows], coefficient[rows], self._share(index), first_order=first_order
            )
            own_changes[rows] = torch.einsum("bcd,db->bc", design, states[0])
            blocks.append(states)
            if n * self.width > _KEPT_DOUBLES:
                blocks.clear()
        self._kept[first_order] = torch.cat(blocks, 2) if blocks else None
        degenerate = torch.zeros(n, dtype=torch.bool)
        return LeaveOneOut(coefficient[None], own_changes[None], leverage, degenerate, spread)

    def removal_states(self, rows, leave_one_out, *, first_order=False):
        """Return the state of each single removal of ``rows``, (1, D, m)."""
        kept = self._kept.get(first_order)
        if kept is not None:
            return kept[:, :, rows]
        lost = leave_one_out.coefficients[0, rows]
        return self._without(
            self._positions(rows), lost, self._share(rows), first_order=first_order
        )

    def training_scores(self, slopes, leave_one_out, *, first_order=False):
        """Return `scores` of the target with slopes (1, n, C, 1) in the training rows' outputs."""
        target = self.sum_gradients(slopes)
        return self.scores(target, leave_one_out, first_order=first_order)

    def scores(self, target, leave_one_out, *, first_order=False):
        """Return <target, state_i> of every single removal, (n,)."""
        scores = torch.empty(self.n_rows, dtype=torch.float64)
        for rows in torch.arange(self.n_rows).split(self.columns_per_block()):
            states = self.removal_states(rows, leave_one_out, first_order=first_order)
            scores[rows] = (target * states).sum((0, 1))
        return scores

    def remove(self, rows, *, first_order=False):
        """Return the state of removing ``rows`` together, (1, D, 1)."""
        positions = self._positions(rows).reshape(1, -1)
        lost = self.expansion.coefficient[0, rows].reshape(1, -1)
        return self._without(
            positions, lost, self._share(rows).sum()[None], first_order=first_order
        )

    def edit(self, rows, gradient_change, curvature_change):
        """Return the state after rows changed their gradients and curvatures, (1, D, 1)."""
        inverse_root = torch.linalg.pinv(self.expansion.root[0, rows])  # (e, q, C)
        source = (inverse_root @ gradient_change[0, :, :, None]).flatten()
        positions = self._positions(rows).flatten()
        if curvature_change is not None:
            change = torch.block_diag(*(inverse_root @ curvature_change[0] @ inverse_root.mT))
            eye = torch.eye(len(positions), dtype=torch.float64)
            hat = eye - self.ridge * self.inverse[positions][:, positions]
            seen = torch.linalg.solve(eye + hat @ change, hat @ source)
            source = source - change @ seen
        direct = torch.zeros(self.width, 1, dtype=torch.float64)
        direct[positions, 0] = -source
        return torch.cat([self.free_map @ direct, self.inverse @ direct, direct[:1] * 0.0])[None]

    def lift(self, state):
        """Return the penalised and the free parameters (., m) of states."""
        p, multiple = state[0, self.n_free : -1], state[0, -1:]
        weights = p.view(self.n_rows, self.rank_per_row, -1)
        penalized = self.heads.pull(weights).double().cpu()
        penalized = penalized + self.parameters.double().cpu() * multiple
        return penalized, state[0, : self.n_free]


def _settled(p, previous, shares):
    """Tell whether an iteration of columns has come to its fixed point."""
    if not bool((shares != 0).any()):
        return True
    if previous is None:
        return False
    change = (p - previous).abs().amax(0)
    return bool((change <= _SHIFT_TOLERANCE * p.abs().amax(0)).all())
