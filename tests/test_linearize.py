"""`linearize`: the first-order expansion of a network in its parameters."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, jacrev, vmap

from sklearn_dualif.exceptions import UnsupportedModelError
from sklearn_dualif.models._linearize import linearize
from sklearn_dualif.models._torch_model import TorchModel

N = 6


class Mean(nn.Module):
    """The mean over positions."""

    def forward(self, inputs):
        return inputs.mean(1)


class Last(nn.Module):
    """The last position of a recurrent layer's outputs."""

    def forward(self, inputs):
        return inputs[0][:, -1]


class Attention(nn.Module):
    """Attention of positions to each other."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 12)

    def forward(self, inputs):
        parts = self.project(inputs).unsqueeze(1).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(*parts)[:, 0].mean(1)


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight

    def forward(self, inputs):
        return self.decode(torch.tanh(self.encode(inputs)))


class Own(nn.Module):
    """Parameters and a buffer on the module itself, two inputs, one of them named."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))
        self.register_buffer("offset", torch.rand(4), persistent=False)

    def forward(self, inputs, *, shift=0.5):
        return torch.exp(self.scale * inputs + self.offset) + shift


def dense():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


CASES = {
    "dense": (dense, (4,)),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True)), (4,)),
    "image": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten()
        ),
        (1, 6, 6),
    ),
    "recurrent": (lambda: nn.Sequential(nn.GRU(4, 3, batch_first=True), Last()), (5, 4)),
    "attention": (Attention, (5, 4)),
    "transformer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), Mean()),
        (5, 4),
    ),
    "tied": (Tied, (4,)),
    "own": (Own, (4,)),
}


@pytest.fixture(autouse=True)
def seed():
    """Make each test's random numbers its own, in double precision."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(dtype)


@pytest.fixture(params=CASES)
def case(request):
    """A module with running statistics of its own, its expansion, and rows."""
    build, shape = CASES[request.param]
    module = build()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return module, linearize(module), torch.randn(N, *shape)


def at(module, parameters, inputs):
    """The outputs at other parameters, in eval mode."""
    return functional_call(copy.deepcopy(module).eval(), parameters, (inputs,)).detach()


def near(module, size=1.0):
    """Random parameters around the module's own."""
    return {k: p.detach() + size * torch.randn_like(p) for k, p in module.named_parameters()}


def mix(share, one, other):
    return {name: share * one[name] + (1.0 - share) * other[name] for name in one}


def jacobian(module, inputs):
    """The explicit Jacobian (n, C, d), by reverse mode, one output at a time."""
    module = copy.deepcopy(module).eval()
    parameters = list(module.parameters())
    z = module(inputs)
    rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in z.flatten()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).unflatten(
        0, z.shape
    )


def vector(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def train(module, inputs, y, steps=50):
    """The squared losses of some steps of gradient descent."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((module(inputs) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# The definition


def test_it_starts_at_the_module(case):
    module, expansion, inputs = case
    torch.testing.assert_close(expansion(inputs), at(module, {}, inputs))
    names = [name for name, _ in expansion.named_parameters()]
    assert names == [name for name, _ in module.named_parameters()]
    for name, parameter in module.named_parameters():
        own = expansion.get_parameter(name)
        assert torch.equal(own, parameter) and own.data_ptr() != parameter.data_ptr()


def test_it_is_affine_in_the_parameters(case):
    module, expansion, inputs = case
    one, other = near(module), near(module)
    for share in (-1.0, 0.3, 2.0):
        z = at(expansion, mix(share, one, other), inputs)
        ends = at(expansion, one, inputs), at(expansion, other, inputs)
        torch.testing.assert_close(z, share * ends[0] + (1.0 - share) * ends[1])
    assert not torch.allclose(*ends)


def test_its_slopes_are_the_modules_finite_differences(case):
    module, expansion, inputs = case
    start = {k: p.detach() for k, p in module.named_parameters()}
    end, step = near(module), 1e-5
    ahead = at(module, mix(step, end, start), inputs)
    behind = at(module, mix(-step, end, start), inputs)
    slope = at(expansion, end, inputs) - at(expansion, start, inputs)
    torch.testing.assert_close(slope, (ahead - behind) / (2.0 * step), atol=1e-7, rtol=1e-6)


def test_it_is_the_expansion_with_the_explicit_jacobian(case):
    module, expansion, inputs = case
    J = jacobian(module, inputs)
    start = vector(module)
    with torch.no_grad():
        for parameter in expansion.parameters():
            parameter.add_(torch.randn_like(parameter))
    z = at(module, {}, inputs) + J @ (vector(expansion) - start)
    torch.testing.assert_close(expansion(inputs).detach(), z)
    torch.testing.assert_close(jacobian(expansion, inputs), J)


def test_gradients_are_those_of_the_jacobian(case):
    module, expansion, inputs = case
    z = expansion(inputs)
    weights = torch.randn_like(z)
    (weights * z).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in expansion.parameters()])
    torch.testing.assert_close(
        gradient, torch.einsum("nc,ncd->d", weights, jacobian(module, inputs))
    )


def test_derivatives_row_by_row():
    module, inputs = dense(), torch.randn(N, 4)
    expansion = linearize(module)
    start = {k: p.detach() for k, p in expansion.named_parameters()}

    def row(parameters, x):
        return functional_call(expansion, parameters, (x[None],))[0]

    parts = vmap(jacrev(row), in_dims=(None, 0))(start, inputs)
    J = torch.cat([part.flatten(2) for part in parts.values()], 2)
    torch.testing.assert_close(J, jacobian(module, inputs))


def test_the_expansion_of_an_expansion_is_the_same():
    module, inputs = dense(), torch.randn(N, 4)
    expansion = linearize(module)
    parameters = near(module)
    again = linearize(expansion)
    torch.testing.assert_close(at(again, parameters, inputs), at(expansion, parameters, inputs))


# Training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_reduces_the_loss(dtype):
    module = dense().to(dtype)
    inputs, y = torch.randn(20, 4, dtype=dtype), 1.0 + torch.randn(20, 2, dtype=dtype)
    expansion = linearize(module)
    losses = train(expansion, inputs, y)
    assert losses[-1] < 0.9 * losses[0]
    assert expansion(inputs).dtype == dtype
    torch.testing.assert_close(
        (torch.tensor(losses[0], dtype=dtype)), ((module(inputs) - y) ** 2).mean().detach()
    )


@pytest.mark.parametrize("decay", [0.1, 1.0])
def test_the_optimum_is_that_of_the_normal_equations(decay):
    """(J'J + n C decay / 2) theta = J' (y - f0 + J theta0): weight decay penalises theta itself."""
    module = dense()
    inputs, y = torch.randn(20, 4), torch.randn(20, 2)
    J = jacobian(module, inputs).flatten(0, 1)
    target = (y - at(module, {}, inputs)).flatten() + J @ vector(module)
    ridge = 0.5 * decay * y.numel() * torch.eye(J.shape[1])
    theta = torch.linalg.solve(J.T @ J + ridge, J.T @ target)

    expansion = linearize(module)
    optimizer = torch.optim.LBFGS(
        expansion.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective():
        optimizer.zero_grad()
        penalty = sum((p**2).sum() for p in expansion.parameters())
        value = ((expansion(inputs) - y) ** 2).mean() + 0.5 * decay * penalty
        value.backward()
        return value

    optimizer.step(objective)
    torch.testing.assert_close(vector(expansion), theta, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("kind", [NeuralNetRegressor, NeuralNetClassifier])
def test_training_with_skorch(kind):
    module = dense().float()
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 4)).astype(np.float32)
    if kind is NeuralNetClassifier:
        y, criterion = (X[:, 0] > 0).astype(np.int64), nn.CrossEntropyLoss
    else:
        y, criterion = X[:, :2] + 1.0, nn.MSELoss
    expansion = linearize(module)
    net = kind(expansion, criterion=criterion, lr=0.1, max_epochs=20, train_split=None, verbose=0)
    net.fit(X, y)
    losses = net.history[:, "train_loss"]
    assert losses[-1] < 0.9 * losses[0]
    z = net.forward(X).numpy()
    model = TorchModel(net.module_, loss="mse")
    np.testing.assert_allclose(model.predict(X), z, rtol=1e-5, atol=1e-6)


# Constants


def test_frozen_parameters_stay():
    module = dense()
    module[0].requires_grad_(False)
    expansion = linearize(module)
    assert [name for name, _ in expansion.named_parameters()] == ["2.weight", "2.bias"]
    inputs, y = torch.randn(20, 4), torch.randn(20, 2)
    train(expansion, inputs, y)
    moved = copy.deepcopy(module)
    moved[2].load_state_dict({k: expansion.get_parameter(f"2.{k}") for k in ("weight", "bias")})
    torch.testing.assert_close(expansion(inputs), moved(inputs))  # linear in the last layer


def test_training_mode_changes_nothing():
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
    expansion = linearize(module.train()).train()
    inputs = torch.randn(N, 4)
    before = copy.deepcopy(expansion.state_dict())
    z = expansion(inputs)
    torch.testing.assert_close(z, at(module, {}, inputs))
    assert torch.equal(z, expansion(inputs)) and torch.equal(z, expansion.eval()(inputs))
    for name, value in expansion.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_module_is_left_alone():
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    module[1].eval()
    module[0].bias.requires_grad_(False)
    inputs, y = torch.randn(20, 4), torch.randn(20, 2)
    module(inputs).sum().backward()
    before = copy.deepcopy(module)
    grads = [p.grad for p in module.parameters()]
    random = torch.get_rng_state()
    expansion = linearize(module)
    train(expansion, inputs, y)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before.state_dict()[name])
    for p, other, grad in zip(module.parameters(), before.parameters(), grads, strict=True):
        assert p.grad is grad and p.requires_grad == other.requires_grad
    assert [m.training for m in module.modules()] == [m.training for m in before.modules()]

    z = expansion(inputs)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    assert torch.equal(expansion(inputs), z)


def test_torch_settings_are_restored():
    def settings():
        return torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()

    assert settings() == (True, True)
    linearize(dense())(torch.randn(N, 4))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        linearize(dense())(torch.randn(N, 3))
    assert settings() == (True, True)


# Copies and states


def test_copies_are_equal_and_independent(case):
    module, expansion, inputs = case
    with torch.no_grad():
        for parameter in expansion.parameters():
            parameter.add_(torch.randn_like(parameter))
    z = expansion(inputs)
    copies = [copy.deepcopy(expansion), pickle.loads(pickle.dumps(expansion))]
    for other in copies:
        assert torch.equal(other(inputs), z)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not torch.allclose(other(inputs), z)
        assert torch.equal(expansion(inputs), z)


def test_the_state_is_the_whole_function(case):
    module, expansion, inputs = case
    with torch.no_grad():
        for parameter in expansion.parameters():
            parameter.add_(torch.randn_like(parameter))
    other = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
    other = linearize(other)
    other.load_state_dict(expansion.state_dict())
    torch.testing.assert_close(other(inputs), expansion(inputs))


def test_the_precision_can_be_changed():
    module, inputs = CASES["image"][0](), torch.randn(N, 1, 6, 6)
    expansion = linearize(module)
    parameters = near(module)
    z = at(expansion, parameters, inputs)
    single = copy.deepcopy(expansion).float()
    narrow = {name: value.float() for name, value in parameters.items()}
    torch.testing.assert_close(at(single, narrow, inputs.float()), z.float(), atol=1e-4, rtol=1e-4)
    assert expansion(inputs).dtype == torch.float64


def test_inputs_as_the_module_takes_them():
    module, inputs = Own(), torch.randn(N, 4)
    expansion = linearize(module)
    torch.testing.assert_close(expansion(inputs, shift=2.0), module(inputs, shift=2.0))
    tokens = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2))
    inputs = torch.randint(0, 7, (N, 2))
    torch.testing.assert_close(linearize(tokens)(inputs), tokens(inputs))


def test_as_a_torch_model():
    module, X = dense(), torch.randn(N, 4).numpy()
    model = TorchModel(linearize(module), classes=["a", "b"], weight_decay={"0.*": 0.1})
    own = TorchModel(module, classes=["a", "b"])
    np.testing.assert_allclose(model.predict_proba(X), own.predict_proba(X), rtol=1e-12)
    assert repr(model.module).startswith("linearize(Sequential(")


# Errors


class Doubled(torch.autograd.Function):
    """A function with a derivative in reverse mode alone."""

    @staticmethod
    def forward(inputs):
        return 2.0 * inputs

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Nothing is needed."""

    @staticmethod
    def backward(ctx, gradient):
        return 2.0 * gradient


class Doubling(nn.Module):
    def forward(self, inputs):
        return Doubled.apply(inputs)


def test_a_layer_without_a_forward_derivative_is_named():
    module = nn.Sequential(nn.Sequential(nn.Embedding(7, 4), nn.Flatten()), nn.Linear(8, 2))
    inputs = torch.randint(0, 7, (N, 2))
    linearize(module)(inputs)
    module[0] = nn.Sequential(nn.EmbeddingBag(7, 8))
    expansion = linearize(module)
    message = r"The layer '0\.0', EmbeddingBag, has no forward-mode derivative.*_embedding_bag"
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=message):
            expansion(inputs)
    pickle.dumps(expansion)  # the search for the layer leaves nothing behind
    with pytest.raises(UnsupportedModelError, match=r"The layer '1', Doubling, has no forward"):
        linearize(nn.Sequential(nn.Linear(4, 2), Doubling()))(torch.randn(N, 4))

    class Whole(nn.Linear):
        def forward(self, inputs):
            return Doubled.apply(super().forward(inputs))

    with pytest.raises(UnsupportedModelError, match="forward of Whole has no forward-mode"):
        linearize(Whole(4, 2))(torch.randn(N, 4))


class Exhausting(nn.Linear):
    """Runs out of memory when its derivative is taken."""

    def forward(self, inputs):
        z = super().forward(inputs)
        if forward_ad.unpack_dual(z).tangent is not None:
            raise torch.OutOfMemoryError("no memory left")
        return z


def test_missing_memory_is_no_missing_derivative():
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        linearize(Exhausting(4, 2))(torch.randn(N, 4))


@pytest.mark.parametrize("module", [nn.Linear, None, "net"])
def test_only_modules(module):
    with pytest.raises(UnsupportedModelError, match=r"must be an instance of torch\.nn\.Module"):
        linearize(module)


def test_outputs_that_are_no_tensor():
    with pytest.raises(UnsupportedModelError, match=r"forward of GRU returned a tuple.*Wrap"):
        linearize(nn.GRU(4, 3))(torch.randn(N, 4))


def test_nothing_to_expand_in():
    with pytest.raises(
        ValueError, match=r"No parameter of Sequential requires gradients.*requires_g"
    ):
        linearize(dense().requires_grad_(False))


def test_results_of_a_forward_pass_on_the_module():
    module = dense()
    module.seen = module(torch.randn(N, 4))
    with pytest.raises(UnsupportedModelError, match=r"Sequential can't be copied.*Keep only"):
        linearize(module)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_module_without_shapes():
    with pytest.raises(UnsupportedModelError, match="'weight' of LazyLinear has no shape yet"):
        linearize(nn.LazyLinear(3))
