r"""Every row given another target, by itself.

Relabelling row i changes the gradient of its loss by :math:`\gamma_i` and its curvature by
:math:`D_i`. One Newton step, as for a group, is that of a removal with the coefficients

.. math:: c_i = -(I + D_i Q_{ii})^{-1} \gamma_i, \qquad \delta\theta_i = H^{-1} J_i^\top c_i .

:math:`D_i` is zero for log losses, unless class weights differ.
"""

import torch
from sklearn.utils import gen_batches

_TILE_DOUBLES = 2**22


def mean_relabel_effects(engine, rows, y_new, weights_new, features, y, objective):
    """Return the effects (b,) of single relabels on the mean objective of query rows.

    Parameters
    ----------
    engine : InfluenceEngine
        Of a model linear in its parameters.
    rows : (b,) tensor
        Positions of training rows.
    y_new, weights_new : tensor
        What their encoded targets and loss weights become.
    features, y : features, tensor
        Query rows and their encoded targets.
    objective : BoundObjective
        One number a row.
    """
    curvature, order = engine.curvature, engine.order
    if not len(rows):
        return torch.zeros(0, dtype=torch.float64)
    gradient, change = engine.target_change(engine.z, rows, y_new, weights_new)
    effects = torch.empty(len(rows), dtype=torch.float64)
    size = max(1, _TILE_DOUBLES // (features.shape[0] * engine.z.shape[1]))
    for part in gen_batches(len(rows), min(size, curvature.columns_per_block())):
        coefficients = gradient[:, part]
        if change is not None and order != "first":
            quadratics = curvature.row_quadratics(rows[part])
            kept = change[:, part] @ quadratics
            kept.diagonal(dim1=2, dim2=3).add_(1.0)
            coefficients = torch.linalg.solve(kept, coefficients.unsqueeze(-1))[..., 0]
        states = -curvature.solve(curvature.row_gradients(rows[part], coefficients))
        effects[part] = engine.state_effects(states, features, y, objective, order).mean(0)
    return effects
