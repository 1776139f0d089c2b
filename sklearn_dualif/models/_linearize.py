r"""A network's first-order Taylor expansion in its parameters, as a module of its own.

With outputs :math:`f(x; \theta)` and :math:`J(x) = \partial f / \partial \theta` at
:math:`\theta_0` the expansion is

.. math:: \bar f(x; \theta) = f(x; \theta_0) + J(x) (\theta - \theta_0).

It is linear in :math:`\theta`, so that a convex loss of it has one optimum, and influences on it
are those of a linear model with the features :math:`J(x)`. :math:`J` is never formed: one
forward-mode pass gives :math:`f(x; \theta_0)` and the product together.
"""

import copy
import warnings
from contextlib import contextmanager
from operator import attrgetter

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..exceptions import UnsupportedModelError
from ._modules import check_module

# On first use, forward-mode differentiation loads code that warns of torch's own deprecations.
with warnings.catch_warnings(), forward_ad.dual_level():
    warnings.simplefilter("ignore", DeprecationWarning)
    forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def linearize(module):
    r"""Return the first-order expansion of a module at its present parameters.

    Parameters
    ----------
    module : torch.nn.Module
        Copied, never changed. Its forward takes tensors and gives one tensor; it is expanded as it
        is in eval mode.

    Returns
    -------
    torch.nn.Module
        Its parameters have the names, shapes and values of those parameters of ``module`` that
        require gradients, and its outputs are ``module``'s until they are trained. Weight decay
        penalises them, not their distance from the start. Parameters that are frozen in ``module``
        and buffers are constants. ``train()`` has no effect on the outputs.

    Raises
    ------
    UnsupportedModelError
        A `TypeError`, if ``module`` is no module, can't be copied, or has a layer without a
        forward-mode derivative; the latter when rows are first passed to it.
    ValueError
        If no parameter requires gradients.

    Notes
    -----
    The parameters :math:`\theta` start at :math:`\theta_0`, those of ``module``, and the outputs
    are :math:`f(x; \theta_0) + J(x) (\theta - \theta_0)` with :math:`J` the Jacobian at
    :math:`\theta_0`. A pass costs about two passes of ``module``, whatever the number of
    parameters.

    Examples
    --------
    >>> import torch
    >>> from sklearn_dualif.models._linearize import linearize
    >>> module = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    >>> expansion = linearize(module)
    >>> [name for name, _ in expansion.named_parameters()]
    ['0.weight', '0.bias', '2.weight', '2.bias']
    >>> inputs = torch.rand(4, 2)
    >>> torch.allclose(expansion(inputs), module(inputs))
    True
    """
    return LinearizedModule(module)


class LinearizedModule(nn.Module):
    """What `linearize` returns.

    The parameters theta stand under the names that they have in the module, on empty parts. The
    constants, which are the module's own parameters and its buffers, are buffers below
    ``_constants``, so that they follow to other devices and precisions and belong to the state.

    Parameters
    ----------
    module : torch.nn.Module
        As `linearize` takes it.
    """

    def __init__(self, module):
        super().__init__()
        base = _private_copy(module)
        # In the instance's dictionary and not a part: its parameters and modes are nobody's affair.
        self.__dict__["_base"] = base
        self._constants = nn.Module()
        for name, tensor in [*base.named_parameters(), *base.named_buffers()]:
            owner, own_name = _owner(self._constants, name)
            owner.register_buffer(own_name, tensor.detach())
        moving = [(name, p) for name, p in base.named_parameters() if p.requires_grad]
        if not moving:
            raise ValueError(
                f"No parameter of {type(module).__name__} requires gradients, so that there is "
                "nothing to expand in. Call requires_grad_() on those that may move."
            )
        for name, parameter in moving:
            owner, own_name = _owner(self, name)
            owner.register_parameter(own_name, nn.Parameter(parameter.detach().clone()))
        self._moving = tuple(name for name, _ in moving)

    def expansion_point(self):
        """Return the module's parameters that the expansion is around, by name."""
        constants = dict(self._constants.named_buffers())
        return {name: constants[name] for name in self._moving}

    def forward(self, *inputs, **kwargs):
        """Return the expansion's outputs of what the module takes.

        Parameters
        ----------
        *inputs, **kwargs : tensors
            As the module's own forward takes them.

        Returns
        -------
        tensor
            In the shape of the module's output.

        Raises
        ------
        UnsupportedModelError
            A `TypeError`, if the module gives no tensor or a layer has no forward-mode derivative.
        """
        start = self.expansion_point()
        constants = dict(self._constants.named_buffers())
        constants = {name: value for name, value in constants.items() if name not in start}
        shift = {name: attrgetter(name)(self) - start[name] for name in self._moving}

        def outputs(parameters):
            result = functional_call(self._base, {**constants, **parameters}, inputs, kwargs)
            if not isinstance(result, torch.Tensor):
                raise UnsupportedModelError(
                    f"forward of {type(self._base).__name__} returned a {type(result).__name__}, "
                    "but only one tensor can be expanded. Wrap the module in one whose forward "
                    "returns the outputs alone."
                )
            return result

        with _differentiable_attention():
            try:
                value, change = jvp(outputs, (start,), (shift,))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                outputs(start)  # inputs that the module itself can't take are its own error
                where = self._failing_layer(lambda: jvp(outputs, (start,), (shift,)))
                raise UnsupportedModelError(
                    f"{where} has no forward-mode derivative, which the expansion needs "
                    f"({str(error).splitlines()[0]}). Put a layer of differentiable torch "
                    "operations in its place."
                ) from error
        return value + change

    def __repr__(self):
        return f"linearize({self._base!r})"

    def _failing_layer(self, run):
        """Return what to call the innermost part of the module that is at work when run() fails."""
        entered, handles = [""], []

        def leave(*_):
            entered.pop()

        for name, part in self._base.named_modules():
            handles += [
                part.register_forward_pre_hook(lambda *_, name=name: entered.append(name)),
                part.register_forward_hook(leave),
            ]
        try:
            run()
        except RuntimeError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        name = entered[-1]
        kind = type(self._base.get_submodule(name)).__name__
        return f"The layer {name!r}, {kind}," if name else f"forward of {kind}"


def _private_copy(module):
    """Return a copy of a module with all its parts in eval mode."""
    check_module(module)
    try:
        base = copy.deepcopy(module)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"{type(module).__name__} can't be copied ({error}). Keep only parameters and "
            "buffers, no results of a forward pass, on the module."
        ) from error
    for part in base.modules():
        part.training = False
    return base


def _owner(root, name):
    """Return the part of root that a dotted name belongs to, made if need be, and the last name."""
    *path, last = name.split(".")
    for step in path:
        if step not in root._modules:
            root.add_module(step, nn.Module())
        root = root._modules[step]
    return root, last


@contextmanager
def _differentiable_attention():
    """Choose those forms of attention that have a forward-mode derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
