r"""Coordinates for a network's penalised parameters in which its Jacobian is explicit.

Removing training rows moves the parameters within the span of the rows' gradients and the
parameters themselves. An orthonormal basis ``Q`` of that span turns the network's linearisation
into a linear model with explicit features ``J Q``, whose ridge is that of the parameters. Three
bases serve: all parameters (``Q = I``), the span of all rows' gradients, and the span of the most
telling ones. The last two are

.. math:: Q = J_P^\top L_P^{-\top}, \qquad L_P L_P^\top = J_P J_P^\top,

with pivots ``P`` among the heads of the training rows: coordinates of any row are a kernel block
with the pivots times a small matrix, and no vector of the size of the parameters is formed.
"""

import copy
from functools import cached_property

import torch


class ParameterBasis:
    """All penalised parameters: coordinates are the parameters themselves."""

    def __init__(self, network):
        self.network = network

    @property
    def size(self):
        """Number of coordinates."""
        return self.network.n_penalized

    def coordinates(self, heads):
        """Return the derivatives of heads by the coordinates, (n, h, D)."""
        return heads.jacobian().to(torch.float64)

    def project(self, penalized):
        """Return the coordinates (D,) of parameters (d,)."""
        return penalized.to(torch.float64)

    def lift(self, coordinates):
        """Return the parameters (d, m) of coordinates (D, m)."""
        return coordinates


class KernelBasis:
    """The span of some heads' gradients, and of one more vector.

    Parameters
    ----------
    pivots : Heads
        One head a row.
    corner : (r, r) tensor
        Lower Cholesky factor of their kernel.
    vector : (d,) tensor
        In the span as well; the fitted parameters, whose penalty pulls at removals.
    """

    def __init__(self, pivots, corner, vector):
        self.network = pivots.network
        self.pivots, self.corner = pivots, corner.to(self.network.device)
        vector = vector.to(torch.float64)
        inside = self._inner(pivots.push(vector[:, None])[:, 0])
        rest = vector[:, None] - self._lift_inside(inside)
        # Twice, for a vector that lies almost inside.
        rest = rest - self._lift_inside(self._inner(pivots.push(rest)[:, 0]))
        norm = torch.linalg.vector_norm(rest)
        outside = float(norm) > 1e-10 * float(torch.linalg.vector_norm(vector))
        self.outside = rest / norm if outside else rest[:, :0]
        self._projected = torch.cat([inside[:, 0], norm[None] if outside else norm[None][:0]])

    @property
    def size(self):
        """Number of coordinates."""
        return len(self.corner) + self.outside.shape[1]

    def _inner(self, products):
        """Return ``L^-1 b`` for products (r, m) with the pivots' gradients."""
        products = products.to(torch.float64)
        return torch.linalg.solve_triangular(self.corner, products, upper=False)

    def _lift_inside(self, coordinates):
        coordinates = coordinates.to(self.corner)
        weights = torch.linalg.solve_triangular(self.corner.T, coordinates, upper=True)
        return self.pivots.pull(weights[:, None]).to(torch.float64)

    def coordinates(self, heads):
        """Return the derivatives of heads by the coordinates, (n, h, D)."""
        n, h = heads.shape
        result = torch.empty(n * h, self.size, dtype=torch.float64, device=self.corner.device)
        rank = len(self.corner)
        kernel = heads.gram(self.pivots).to(torch.float64)
        result[:, :rank] = torch.linalg.solve_triangular(
            self.corner.T, kernel, upper=True, left=False
        )
        if self.outside.shape[1]:
            result[:, rank:] = heads.push(self.outside).flatten(0, 1)
        return result.view(n, h, -1)

    def project(self, penalized):
        """Return the coordinates (D,) of the vector that the basis was built around."""
        return self._projected

    def lift(self, coordinates):
        """Return the parameters (d, m) of coordinates (D, m)."""
        rank = len(self.corner)
        outside = self.outside @ coordinates[rank:].to(self.outside)
        return (self._lift_inside(coordinates[:rank]) + outside).cpu()


class SketchBasis:
    """Random combinations of the penalised parameters.

    Parameters
    ----------
    network : Network
    projection : Projection
    rotation : (m, r) tensor or None
        Orthonormal columns: only these combinations of the components are kept.
    """

    def __init__(self, network, projection, rotation=None):
        self.network, self.projection, self.rotation = network, projection, rotation

    @property
    def size(self):
        """Number of coordinates."""
        return self.projection.n_components if self.rotation is None else self.rotation.shape[1]

    def coordinates(self, heads):
        """Return the derivatives of heads by the coordinates, (n, h, D)."""
        return self.rotated(self.sketched(heads))

    def sketched(self, heads):
        """Return the derivatives of heads by all components, (n, h, m)."""
        return heads.sketched(self.projection) * self.projection.scale

    def rotated(self, values):
        """Return sketched values (..., m) in the coordinates that are kept."""
        return values if self.rotation is None else values @ self.rotation.to(values)

    def project(self, penalized):
        """Return the coordinates (D,) of parameters (d,)."""
        return self.rotated(self.projection(penalized.to(torch.float64)[None]))[0]

    def lift(self, coordinates):
        """Return the parameters (d, m) that coordinates (D, m) stand for."""
        if self.rotation is not None:
            coordinates = self.rotation.to(coordinates) @ coordinates
        return self.projection.transposed(coordinates)


class TangentDesign:
    """Explicit Jacobians of training and query rows: free parameters, then coordinates.

    Parameters
    ----------
    basis : ParameterBasis, KernelBasis or SketchBasis
    features : TangentFeatures
        The training rows.
    name : str
        How the basis was chosen.
    values : (n, C, f + D) tensor or None
        Their Jacobians, where known already.
    """

    def __init__(self, basis, features, name, values=None):
        self.basis, self.features, self.name = basis, features, name
        self.values = self.design_of(features.output_heads) if values is None else values

    @property
    def shape(self):
        """Number of training rows and of coordinates."""
        return self.features.shape[0], self.basis.size

    def design(self, features):
        """Return the Jacobians (n, C, f + D) of the outputs of rows."""
        return self.values if features is self.features else self.design_of(features.heads())

    def design_of(self, heads):
        """Return the Jacobians (n, h, f + D) of heads."""
        coordinates = self.basis.coordinates(heads)
        return torch.cat([heads.free_jacobian.to(coordinates), coordinates], 2)

    def start(self):
        """Return the fitted parameters as a state, (1, f + D, 1)."""
        penalized, free = self.basis.network.parameters()
        penalized = self.basis.project(penalized)
        return torch.cat([free.to(penalized), penalized])[None, :, None].cpu()


class NystromDesign(TangentDesign):
    """Coordinates that leave a small part of the kernel out, and that part where it is needed.

    Attributes
    ----------
    root : (n, C, q) tensor
        Weights of the training rows' heads.
    left_out : (n, C, C) tensor
        Of each row's kernel with itself.
    """

    def __init__(self, basis, features, name, values, root):
        super().__init__(basis, features, name, values)
        self.root = root
        inside = self.inside(values)
        left_out = features.own_kernel - inside @ inside.mT
        # Positive semidefinite but for rounding.
        values, vectors = torch.linalg.eigh(left_out.double().cpu())
        self.left_out = (vectors * values.clamp(min=0.0).unsqueeze(1)) @ vectors.mT

    def reweighted(self, root):
        """Return this design with other weights of the training rows' heads."""
        design = copy.copy(self)
        design.__dict__.pop("heads", None)
        design.root = root.to(self.root)
        return design

    @cached_property
    def heads(self):
        """Root-weighted, of the training rows."""
        return self.features.output_heads.mixed(self.root)

    def lift_residual(self, weights):
        """Return the parameters (d, m) that weights (n, q, m) of the training heads add."""
        return self.lift_sources(self.root.double().cpu() @ weights)

    def lift_sources(self, sources):
        """Return the part (d, m) of ``J^T sources`` outside of the coordinates."""
        values = self.inside(self.values).flatten(0, 1)
        inside = values.T @ sources.flatten(0, 1).to(values)
        pulled = self.features.output_heads.pull(sources).double().cpu()
        return pulled - self.basis.lift(inside.double())

    def pull(self, output_gradients):
        """Return ``Phi^T u`` (f + D, 1) for output gradients (n, C) of the training rows."""
        values = self.values.flatten(0, 1)
        return (output_gradients.flatten()[None].to(values) @ values).T.double().cpu()

    def beyond(self, sources):
        """Return ``J v`` (n, C, m), v the part of ``J^T sources`` outside of the coordinates."""
        heads, values = self.features.output_heads, self.inside(self.values).flatten(0, 1)
        flat = sources.to(values)
        kernel = heads.push(heads.pull(flat)).flatten(0, 1)
        kernel -= values @ (values.T @ flat.flatten(0, 1))
        return kernel.view_as(flat).double().cpu()

    def doubled(self):
        """Return this design with training rows in double precision."""
        if self.values.dtype == torch.float64:
            return self
        return TangentDesign(self.basis, self.features, self.name, self.values.double())

    def _weighted(self):
        """Return the coordinates (n q, D) of the training heads."""
        return (self.root.mT @ self.inside(self.values)).flatten(0, 1)

    def inside(self, values):
        """Return the part (..., D) of Jacobians that belongs to the coordinates."""
        return values[..., self.basis.network.n_free :]

    def products(self, inside):
        """Return the coordinates' part of the kernel (n q, m) with rows of coordinates (m, D)."""
        values = self.inside(self.values)
        outputs = values.flatten(0, 1) @ inside.T.to(values)
        products = self.root.mT @ outputs.view(*values.shape[:2], -1)
        return products.flatten(0, 1).double().cpu()

    def residual(self, heads, design):
        """Return what the coordinates leave of the kernel of heads with the training heads.

        Parameters
        ----------
        heads : Heads
            Of other rows.
        design : (t, h, f + D) tensor
            Their coordinates.

        Returns
        -------
        (t, h, n q) tensor
        """
        left = heads.gram(self.heads)
        inside = self.inside(design).flatten(0, 1).to(left)
        left.addmm_(inside, self._weighted().T, alpha=-1.0)
        return left.view(*design.shape[:2], -1)
