r"""The inverse Hessian in row space: n q x n q, whatever the number of parameters.

With ``K`` the kernel of the training rows, ``A = S^T K S``, ``M = rho I + A`` and ``B = S^T F`` the
Jacobian of the free parameters, everything follows from

.. math:: P = M^{-1} - M^{-1} B (B^\top M^{-1} B)^+ B^\top M^{-1}, \qquad
          N = B^+ (I - A P) .

The gradient ``J^T S v`` is solved by the row coefficients ``S P v`` and the free parameters
``N v``: no difference of nearly equal terms. Its hat matrix is ``A P + B N`` and
``I - h = rho P`` (Sun and Valaee, arXiv 2605.11239, with free parameters by a Schur complement).
"""

import torch

from ..exceptions import SingularCurvatureError
from ..linalg import inverse_from_cholesky, symmetric_pseudo_inverse
from ._base import Curvature, _apply, _trace, complement_inverse

_REFINEMENTS = 2


class DualCurvature(Curvature):
    """``M`` factorised; states are coefficients of the training rows."""

    name = "dual"

    def _factorize(self):
        self.kernel = self.features.gram(self.features)
        root = self.layout.selector.T @ self.expansion.root
        blocks, n, _, q = root.shape
        self.root = root
        self.rank_per_row = q
        self.weighted_kernel = self._weighted_kernel()
        self.free_root = (self.expansion.root.mT @ self.free).flatten(1, 2)
        self.free_inverse = torch.linalg.pinv(self.free_root, rtol=1e-12)
        self.free_kernel = self.free_inverse @ self.weighted_kernel
        if self.shiftable:
            self._diagonalize()
        else:
            self._invert()

    def _weighted_kernel(self):
        """Return ``A = S^T K S``, (Gs, n q, n q)."""
        blocks, n, outputs, q = self.root.shape
        if self.root.shape == (1, n, 1, 1) and bool((self.root == 1.0).all()):
            return self.kernel[None]
        result = torch.zeros(blocks, n * q, n * q, dtype=torch.float64)
        for block in range(blocks):
            view = result[block].view(n, q, n, q)
            for a in range(q):
                for b in range(q):
                    for o in range(outputs):
                        left, right = self.root[block, :, o, a], self.root[block, :, o, b]
                        view[:, a, :, b] += left[:, None] * self.kernel * right
        return result

    def _invert(self):
        projected = []
        for block, matrix in enumerate(self.weighted_kernel):
            shifted = matrix.clone()
            shifted.diagonal().add_(self.ridge[block])
            lower, info = torch.linalg.cholesky_ex(shifted)
            if int(info) != 0:
                raise SingularCurvatureError(
                    f"The kernel matrix plus ridge {float(self.ridge[block]):.3g} is not positive "
                    "definite to working precision. Raise the ridge (alpha) of the wrapped model."
                )
            inverse = inverse_from_cholesky(lower)
            if self.n_free:
                solved = inverse @ self.free_root[block]
                small = symmetric_pseudo_inverse(self.free_root[block].T @ solved)
                inverse = inverse - solved @ small @ solved.T
            projected.append(inverse)
        self.inverse = projected[0][None] if len(projected) == 1 else torch.stack(projected)

    def _diagonalize(self):
        maps, spectra = [], []
        for block, matrix in enumerate(self.weighted_kernel):
            span = torch.linalg.svd(self.free_root[block], full_matrices=False)
            keep = span.S > 1e-12 * span.S.max() if self.n_free else span.S > 0
            basis = span.U[:, keep]
            projected = matrix - basis @ (basis.T @ matrix)
            projected = projected - (projected @ basis) @ basis.T
            # The free directions get an eigenvalue above all others, and are left out.
            top = projected.diagonal().sum() + 1.0
            values, vectors = torch.linalg.eigh(projected + top * basis @ basis.T)
            rank = len(values) - basis.shape[1]
            spectrum = values[:rank].clamp(min=0.0) + self.ridge[block]
            scaled = vectors[:, :rank] / torch.sqrt(spectrum)
            padding = (0, basis.shape[1])
            maps.append(torch.nn.functional.pad(scaled, padding))
            spectra.append(torch.nn.functional.pad(1.0 / spectrum, padding))
        self.map = torch.stack(maps)
        self.inverse_spectrum = torch.stack(spectra)

    @property
    def has_coefficients(self):
        """Whether the loss gives ``c`` with ``S c`` equal to the gradient."""
        return self.expansion.coefficient is not None

    @property
    def factor_rows(self):
        return self.n_rows * self.rank_per_row

    @property
    def width(self):
        return self.n_rows

    def design(self, features):
        return self.kernel if features is self.features else features.gram(self.features)

    def row_design(self, rows):
        return self.kernel[rows]

    def row_gradients(self, rows, output_gradients):
        penalized = output_gradients @ self.layout.selector
        blocks, b, outputs = penalized.shape
        weights = torch.zeros(blocks, self.n_rows, outputs, b, dtype=torch.float64)
        weights[:, rows, :, torch.arange(b)] = penalized.transpose(0, 1)
        free = (output_gradients @ self.free).mT
        return torch.cat([free, weights.flatten(1, 2)], 1)

    def sum_gradients(self, output_gradients):
        weights = torch.einsum("ko,gnkm->gnom", self.layout.selector, output_gradients)
        free = self.free.T @ output_gradients.sum(1)
        return torch.cat([free, weights.flatten(1, 2)], 1)

    # Products with P, N and their shifted forms ------------------------------------------------

    def _project(self, vectors, shift=None):
        """Return ``P(shift) vectors``; one shift a column."""
        if not self.shiftable:
            return self.inverse @ vectors
        whitened = self.map.mT @ vectors
        if shift is not None:
            whitened = whitened / (1.0 - self.inverse_spectrum[..., None] * shift)
        return self.map @ whitened

    def _project_rows(self, rows, shift=None):
        """Return the columns of P(shift) that belong to rows, (Gs, n q, b, q)."""
        blocks, b, q = self.root.shape[0], len(rows), self.rank_per_row
        if not self.shiftable:
            columns = self.inverse.view(blocks, -1, self.n_rows, q)
            return columns[:, :, rows]
        picked = self.map.view(blocks, self.n_rows, q, -1)[:, rows]
        if shift is not None:
            scale = 1.0 - self.inverse_spectrum[:, None] * shift[:, None]
            picked = picked / scale[:, :, None]
        return (self.map @ picked.flatten(1, 2).mT).view(blocks, -1, b, q)

    def _free_part(self, vectors, projected):
        """Return ``N vectors`` given ``P vectors``."""
        return self.free_inverse @ vectors - self.free_kernel @ projected

    def _split_free_inverse(self):
        """Return ``B^+`` as (Gs, f, n, q)."""
        return self.free_inverse.view(len(self.root), self.n_free, self.n_rows, self.rank_per_row)

    def _from_root(self, vectors, shift=None):
        """Return the state that solves the gradient ``J^T S vectors``; (G, n q, m)."""
        projected = self._project(vectors, shift)
        return torch.cat([self._free_part(vectors, projected), self._to_weights(projected)], 1)

    def _to_weights(self, vectors):
        """Return ``S vectors`` as flat row coefficients; (G, n q, m) to (G, n k_p, m)."""
        blocks, _, m = vectors.shape
        split = vectors.reshape(blocks, self.n_rows, -1, m)
        return (self.root @ split).flatten(1, 2)

    def _root_products(self, gradients, shift):
        """Return ``y`` with ``S^T (outputs of the solution) = y``, and ``S^T K kappa``."""
        free, weights = gradients[:, : self.n_free], self.weights_of(gradients)
        blocks, n, outputs, m = weights.shape
        moved = self.kernel @ weights.transpose(0, 1).reshape(n, -1)
        moved = moved.reshape(n, blocks, outputs, m).transpose(0, 1)
        pulled = (self.root.mT @ moved).flatten(1, 2)
        particular = self.free_inverse.mT @ free
        right = pulled - self.weighted_kernel @ particular
        return particular + self._project(right, shift), pulled

    def solve(self, gradients, shift=None):
        # (kappa - S y) / rho loses digits where rho is small; refinement wins them back.
        solution = self._solve_once(gradients, shift)
        for _ in range(_REFINEMENTS):
            residual = gradients - self._hessian_product(solution, shift)
            solution = solution + self._solve_once(residual, shift)
        return solution

    def _solve_once(self, gradients, shift):
        ridge = self._shifted_ridge(shift)
        response, pulled = self._root_products(gradients, shift)
        weights = (gradients[:, self.n_free :] - self._to_weights(response)) / ridge
        rest = self.weighted_kernel @ response + ridge * response - pulled
        return torch.cat([self.free_inverse @ rest / ridge, weights], 1)

    def _hessian_product(self, states, shift):
        """Return the gradients (G, D, m) that states solve."""
        moved = self.outputs(self.kernel, states)
        bent = self.expansion.root @ (self.expansion.root.mT @ moved)
        product = self.sum_gradients(bent)
        product[:, self.n_free :] += self._shifted_ridge(shift) * states[:, self.n_free :]
        return product

    def _shifted_ridge(self, shift):
        ridge = self.ridge[:, None, None]
        return ridge if shift is None else ridge - shift

    def dual_vector(self, gradient):
        weights = self.weights_of(gradient)
        moved = torch.einsum("nj,gjom->gnom", self.kernel, weights).flatten(1, 2)
        return torch.cat([gradient[:, : self.n_free], moved], 1)

    # Removals ----------------------------------------------------------------------------------

    def row_quadratics(self, rows, shift=None):
        k = self.layout.n_coordinates
        rows = torch.arange(self.n_rows)[rows]
        columns = []
        for coordinate in range(k):
            unit = torch.zeros(len(self.root), len(rows), k, dtype=torch.float64)
            unit[:, :, coordinate] = 1.0
            solved = self.solve(self.row_gradients(rows, unit), shift)
            columns.append(self.own_outputs(rows, solved))
        return torch.stack(columns, -1)

    def _leave_out_block(self, rows, first_order, measured):
        if not self.has_coefficients:
            return super()._leave_out_block(rows, first_order, measured)
        rows = torch.arange(self.n_rows)[rows]
        blocks, q = self.root.shape[0], self.rank_per_row
        columns = self._project_rows(rows)
        hat = self._hat_blocks(rows, columns)
        leverage = _trace(hat).sum(0) * self._outputs_per_factor()
        coefficient = self.expansion.coefficient[:, rows]
        spread = (coefficient * _apply(hat, coefficient)).sum((0, 2))
        if not first_order:
            shift = None if self.shares is None else self.shares[rows]
            ridge = self.ridge[:, None] if shift is None else self.ridge[:, None] - shift
            if shift is not None:
                columns = self._project_rows(rows, shift)
            split = columns.view(blocks, self.n_rows, q, len(rows), q)
            picked = torch.arange(len(rows))
            own_inverse = split[:, rows, :, picked].transpose(0, 1)
            kept = ridge[..., None, None] * own_inverse
            right = coefficient
            if shift is not None:
                right = right + self._pulled_response(rows, columns)
            inverse, _ = complement_inverse(kept, may_vanish=False)
            coefficient = _apply(inverse, right)
        none = torch.zeros(len(rows), dtype=torch.bool)
        shift = None if self.shares is None or first_order else self.shares[rows]
        states = self._states_from_columns(rows, columns, coefficient, shift)
        return coefficient, self.own_outputs(rows, states), leverage, none, spread

    def _hat_blocks(self, rows, columns):
        """Return the hat blocks ``[A P + B N]_ii`` (Gs, b, q, q) without forming ``I - rho P``."""
        blocks, q = columns.shape[0], columns.shape[3]
        left = self.weighted_kernel.view(blocks, self.n_rows, q, -1)[:, rows]
        free_rows = self.free_root.view(blocks, self.n_rows, q, self.n_free)[:, rows]
        inverse = self._split_free_inverse()[:, :, rows]
        response = torch.einsum("gbqj,gjbp->gbqp", left, columns)
        free = inverse - torch.einsum("gfj,gjbp->gfbp", self.free_kernel, columns)
        return response + torch.einsum("gbqf,gfbp->gbqp", free_rows, free)

    def _pulled_response(self, rows, columns):
        """Return what the penalty share adds before the row itself is removed, (G, b, q).

        The share's gradient is ``-(tau / rho) J^T S c`` at the optimum; with it, a row's removal
        solves ``kept v = c + [hat kappa] - kappa_i`` where ``kappa = -(tau / rho) c``.
        """
        scale = -self.shares[rows] / self.ridge[:, None]
        coefficient = self.expansion.coefficient
        flat = coefficient.flatten(1, 2)
        ridge = self.ridge[:, None] - self.shares[rows]
        # hat kappa = kappa - rho' P(shift) kappa, taken at row i with its own shift.
        projected = torch.einsum("gjbq,gj->gbq", columns, flat)
        return -(scale * ridge)[..., None] * projected + scale[..., None] * coefficient[:, rows]

    def _states_from_columns(self, rows, columns, coefficient, shift):
        """Return the states (G, D, b) of single removals from their columns of P(shift)."""
        projected = (columns * coefficient[:, None]).sum(-1)
        split = self._split_free_inverse()[:, :, rows]
        free = (split * coefficient[:, None]).sum(-1)
        if self.shares is not None:
            flat = self.expansion.coefficient.flatten(1, 2)[..., None]
            pull = flat / self.ridge[:, None, None] * self.shares[rows]
            projected = projected - self._project(pull, shift)
            free = free - self.free_inverse @ pull
        free = free - self.free_kernel @ projected
        return torch.cat([free, self._to_weights(projected)], 1)

    def removal_states(self, rows, leave_one_out, *, first_order=False):
        if not self.has_coefficients:
            return super().removal_states(rows, leave_one_out, first_order=first_order)
        shift = None if self.shares is None or first_order else self.shares[rows]
        columns = self._project_rows(rows, shift)
        return self._states_from_columns(rows, columns, leave_one_out.coefficients[:, rows], shift)

    def _scores_by_one_solve(self, target, leave_one_out):
        if not self.has_coefficients:
            return super()._scores_by_one_solve(target, leave_one_out)
        response, _ = self._root_products(target, None)
        response = response.view(response.shape[0], self.n_rows, -1)
        scores = (response * leave_one_out.coefficients).sum((0, 2))
        if self.shares is not None:
            pull = (response * self.expansion.coefficient / self.ridge[:, None, None]).sum()
            scores = scores - self.shares * pull
        return scores

    def remove(self, rows, *, first_order=False):
        if not self.has_coefficients:
            return self._remove_by_edit(rows, first_order)
        share = self.group_share(rows)
        ridge = self.ridge - share * (not first_order)
        shift = torch.full((1,), share, dtype=torch.float64) if share else None
        q, coefficient = self.rank_per_row, self.expansion.coefficient
        vectors = torch.zeros_like(coefficient)
        vectors[:, rows] = coefficient[:, rows]
        vectors = vectors - coefficient * (share / self.ridge[:, None, None])
        flat = vectors.flatten(1, 2)[..., None]
        if first_order:
            return self._from_root(flat)
        positions = (rows[:, None] * q + torch.arange(q)).flatten()
        kept = self._group_inverse(positions, share) * ridge[:, None, None]
        if not share:
            flat[:, positions] = torch.linalg.solve(kept, flat[:, positions])
            return self._from_root(flat)
        hat = flat - ridge[:, None, None] * self._project(flat, shift)
        flat[:, positions] += torch.linalg.solve(kept, hat[:, positions])
        return self._from_root(flat, shift)

    def edit(self, rows, gradient_change, curvature_change):
        if curvature_change is not None or self.layout.n_coordinates > 1:
            return super().edit(rows, gradient_change, curvature_change)
        # gamma = S v: the root form has no difference of nearly equal terms.
        root = self.expansion.root[:, rows, :, 0]
        scaled = torch.where(root > 0, gradient_change / torch.where(root > 0, root, 1.0), 0.0)
        vectors = torch.zeros(len(scaled), self.n_rows, 1, dtype=torch.float64)
        vectors[:, rows] = scaled
        return -self._from_root(vectors)

    def _group_inverse(self, positions, share):
        if not self.shiftable:
            return self.inverse[:, positions][:, :, positions]
        picked = self.map[:, positions]
        return (picked / (1.0 - self.inverse_spectrum * share)[:, None]) @ picked.mT

    def _remove_by_edit(self, rows, first_order):
        """Remove rows whose gradients are outside the range of their curvatures."""
        share = self.group_share(rows)
        pull = self._pull(torch.full((1,), share, dtype=torch.float64)) if share else None
        gradient = self.expansion.gradient[:, rows]
        shift = None
        if share and not first_order:
            shift = torch.full((1,), share, dtype=torch.float64)
        coefficients = gradient
        if not first_order:
            quadratics, e, k = self._group_quadratics(rows, shift)
            root = self.expansion.root[:, rows]
            curvature = torch.stack([torch.block_diag(*(r @ r.mT)) for r in root])
            flat = gradient.reshape(-1, e * k, 1)
            if share:
                pulled = self.outputs(self.row_design(rows), self.solve(pull, shift))
                flat = flat + curvature @ pulled.reshape(-1, e * k, 1)
            system = torch.eye(e * k, dtype=torch.float64) - curvature @ quadratics
            coefficients = torch.linalg.solve(system, flat).reshape(gradient.shape)
        total = self.row_gradients(rows, coefficients).sum(-1, keepdim=True)
        return self.solve(total + pull if share else total, shift)
