"""The inverse Hessian in parameter space: P x P, whatever the number of rows."""

from functools import cached_property

import torch

from ..linalg import (
    CholeskyFactor,
    append_rows,
    factor_hessian,
    symmetric_pseudo_inverse,
    whiten_triangle,
)
from ._base import DEGENERATE, Curvature, definite_solve
from ._row_quadratics import RowQuadratics

_SAFE_NORM = 1e6
# From so many outputs on, forms of pairs of outputs cost less than the rows that whitening makes.
_MANY_OUTPUTS = 3
# From so many parameters on, single precision takes less time.
_MANY_PARAMETERS = 100


class PrimalCurvature(Curvature):
    """``H^+ = T T^T`` from the whitening of ``N + rho R``; states are parameter changes."""

    name = "primal"

    def _factorize(self):
        # A free intercept absorbs any shift of the features; without one they stay as they are.
        spans = self.free @ self.free.T @ self.layout.selector
        self._centered = (
            self.n_free > 0
            and not self.features.is_sparse
            and torch.allclose(spans, self.layout.selector)
        )
        means = self.features.column_means()
        self._center = means if self._centered else torch.zeros_like(means)
        curvatures = self.expansion.root @ self.expansion.root.mT
        self._factors = [self._factor(*block) for block in enumerate(curvatures)]
        self.single = any(factor.single for factor in self._factors)

    def _may_be_single(self):
        return not self.features.is_sparse and self.map_rows >= _MANY_PARAMETERS

    def _factor(self, block, curvatures):
        """Return a `CholeskyFactor` or a `Whitening` for centred features."""
        ridge = float(self.ridge[block])
        if ridge > 0 or self.n_rows * self.expansion.root.shape[-1] >= self.map_rows:
            factor = None
            if self.single:
                features = self.features.in_single_precision(self._center)
                hessian = self._data_hessian(features, torch.zeros_like(self._center), curvatures)
                factor = factor_hessian(hessian, ridge, self.n_free)
            if factor is None:
                hessian = self._data_hessian(self.features, self._center, curvatures)
                factor = factor_hessian(hessian, ridge, self.n_free)
            if factor is not None:
                return factor.spectral(self.n_free) if self.shiftable else factor
        upper = None
        for rows in self.features.blocks(self.map_rows * self.expansion.root.shape[-1]):
            upper = append_rows(upper, self._root_rows(block, rows))
        return whiten_triangle(upper, ridge, self.n_free, self.n_rows)

    @cached_property
    def map(self):
        """``T`` of each block, padded to the same number of columns, (Gs, P, r)."""
        maps = [self._of_features(factor.map) for factor in self._factors]
        rank = max(matrix.shape[1] for matrix in maps)
        return torch.stack([_pad(matrix, rank) for matrix in maps])

    @cached_property
    def inverse_spectrum(self):
        """The ``1 / mu`` of each block in spectral form, (Gs, r)."""
        rank = self.map.shape[2]
        return torch.stack([_pad(factor.inverse_spectrum, rank) for factor in self._factors])

    def _of_features(self, states):
        """Return states (..., P, m) of centred features as states of the features themselves."""
        if not self._centered:
            return states
        free, weights = states.split((self.n_free, states.shape[-2] - self.n_free), -2)
        offset = torch.einsum(
            "d,...dor->...or", self._center, weights.unflatten(-2, (self.width, -1))
        )
        return torch.cat([free - self.free.T @ self.layout.selector @ offset, weights], -2)

    def _of_centered(self, gradients):
        """Return gradients (..., P, m) as those of centred features."""
        if not self._centered:
            return gradients
        free, weights = gradients.split((self.n_free, gradients.shape[-2] - self.n_free), -2)
        pulled = self.layout.selector.T @ self.free @ free
        offset = torch.einsum("d,...or->...dor", self._center, pulled).flatten(-3, -2)
        return torch.cat([free, weights - offset], -2)

    def _data_hessian(self, features, center, curvatures):
        """Return ``sum_i J_i^T Lambda_i J_i`` of features less a center, (P, P), in their dtype."""
        curvatures, center = curvatures.to(features.dtype), center.to(features.dtype)
        free, penalized = self.free.to(features.dtype), self.layout.penalized
        f, d, outputs = self.n_free, self.width, len(penalized)
        hessian = curvatures.new_empty(self.map_rows, self.map_rows)
        hessian[:f, :f] = free.T @ curvatures.sum(0) @ free
        first, second = torch.tril_indices(outputs, outputs)
        grams = features.weighted_grams(curvatures[:, penalized[first], penalized[second]], center)
        pairs = torch.empty(outputs, outputs, dtype=torch.long)
        pairs[first, second] = pairs[second, first] = torch.arange(len(first))
        main = hessian[f:, f:].unflatten(0, (d, outputs)).unflatten(2, (d, outputs))
        main.copy_(grams[pairs].permute(2, 0, 3, 1))
        if f:
            mixed = (free.T @ curvatures[:, :, penalized]).reshape(self.n_rows, -1)
            cross = features.transposed_dot(mixed) - torch.outer(center, mixed.sum(0))
            cross = cross.reshape(d, f, outputs).permute(1, 0, 2).reshape(f, -1)
            hessian[:f, f:] = cross
            hessian[f:, :f] = cross.T
        return hessian

    def _root_rows(self, block, rows):
        """Return the rows ``S_i^T J_i`` of centred features, (b q, P)."""
        root = self.expansion.root[block, rows]
        features = self.features.take(rows).dense() - self._center
        weights = torch.einsum("nd,ka,nkq->nqda", features, self.layout.selector, root)
        stacked = torch.cat([root.mT @ self.free, weights.flatten(2)], -1)
        return stacked.flatten(0, 1)

    @property
    def width(self):
        return self.features.shape[1]

    @property
    def factor_rows(self):
        return self.map_rows

    @property
    def map_rows(self):
        """Number of parameters P of a block."""
        return self.n_free + self.width * self.layout.selector.shape[1]

    def design(self, features):
        return features

    def row_design(self, rows):
        return self.features.take(rows).dense()

    @cached_property
    def _pair_forms(self):
        """The `RowQuadratics` of each block, where they serve better than whitened rows."""
        tame = all(map(_is_tame, self._factors))
        if not tame or self.features.is_sparse or self.layout.selector.shape[1] < _MANY_OUTPUTS:
            return []
        return [
            RowQuadratics(factor.inverse(), self._center, self.layout.selector, self.free)
            for factor in self._factors
        ]

    def _rows_per_block(self):
        if not self._pair_forms:
            return super()._rows_per_block()
        # Rows are not whitened; what is made for each is a few matrices of outputs.
        return max(1, min(self.n_rows, 2**20 // self.layout.n_coordinates**2))

    def row_gradients(self, rows, output_gradients):
        penalized = output_gradients @ self.layout.selector
        features = self.features.take(rows).dense()
        weights = torch.einsum("nd,gno->gdon", features, penalized).flatten(1, 2)
        free = (output_gradients @ self.free).mT
        return torch.cat([free, weights], 1)

    def sum_gradients(self, output_gradients):
        blocks, n, k, m = output_gradients.shape
        penalized = torch.einsum("ko,gnkm->ngom", self.layout.selector, output_gradients)
        weights = self.features.transposed_dot(penalized.reshape(n, -1))
        weights = weights.reshape(self.width, blocks, -1, m).transpose(0, 1).flatten(1, 2)
        free = self.free.T @ output_gradients.sum(1)
        return torch.cat([free, weights], 1)

    def solve(self, gradients, shift=None):
        if shift is None:
            solved = self._of_centered(gradients)
            if len(self._factors) == 1:
                return self._of_features(self._factors[0].solve(solved))
            pairs = zip(self._factors, solved, strict=True)
            return self._of_features(torch.stack([factor.solve(g) for factor, g in pairs]))
        whitened = self.map.mT @ gradients
        return self.map @ (whitened / (1.0 - self.inverse_spectrum[..., None] * shift))

    def dual_vector(self, gradient):
        return gradient

    def whitened_rows(self, rows):
        """Return ``J_i T``, (Gs, b, k, r)."""
        blocks, _, rank = self.map.shape
        features = self.features.take(rows)
        weights = self.map[:, self.n_free :].reshape(blocks, self.width, -1)
        values = torch.stack([features.dot(weight) for weight in weights])
        values = values.reshape(blocks, values.shape[1], -1, rank)
        if values.shape[2] != self.layout.n_coordinates:
            values = self.layout.selector @ values
        if self.n_free:
            values += (self.free @ self.map[:, : self.n_free])[:, None]
        return values

    def row_quadratics(self, rows, shift=None):
        if shift is None and self._pair_forms:
            features = self.features.take(rows)
            return torch.stack([forms(features) for forms in self._pair_forms])
        whitened = self.whitened_rows(rows)
        if shift is None:
            if whitened.shape[2] == 1:
                return torch.linalg.vecdot(whitened, whitened)[..., None]
            return whitened @ whitened.mT
        scale = 1.0 - self.inverse_spectrum[:, None] * shift[:, None]
        scaled = whitened / scale[:, :, None].to(whitened)
        return scaled @ whitened.mT

    def _to_least_norm(self, states, rows, flagged):
        """Drop from degenerate removals what the remaining rows leave undetermined.

        A row of leverage 1 takes the direction ``v = H^+ J_i^T S_i e`` along, ``e`` the eigenvector
        of its hat block: the least-norm optimum has no component of the feature weights along v.
        """
        states = states.clone()
        for column in torch.nonzero(flagged)[:, 0].tolist():
            row = rows[column : column + 1]
            root = self.expansion.root[:, row]
            directions = self.map @ (self.whitened_rows(row)[:, 0].mT @ root[:, 0])
            hat = (root.mT @ self.row_quadratics(row) @ root)[:, 0]
            null = _null_vectors(hat)
            for block in range(states.shape[0]):
                factor = min(block, len(directions) - 1)
                states[block, :, column] = self._drop(
                    block, states[block, :, column], directions[factor] @ null[factor]
                )
        return states

    def _drop(self, block, state, directions):
        """Return ``state`` such that theta + state has least-norm feature weights."""
        weights = directions[self.n_free :]
        moved = self.parameters[block, :, 0] + state
        gram = symmetric_pseudo_inverse(weights.T @ weights)
        return state - directions @ (gram @ (weights.T @ moved[self.n_free :]))

    def remove(self, rows, *, first_order=False):
        share = self.group_share(rows)
        gradient = self._removed_gradient(rows, first_order)
        if share:
            gradient = gradient + self._pull(torch.full((1,), share, dtype=torch.float64))
        return self.solve(gradient) if first_order else self._solve_kept(gradient, rows, share)

    def _solve_kept(self, gradient, rows, share):
        """Solve with the Hessian of the rows that stay."""
        whitened = self.map.mT @ gradient
        kept = self._kept_hessian(rows, share)
        if not self.may_vanish:
            return self.map @ torch.linalg.solve(kept, whitened)
        solved = definite_solve(kept, whitened)
        if solved is not None:
            return self.map @ solved
        values, vectors = torch.linalg.eigh(kept)
        null = values < DEGENERATE
        inverse = torch.where(null, 0.0, 1.0 / torch.where(null, 1.0, values))
        state = self.map @ ((vectors * inverse[:, None]) @ (vectors.mT @ whitened))
        for block in range(state.shape[0]):
            factor = min(block, len(vectors) - 1)
            lost = self.map[factor] @ vectors[factor][:, null[factor]]
            if lost.shape[1]:
                state[block, :, 0] = self._drop(block, state[block, :, 0], lost)
        return state

    def _removed_gradient(self, rows, first_order):
        """Return the gradient of the losses of rows that go, (G, D, 1)."""
        return self.row_gradients(rows, self.expansion.gradient[:, rows]).sum(-1, keepdim=True)

    def _kept_hessian(self, rows, share):
        """Return the whitened Hessian of the rows that stay, (Gs, r, r)."""
        rank = self.map.shape[2]
        kept = torch.eye(rank, dtype=torch.float64).repeat(len(self.map), 1, 1)
        for chunk in rows.split(self._rows_per_block()):
            root = self.expansion.root[:, chunk]
            group = (self.whitened_rows(chunk).mT @ root).transpose(1, 2).flatten(2)
            kept -= group @ group.mT
        if share:
            kept -= share * torch.diag_embed(self.inverse_spectrum)
        return kept

    def edit(self, rows, gradient_change, curvature_change):
        if curvature_change is None or len(rows) * self.layout.n_coordinates < self.map.shape[2]:
            return super().edit(rows, gradient_change, curvature_change)
        gradient = self.row_gradients(rows, gradient_change).sum(-1, keepdim=True)
        whitened = self.whitened_rows(rows).flatten(1, 2)
        changed = whitened.mT @ (
            curvature_change @ whitened.reshape(*curvature_change.shape[:3], -1)
        ).reshape(whitened.shape)
        eye = torch.eye(changed.shape[-1], dtype=changed.dtype)
        return -(self.map @ torch.linalg.solve(eye + changed, self.map.mT @ gradient))


def _is_tame(factor):
    """Tell whether quadratic forms with the inverse are as good as those with its root."""
    return isinstance(factor, CholeskyFactor) and factor.inverse_norm < _SAFE_NORM


def _pad(tensor, rank):
    """Pad the last dimension with zeros: directions that a deficient block does not have."""
    return torch.nn.functional.pad(tensor, (0, rank - tensor.shape[-1]))


def _null_vectors(hat):
    """Return the eigenvectors of ``I - hat`` (Gs, q, q) to eigenvalue zero, others set to zero."""
    values, vectors = torch.linalg.eigh(torch.eye(hat.shape[-1], dtype=hat.dtype) - hat)
    return vectors * (values < DEGENERATE).unsqueeze(-2)
