"""The inverse Hessian in parameter space: P x P, whatever the number of rows."""

import torch

from ..linalg import append_rows, symmetric_pseudo_inverse, whiten_hessian, whiten_triangle
from ._base import DEGENERATE, Curvature, definite_solve


class PrimalCurvature(Curvature):
    """``H^+ = T T^T`` from the whitening of ``N + rho R``; states are parameter changes."""

    name = "primal"

    def _factorize(self):
        shift = self.features.column_means()
        # A free intercept absorbs any shift of the features; without one they stay as they are.
        spans = self.free @ self.free.T @ self.layout.selector
        centered = self.n_free > 0 and torch.allclose(spans, self.layout.selector)
        shift = shift if centered else torch.zeros_like(shift)
        curvatures = self.expansion.root @ self.expansion.root.mT
        maps, spectra = [], []
        for block in range(len(curvatures)):
            whitening = self._whiten(block, curvatures[block], shift)
            matrix = whitening.map
            if centered:
                weights = matrix[self.n_free :].reshape(self.width, -1, matrix.shape[1])
                offset = torch.einsum("d,dor->or", shift, weights)
                matrix[: self.n_free] -= self.free.T @ self.layout.selector @ offset
            maps.append(matrix)
            spectra.append(whitening.inverse_spectrum)
        rank = max(matrix.shape[1] for matrix in maps)
        self.map = torch.stack([_pad(matrix, rank) for matrix in maps])
        self.inverse_spectrum = (
            torch.stack([_pad(s, rank) for s in spectra]) if self.shiftable else None
        )

    def _whiten(self, block, curvatures, shift):
        ridge = float(self.ridge[block])
        whitening = None
        if ridge > 0 or self.n_rows * self.expansion.root.shape[-1] >= self.map_rows:
            hessian = self._data_hessian(curvatures, shift)
            whitening = whiten_hessian(hessian, ridge, self.n_free, spectral=self.shiftable)
        if whitening is None:
            upper = None
            for rows in self.features.blocks(self.map_rows * self.expansion.root.shape[-1]):
                upper = append_rows(upper, self._root_rows(block, rows, shift))
            whitening = whiten_triangle(upper, ridge, self.n_free, self.n_rows)
        return whitening

    def _data_hessian(self, curvatures, shift):
        """Return ``sum_i J_i^T Lambda_i J_i`` with the features shifted, (P, P)."""
        free, selector, f = self.free, self.layout.selector, self.n_free
        d, outputs = self.width, selector.shape[1]
        hessian = torch.empty(self.map_rows, self.map_rows, dtype=torch.float64)
        hessian[:f, :f] = free.T @ curvatures.sum(0) @ free
        penalized = selector.T @ curvatures @ selector
        main = torch.empty(d, outputs, d, outputs, dtype=torch.float64)
        pairs = [(a, b) for a in range(outputs) for b in range(a + 1)]
        first, second = (list(side) for side in zip(*pairs, strict=True))
        grams = self.features.weighted_grams(penalized[:, first, second], shift)
        for (a, b), gram in zip(pairs, grams, strict=True):
            main[:, a, :, b] = gram
            main[:, b, :, a] = gram
        hessian[f:, f:] = main.reshape(d * outputs, d * outputs)
        if f:
            mixed = (free.T @ curvatures @ selector).reshape(self.n_rows, -1)
            cross = self.features.transposed_dot(mixed) - torch.outer(shift, mixed.sum(0))
            cross = cross.reshape(d, f, outputs).permute(1, 0, 2).reshape(f, -1)
            hessian[:f, f:] = cross
            hessian[f:, :f] = cross.T
        return hessian

    def _root_rows(self, block, rows, shift):
        """Return the rows ``S_i^T J_i`` with the features shifted, (b q, P)."""
        root = self.expansion.root[block, rows]
        features = self.features.take(rows).dense() - shift
        weights = torch.einsum("nd,ka,nkq->nqda", features, self.layout.selector, root)
        stacked = torch.cat([root.mT @ self.free, weights.flatten(2)], -1)
        return stacked.flatten(0, 1)

    @property
    def width(self):
        return self.features.shape[1]

    @property
    def map_rows(self):
        """Number of parameters P of a block."""
        return self.n_free + self.width * self.layout.selector.shape[1]

    def design(self, features):
        return features

    def row_design(self, rows):
        return self.features.take(rows).dense()

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
        whitened = self.map.mT @ gradients
        if shift is not None:
            whitened = whitened / (1.0 - self.inverse_spectrum[..., None] * shift)
        return self.map @ whitened

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


def _pad(tensor, rank):
    """Pad the last dimension with zeros: directions that a deficient block does not have."""
    return torch.nn.functional.pad(tensor, (0, rank - tensor.shape[-1]))


def _null_vectors(hat):
    """Return the eigenvectors of ``I - hat`` (Gs, q, q) to eigenvalue zero, others set to zero."""
    values, vectors = torch.linalg.eigh(torch.eye(hat.shape[-1], dtype=hat.dtype) - hat)
    return vectors * (values < DEGENERATE).unsqueeze(-2)
