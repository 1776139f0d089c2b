"""Tangent features: a network's derivatives by its parameters, and their kernels, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import cycle

import numpy as np
import pytest
import torch
from helpers import relative
from hypothesis import assume, given
from hypothesis import strategies as st
from network_helpers import (
    Composed,
    assert_untouched,
    case_of,
    each_network,
    normal,
    seeded,
    state_of,
)
from network_references import dense_jacobian, dense_outputs, parameter_vector, trainable
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sklearn_dualif import TorchModel
from sklearn_dualif.exceptions import UnsupportedModelError, UnsupportedOptionError
from sklearn_dualif.kernels import Network, TangentFeatures, _blocks, _lookup, _network, _tangent
from sklearn_dualif.kernels._blocks import DenseBlock, WeightBlock
from sklearn_dualif.kernels._tangent import Heads
from sklearn_dualif.models import as_model_function

TIGHT = 1e-10
SINGLE = 2e-5
PENALTIES = {
    "alike": (1.0,),
    "unequal": (0.25, 1.0, 0.5),
    "some free": (0.0, 0.5, 1.0, 0.0, 0.25),
}
each_kind = pytest.mark.parametrize("kind", PENALTIES)


def gap(found, expected):
    """Return the largest difference relative to the largest entry expected."""
    return relative(np.asarray(found), np.asarray(expected))


# Derivatives of rows, as the package has them and dense


def penalties(module, kind="alike"):
    """Return a relative penalty for each trainable parameter."""
    return dict(zip(trainable(module), cycle(PENALTIES[kind]), strict=False))


def network_of(module, X, kind="alike", dtype=torch.float64):
    return Network(module, penalties(module, kind), torch.as_tensor(X), dtype=dtype)


def features_of(module, X, kind="alike", dtype=torch.float64):
    return TangentFeatures(network_of(module, X, kind, dtype), torch.as_tensor(X))


def dense_parts(module, X, kind="alike"):
    """Return the dense derivatives by the penalised and by the free parameters.

    Penalised parameters count in units in which all of them have the same penalty.
    """
    J = dense_jacobian(module, X)
    ends = np.cumsum([p.numel() for p in trainable(module).values()])[:-1]
    strengths = penalties(module, kind).values()
    parts = list(zip(np.split(J, ends, axis=2), strengths, strict=True))
    penalized = [part / np.sqrt(value) for part, value in parts if value > 0]
    free = [part for part, value in parts if value == 0]
    return tuple(np.concatenate([J[..., :0], *found], axis=2) for found in (penalized, free))


@dataclass(frozen=True, eq=False)
class Rows:
    """Heads of rows with their dense derivatives by penalised (J) and free (B) parameters."""

    features: TangentFeatures
    heads: Heads
    J: np.ndarray
    B: np.ndarray


@cache
def rows_of(name, kind):
    """Return the training and the query rows of a case."""
    case = case_of(name)
    network = network_of(case.module, case.X, kind)
    every = [TangentFeatures(network, torch.as_tensor(X)) for X in (case.X, case.X_query)]
    return [
        Rows(features, features.heads(), *dense_parts(case.module, X, kind))
        for features, X in zip(every, (case.X, case.X_query), strict=True)
    ]


def dense_gram(J, K):
    """Return the kernel (n h, m k) of derivatives (n, h, d) and (m, k, d)."""
    return J.reshape(-1, J.shape[2]) @ K.reshape(-1, K.shape[2]).T


def assert_dense(heads, J, tolerance=TIGHT):
    """Compare all that heads answer about penalised parameters with dense derivatives."""
    n, h, d = J.shape
    directions, weights = normal(d, 2), normal(n, h, 2)
    pushed, pulled = heads.push(torch.as_tensor(directions)), heads.pull(torch.as_tensor(weights))
    assert gap(heads.jacobian(), J) < tolerance
    assert gap(heads.gram(heads), dense_gram(J, J)) < tolerance
    assert gap(heads.diagonal_blocks(), J @ J.transpose(0, 2, 1)) < tolerance
    assert gap(pushed, J @ directions) < tolerance
    assert gap(pulled, np.einsum("ncd,ncm->dm", J, weights)) < tolerance


# The zoo


@each_kind
@each_network()
def test_derivatives_are_dense(name, kind):
    for rows in rows_of(name, kind):
        assert_dense(rows.heads, rows.J)
        assert gap(rows.heads.free_jacobian, rows.B) < TIGHT


@each_kind
@each_network()
def test_the_kernel_of_two_sets_of_rows_is_dense(name, kind):
    train, query = rows_of(name, kind)
    assert gap(query.heads.gram(train.heads), dense_gram(query.J, train.J)) < TIGHT
    assert gap(train.heads.gram(query.heads), dense_gram(train.J, query.J)) < TIGHT


@each_kind
@each_network()
def test_picked_heads_are_rows_with_one_head(name, kind):
    train, query = rows_of(name, kind)
    n, h, d = train.J.shape
    positions = np.random.default_rng(0).permutation(n * h)[: n * h // 2]
    picked = train.heads.picked(torch.as_tensor(positions))
    J = train.J.reshape(n * h, 1, d)[positions]
    assert_dense(picked, J)
    assert gap(query.heads.gram(picked), dense_gram(query.J, J)) < TIGHT
    assert gap(picked.gram(query.heads), dense_gram(J, query.J)) < TIGHT


@each_kind
@each_network()
def test_mixed_heads_are_combinations_of_outputs(name, kind):
    train, query = rows_of(name, kind)
    root = normal(*train.J.shape[:2], 2)
    mixed = train.features.heads(torch.as_tensor(root))
    J, B = (np.einsum("ncq,ncd->nqd", root, part) for part in (train.J, train.B))
    assert_dense(mixed, J)
    assert gap(mixed.free_jacobian, B) < TIGHT
    assert gap(query.heads.gram(mixed), dense_gram(query.J, J)) < TIGHT


@each_kind
@each_network()
def test_parameters_are_in_units_of_one_penalty(name, kind):
    case, (train, _) = case_of(name), rows_of(name, kind)
    network, theta = train.features.network, parameter_vector(case.module)
    penalized, free = network.parameters()
    strengths = penalties(case.module, kind)
    R = np.repeat(list(strengths.values()), [p.numel() for p in trainable(case.module).values()])
    assert gap(penalized, (np.sqrt(R) * theta)[R > 0]) < TIGHT
    assert gap(free, theta[R == 0]) < TIGHT
    assert gap(network.unscaled(penalized[:, None], free[:, None])[:, 0], theta) < TIGHT


@each_network()
def test_outputs_are_those_of_the_module(name):
    case, (train, query) = case_of(name), rows_of(name, "alike")
    assert gap(train.features.outputs, dense_outputs(case.module, case.X)) < TIGHT
    assert gap(query.features.outputs, dense_outputs(case.module, case.X_query)) < TIGHT


@each_network()
def test_taken_rows_are_rows(name):
    train, _ = rows_of(name, "unequal")
    rows = [3, 0, 7]
    taken = train.features.take(rows)
    assert_dense(taken.heads(), train.J[rows])
    assert gap(taken.outputs, train.features.outputs[rows]) < TIGHT


@each_network()
def test_single_precision_is_close_to_double(name):
    case, (train, _) = case_of(name), rows_of(name, "unequal")
    single = features_of(case.module, case.X, "unequal", torch.float32)
    heads = single.heads()
    assert {heads.jacobian().dtype, heads.gram(heads).dtype} == {torch.float32}
    assert_dense(heads, train.J, SINGLE)
    assert gap(single.outputs, train.features.outputs) < SINGLE


# Batches


@each_network()
def test_batches_change_nothing(name, monkeypatch):
    train, query = rows_of(name, "some free")
    monkeypatch.setattr(_tangent, "_BATCH_DOUBLES", 5 * train.features.network.doubles_per_row)
    monkeypatch.setattr(_network, "_BATCH_ROWS", 3)
    for blocks in (_blocks, _lookup):
        monkeypatch.setattr(blocks, "_SCRATCH", 1)
    again = TangentFeatures(train.features.network, train.features.inputs)
    heads = again.heads()
    assert_dense(heads, train.J)
    assert gap(heads.free_jacobian, train.B) < TIGHT
    assert gap(again.outputs, train.features.outputs) < TIGHT
    assert gap(query.heads.gram(heads), dense_gram(query.J, train.J)) < TIGHT


@pytest.mark.parametrize("name", ["raw-parameter", "tied-weight", "conv1d"])
def test_many_rows(name):
    case, (train, _) = case_of(name), rows_of(name, "alike")
    tiled = features_of(case.module, np.tile(case.X, (9,) + (1,) * (case.X.ndim - 1)))
    assert gap(tiled.heads().jacobian(), np.tile(train.J, (9, 1, 1))) < TIGHT


# Shapes of layers


def headed(layer, *shape):
    """Return a layer on rows of this shape (floats or tokens), tanh and a linear head."""
    tokens = isinstance(layer, nn.Embedding)
    width = layer.eval()(torch.zeros(1, *shape, dtype=torch.long if tokens else None)).numel()
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 2))


small = st.integers(1, 4)
shapes = st.lists(st.integers(1, 3), max_size=2)


@st.composite
def linears(draw):
    n_inputs = draw(small)
    layer = nn.Linear(n_inputs, draw(small), bias=draw(st.booleans()))
    return layer, (*draw(shapes), n_inputs)


@st.composite
def convolutions(draw, dims):
    def each(values):
        return tuple(draw(st.lists(values, min_size=dims, max_size=dims)))

    groups = draw(st.integers(1, 2))
    channels, sizes = groups * draw(st.integers(1, 2)), each(st.integers(2, 5))
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    kernel, dilation = each(st.integers(1, 3)), each(st.integers(1, 2))
    # torch copies the input, and warns, where "same" is not the same on both sides.
    uneven = any(d * (k - 1) % 2 for d, k in zip(dilation, kernel, strict=True))
    padding = draw(st.sampled_from(["valid", "some"] if uneven else ["valid", "some", "same"]))
    if padding == "some":
        padding = tuple(min(p, size - 1) for p, size in zip(each(small), sizes, strict=True))
        reach = [size + 2 * p for size, p in zip(sizes, padding, strict=True)]
    else:
        reach = sizes
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if padding == "same":
        assume(all((span + 1) // 2 < size for span, size in zip(spans, sizes, strict=True)))
    else:
        assume(all(span <= length for span, length in zip(spans, reach, strict=True)))
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        channels,
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=1 if padding == "same" else each(st.integers(1, 3)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    return layer, (channels, *sizes)


@st.composite
def embeddings(draw):
    n_tokens = draw(st.integers(1, 5))
    padding = draw(st.none() | st.integers(-n_tokens, n_tokens - 1))
    return nn.Embedding(n_tokens, draw(small), padding_idx=padding), tuple(draw(shapes))


@st.composite
def layer_norms(draw):
    normalized = draw(st.lists(st.integers(2, 3), min_size=1, max_size=2))
    if draw(st.booleans()):
        layer = nn.RMSNorm(normalized, eps=draw(st.sampled_from([None, 0.1])))
    else:
        layer = nn.LayerNorm(normalized, eps=0.1, bias=draw(st.booleans()))
    return layer, (*draw(shapes), *normalized)


@st.composite
def channel_norms(draw):
    groups, shape = draw(st.integers(1, 2)), draw(shapes)
    channels = groups * draw(st.integers(2, 3))
    norms = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)
    layer = draw(
        st.sampled_from([nn.GroupNorm(groups, channels, eps=0.1), norms[len(shape)](channels)])
    )
    return layer, (channels, *shape)


LAYERS = {
    "linear": linears(),
    "conv1d": convolutions(1),
    "conv2d": convolutions(2),
    "conv3d": convolutions(3),
    "embedding": embeddings(),
    "layer norm": layer_norms(),
    "channel norm": channel_norms(),
}


@pytest.mark.parametrize("kind", LAYERS)
@given(data=st.data())
def test_layers_of_any_shape(kind, data):
    rng = np.random.default_rng(0)
    n_rows, penalty = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([*PENALTIES]))
    layer, shape = data.draw(LAYERS[kind])
    module = seeded(lambda: headed(layer, *shape))
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.as_tensor(rng.uniform(0.2, 0.8, tensor.shape)))
    if kind == "embedding":
        X = rng.integers(0, layer.num_embeddings, (n_rows, *shape))
    else:
        X = rng.standard_normal((n_rows, *shape))
    heads = features_of(module, X, penalty).heads()
    J, B = dense_parts(module, X, penalty)
    assert_dense(heads, J)
    assert gap(heads.free_jacobian, B) < TIGHT


# Position-wise layers: products over pairs of positions, or explicit derivatives


def position_wise(kind, positions):
    """Return a module whose first layer works at each of some positions, and rows."""
    if kind == "embedding":
        tokens = np.random.default_rng(0).integers(0, 20, (6, positions))
        return seeded(lambda: headed(nn.Embedding(20, 3, padding_idx=1), positions)), tokens
    if kind == "convolution":
        shape = 24, positions + 1
        return seeded(lambda: headed(nn.Conv1d(24, 12, 2, groups=2), *shape)), normal(6, *shape)
    return seeded(lambda: headed(nn.Linear(20, 8), positions, 20)), normal(6, positions, 20)


@pytest.mark.parametrize("penalty", ["alike", "unequal"])
@pytest.mark.parametrize(("positions", "form"), [(2, WeightBlock), (12, DenseBlock)])
@pytest.mark.parametrize("kind", ["linear", "convolution", "embedding"])
def test_both_forms_of_a_position_wise_layer_agree(kind, positions, form, penalty):
    module, X = position_wise(kind, positions)
    features = features_of(module, X, penalty)
    penalized, free = features.network.derivatives(features.inputs)
    assert isinstance(penalized[0], WeightBlock)
    assert all(isinstance(part, form) for part in penalized[0].prepared())
    J, _ = dense_parts(module, X, penalty)
    pairs_of_positions = Heads(penalized, free, J.shape[:2], features.network)
    assert_dense(pairs_of_positions, J)
    assert_dense(features.heads(), J)
    picked = torch.arange(0, 2 * len(X), 3)
    assert_dense(pairs_of_positions.picked(picked), J.reshape(-1, 1, J.shape[2])[picked])


@pytest.mark.parametrize("lengths", [(1, 2), (12, 20)])
def test_the_kernel_of_sequences_of_other_lengths(lengths):
    module = seeded(
        lambda: Composed(
            lambda m, x: m.head(torch.tanh(m.layer(x)).mean(1)),
            layer=nn.Linear(20, 8),
            head=nn.Linear(8, 2),
        )
    )
    left, right = (normal(6, length, 20) for length in lengths)
    network = network_of(module, left)
    heads = [TangentFeatures(network, torch.as_tensor(X)).heads() for X in (left, right)]
    expected = dense_gram(dense_jacobian(module, left), dense_jacobian(module, right))
    assert gap(heads[0].gram(heads[1]), expected) < TIGHT


# Layers that are used otherwise than their kind says


class Doubled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return 2.0 * super().forward(x)


class Branching(nn.Module):
    """Control flow on each row's values, which vmap cannot trace."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5, -0.5]))

    def forward(self, x):
        return torch.stack(
            [self.scale * row[:2] * (2.0 if row[0].item() > 0 else 0.5) for row in x]
        )


def hooked(hook):
    layer = nn.Linear(4, 2)
    layer.register_forward_hook(hook)
    return layer


def pre_hooked(hook):
    layer = nn.Linear(4, 2)
    layer.register_forward_pre_hook(hook)
    return layer


def without_gradients(module, x):
    with torch.no_grad():
        aside = module.aside(x)
    return module.layer(x) + aside


UNUSUAL = {
    "unused layer": lambda: Composed(
        lambda m, x: m.layer(x), layer=nn.Linear(4, 2), unused=nn.Linear(4, 2)
    ),
    "no gradients": lambda: Composed(
        without_gradients, layer=nn.Linear(4, 2), aside=nn.Linear(4, 2)
    ),
    "weight used again": lambda: Composed(
        lambda m, x: F.linear(torch.tanh(m.layer(x)), m.layer.weight.T), layer=nn.Linear(4, 2)
    ),
    "subclass": lambda: Doubled(4, 2),
    "forward hook": lambda: hooked(lambda layer, args, output: 2.0 * output),
    "forward pre-hook": lambda: pre_hooked(lambda layer, args: (2.0 * args[0],)),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)),
    "in place": lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)),
    "one slope": lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 2)),
    "bilinear": lambda: Composed(
        lambda m, x: m.layer(x[:, :2], x[:, 2:]), layer=nn.Bilinear(2, 2, 2)
    ),
    "no affine": lambda: nn.Sequential(
        nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)
    ),
    "row by row": lambda: Composed(
        lambda m, x: torch.stack([m.layer(row) for row in x]), layer=nn.Linear(4, 2)
    ),
    "branching": Branching,
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_uses_of_layers(kind):
    module, X = seeded(UNUSUAL[kind]), normal(6, 4)
    assert_dense(features_of(module, X).heads(), dense_jacobian(module, X))


# The caller's module


def lived_in():
    """Return a module in training with gradients, hooks, a frozen parameter and buffers."""
    module = seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 5),
            nn.BatchNorm1d(5),
            nn.Dropout(0.5),
            nn.ReLU(inplace=True),
            nn.Linear(5, 2),
        )
    )
    module.train()
    module[1].eval()
    module[0].bias.requires_grad_(False)
    module[4].register_forward_hook(lambda layer, args, output: output + 1.0)
    with torch.random.fork_rng(devices=[]):
        module(torch.as_tensor(normal(3, 4))).sum().backward()
    return module


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_callers_module_is_untouched(dtype):
    module = lived_in()
    before = state_of(module)
    features = features_of(module, normal(8, 4), dtype=dtype)
    heads = features.heads()
    heads.gram(heads), features.outputs
    assert_untouched(module, before)


def refuses_large(module, x):
    if bool((x > 10.0).any()):
        raise ArithmeticError("too large")
    return module.layer(x)


def test_a_forward_that_raises_leaves_everything_as_it_was():
    module = Composed(refuses_large, layer=lived_in())
    X = normal(8, 4)
    before = state_of(module)
    features = features_of(module, X)
    expected = features.heads().jacobian()
    large = TangentFeatures(features.network, torch.as_tensor(20.0 * X))
    private = state_of(features.network.module)
    for ask in (
        lambda: large.heads(),
        lambda: large.outputs,
        lambda: features_of(module, 20.0 * X),
    ):
        with pytest.raises(ArithmeticError, match="too large"):
            ask()
    assert_untouched(features.network.module, private)
    assert_untouched(module, before)
    torch.testing.assert_close(features.heads().jacobian(), expected, rtol=0, atol=0)


# Errors


def with_results():
    """Return a module that keeps the result of a forward pass."""
    module = seeded(lambda: nn.Linear(4, 2))
    module.last = module(torch.as_tensor(normal(3, 4)))
    return module


def of_outputs(change):
    return lambda: seeded(lambda: Composed(lambda m, x: change(m.layer(x)), layer=nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (of_outputs(lambda z: (z, z)), UnsupportedModelError, "returned a tuple"),
        (of_outputs(lambda z: z[:, 0]), UnsupportedModelError, r"shape \(4,\) for 4 rows"),
        (of_outputs(lambda z: z[:, None]), UnsupportedModelError, r"shape \(4, 1, 2\)"),
        (of_outputs(lambda z: z[:2]), UnsupportedModelError, r"shape \(2, 2\) for 4 rows"),
        (of_outputs(lambda z: z / 0.0), ValueError, "NaN or infinite"),
        (of_outputs(lambda z: z.detach()), UnsupportedModelError, "None of the chosen parameters"),
        (of_outputs(lambda z: z - z.mean(0)), UnsupportedModelError, "the rows beside it"),
        (with_results, UnsupportedModelError, "cannot be copied"),
    ],
    ids=["tuple", "1-D", "3-D", "fewer rows", "nan", "constant", "batch", "uncopyable"],
)
def test_modules_that_cannot_be_differentiated(build, error, message):
    module = build()
    with pytest.raises(error, match=message):
        network_of(module, normal(8, 4))


def test_a_batch_norm_without_running_statistics():
    module = seeded(lambda: headed(nn.BatchNorm1d(2, track_running_stats=False), 2, 3))
    with pytest.raises(UnsupportedModelError, match="batch normalisation without running stat"):
        network_of(module, normal(8, 2, 3))


def test_no_parameters():
    with pytest.raises(UnsupportedModelError, match="None of the chosen parameters"):
        Network(seeded(lambda: nn.Linear(4, 2)), {}, torch.zeros(3, 4), dtype=torch.float64)


# Chosen parameters


def prepared(module, **options):
    model = as_model_function(TorchModel(module, loss="mse"))
    return model.prepared(normal(6, 4), **options).network


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (None, ["0.weight", "2.weight", "2.bias"]),
        ("*", ["0.weight", "2.weight", "2.bias"]),
        ("2.*", ["2.weight", "2.bias"]),
        (["*.weight"], ["0.weight", "2.weight"]),
        (["2.bias", "[01].*"], ["0.weight", "2.bias"]),
        (["2.*", "2.weight"], ["2.weight", "2.bias"]),
    ],
)
def test_globs_choose_trainable_parameters(patterns, names):
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    module[0].bias.requires_grad_(False)
    assert list(prepared(module, parameters=patterns).places) == names


@pytest.mark.parametrize(
    ("patterns", "named"),
    [("1.*", "1.*"), (["2.*", "Weight"], "Weight"), (["0.bias"], "0.bias")],
)
def test_globs_that_match_nothing(patterns, named):
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    module[0].bias.requires_grad_(False)
    with pytest.raises(UnsupportedOptionError) as caught:
        prepared(module, parameters=patterns)
    assert named in str(caught.value) and "0.weight, 2.weight, 2.bias" in str(caught.value)


def test_nothing_trainable():
    module = seeded(lambda: nn.Linear(4, 2)).requires_grad_(False)
    with pytest.raises(UnsupportedOptionError, match="no trainable parameters"):
        prepared(module)
