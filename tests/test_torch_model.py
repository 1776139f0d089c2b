"""`TorchModel`: a trained module as a frozen scikit-learn estimator."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, get_scorer, r2_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sklearn_dualif.exceptions import UnsupportedModelError, UnsupportedOptionError
from sklearn_dualif.losses import HalfTweedieDeviance, Huber, SoftmaxLogLoss
from sklearn_dualif.models._modules import module_outputs
from sklearn_dualif.models._torch_model import TorchModel, weight_decays

N, D = 12, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
LABELS = np.array(["a", "b", "c"])[np.arange(N) % 3]
NUMBERS = RNG.normal(size=N)


def network(n_outputs, *, n_inputs=D, dtype=torch.float64, seed=0):
    """A small network in training mode, with the layers that know it and own state."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Linear(n_inputs, 5, dtype=dtype),
            nn.BatchNorm1d(5, dtype=dtype),
            nn.Dropout(0.5),
            nn.Tanh(),
            nn.Linear(5, n_outputs, dtype=dtype),
        )
        module[1].running_mean.uniform_(-1.0, 1.0)
        module[1].running_var.uniform_(0.5, 2.0)
    return module


def expected(module, inputs):
    """The outputs of a copy in eval mode."""
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        return module(torch.as_tensor(inputs)).numpy()


class Lambda(nn.Module):
    """A module whose forward is a function of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


# What the methods say


def test_softmax():
    module = network(3)
    model = TorchModel(module).fit(X, LABELS)
    z = expected(module, X)
    odds = np.exp(z)
    np.testing.assert_array_equal(model.decision_function(X), z)
    np.testing.assert_allclose(model.predict_proba(X), odds / odds.sum(1, keepdims=True))
    np.testing.assert_array_equal(model.classes_, ["a", "b", "c"])
    np.testing.assert_array_equal(model.predict(X), model.classes_[z.argmax(1)])
    assert model.score(X, LABELS) == accuracy_score(LABELS, model.predict(X))
    assert model.n_features_in_ == D


@pytest.mark.parametrize("labels", [["no", "yes"], [False, True], [-1, 1], [2.0, 3.0]])
def test_a_single_logit(labels):
    module = network(1)
    y = np.array(labels)[np.arange(N) % 2]
    model = TorchModel(module, loss="binary_cross_entropy").fit(X, y)
    z = expected(module, X)[:, 0]
    np.testing.assert_array_equal(model.decision_function(X), z)
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(model.predict_proba(X), np.c_[1 - p, p], rtol=1e-12)
    np.testing.assert_array_equal(model.predict(X), np.array(labels)[(z > 0).astype(int)])
    assert model.predict(X).dtype == y.dtype
    assert model.score(X, y) == accuracy_score(y, model.predict(X))


def test_multilabel():
    module = network(3)
    y = RNG.integers(0, 2, size=(N, 3))
    model = TorchModel(module, loss="binary_cross_entropy").fit(X, y)
    z = expected(module, X)
    np.testing.assert_allclose(model.predict_proba(X), 1 / (1 + np.exp(-z)), rtol=1e-12)
    np.testing.assert_array_equal(model.predict(X), z > 0)
    np.testing.assert_array_equal(model.decision_function(X), z)
    np.testing.assert_array_equal(model.classes_, range(3))
    assert model.score(X, y) == accuracy_score(y, model.predict(X))
    assert model.__sklearn_tags__().classifier_tags.multi_label


@pytest.mark.parametrize("loss", ["mse", Huber(1.0)], ids=["mse", "huber"])
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_regression(loss, n_outputs):
    module = network(n_outputs)
    y = RNG.normal(size=(N, n_outputs)).squeeze()
    model = TorchModel(module, loss=loss).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), expected(module, X).squeeze())
    assert model.score(X, y) == r2_score(y, model.predict(X))
    weights = np.arange(1.0, N + 1)
    assert model.score(X, y, weights) == r2_score(y, model.predict(X), sample_weight=weights)
    for method in ("predict_proba", "decision_function", "classes_"):
        assert not hasattr(model, method)


def test_a_log_link_is_inverted():
    module = network(1)
    model = TorchModel(module, loss=HalfTweedieDeviance(1.0)).fit(X, np.exp(NUMBERS))
    np.testing.assert_allclose(model.predict(X), np.exp(expected(module, X)[:, 0]))


def test_tags_follow_the_loss():
    for loss in ("cross_entropy", "binary_cross_entropy"):
        assert is_classifier(TorchModel(network(2), loss=loss))
    for loss in ("mse", Huber(1.0)):
        assert is_regressor(TorchModel(network(2), loss=loss))


# Labels


def test_labels_of_each_logit():
    module = network(3)
    z = expected(module, X)
    model = TorchModel(module, classes=["c", "a", "b"]).fit(X, LABELS)
    np.testing.assert_array_equal(model.classes_, ["c", "a", "b"])
    np.testing.assert_array_equal(model.predict(X), np.array(["c", "a", "b"])[z.argmax(1)])


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([2, 2, 1], [0, 1, 2]),
        ([0, 0, 0], [0, 1, 2]),
        (["x", "z", "y"], ["x", "y", "z"]),
        (pd.Series(["x", "z", "y"], index=[3, 1, 2]), ["x", "y", "z"]),
        (torch.tensor([2, 0, 0]), [0, 1, 2]),
    ],
    ids=["other integers", "two of three", "one of three", "strings", "series", "tensor"],
)
def test_classes_found_in_y(y, classes):
    model = TorchModel(network(3)).fit(X[:3], y)
    np.testing.assert_array_equal(model.classes_, classes)


@pytest.mark.parametrize(
    ("y", "n_outputs", "loss", "message"),
    [
        (["a", "b"], 3, "cross_entropy", r"2 label\(s\) 'a', 'b', but .* 3 classes.*Give classes"),
        ([0, 3], 3, "cross_entropy", r"0, 3, but .*integers from 0 to 2"),
        ([-1, 1], 3, "cross_entropy", r"-1, 1, but .* 3 classes"),
        (list(range(7)), 3, "cross_entropy", r"7 label\(s\) 0, 1, 2, 3, 4, \.\.\., but"),
        ([0.0, 2.0], 3, "cross_entropy", r"0\.0, 2\.0, but .* 3 classes"),
        (["a", "a"], 1, "binary_cross_entropy", r"1 label\(s\) 'a', but .* 2 classes"),
        (["a", "b", "c"], 1, "binary_cross_entropy", r"3 label\(s\) .* 2 classes"),
        ([0.3, 0.5], 2, "cross_entropy", "Unknown label type: continuous"),
        ([[0, 1], [1, 0]], 2, "cross_entropy", r"one label a row.*\(2, 2\).*argmax"),
        ([[0, 1], [1, 0]], 1, "binary_cross_entropy", r"one label a row.*\(2, 2\)"),
        ([0, 1], 2, "binary_cross_entropy", r"2 logits needs indicators.*\(2,\).*cross_entropy"),
        ([[0, 2], [1, 0]], 2, "binary_cross_entropy", "indicators 0 and 1"),
        ([[0, 1, 1], [1, 0, 0]], 2, "binary_cross_entropy", r"\(n_samples, 2\); got .*\(2, 3\)"),
        ([1.0, 2.0], 2, "mse", r"1 number\(s\) a row, but the module gives 2 output"),
        ([[1.0, 2.0], [3.0, 4.0]], 1, "mse", r"2 number\(s\) a row, but the module gives 1"),
        ([1.0, np.nan], 1, "mse", "y contains NaN"),
        ([0.0, np.nan], 2, "cross_entropy", "y contains NaN"),
        (None, 2, "cross_entropy", "got y=None"),
    ],
)
def test_refused_targets(y, n_outputs, loss, message):
    model = TorchModel(network(n_outputs), loss=loss)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        model.fit(X if y is None else X[: len(y)], y)
    assert vars(model) == before


def test_one_target_for_each_row():
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[12, 11\]"):
        TorchModel(network(3)).fit(X, LABELS[1:])


@pytest.mark.parametrize(
    ("classes", "n_outputs", "loss"),
    [
        (["a", "b"], 3, "cross_entropy"),
        (["a", "a", "b"], 3, "cross_entropy"),
        (["a"], 1, "binary_cross_entropy"),
        ("abc", 3, "cross_entropy"),
        (3, 3, "cross_entropy"),
        ([["a", "b", "c"]], 3, "cross_entropy"),
    ],
)
def test_refused_classes(classes, n_outputs, loss):
    model = TorchModel(network(n_outputs), loss=loss, classes=classes)
    for call in (lambda: model.fit(X, LABELS), lambda: model.predict(X)):
        with pytest.raises(
            ValueError, match=r"classes=.* must be a sequence of \d different label"
        ):
            call()


def test_a_label_outside_the_given_classes():
    model = TorchModel(network(3), classes=["a", "b", "d"])
    with pytest.raises(ValueError, match=r"the label 'c', which is not among classes"):
        model.fit(X, LABELS)
    with pytest.raises(ValueError, match=r"the label 1, which is not among classes"):
        TorchModel(network(2), classes=["0", "1"]).fit(X[:2], [1, 1])


# Fitted, or not


@pytest.mark.parametrize(
    "model",
    [
        TorchModel(network(3), classes=["a", "b", "c"]),
        TorchModel(network(1), loss="binary_cross_entropy", classes=[0, 1]),
        TorchModel(network(1), loss="mse"),
    ],
)
def test_a_trained_model_needs_no_fit(model):
    check_is_fitted(model)
    frozen = FrozenEstimator(model)
    np.testing.assert_array_equal(frozen.predict(X), model.predict(X))
    assert not hasattr(model, "n_features_in_")
    assert is_classifier(model) == hasattr(model, "classes_")


def test_without_labels_it_is_not_fitted():
    model = TorchModel(network(3))
    for method in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(NotFittedError, match=r"label of each logit. Give classes=\[\.\.\.\]"):
            getattr(model, method)(X)
    with pytest.raises(AttributeError, match=r"has no classes_.*classes=\[\.\.\.\]"):
        _ = model.classes_


def test_a_column_of_another_width():
    model = TorchModel(network(3)).fit(X, LABELS)
    with pytest.raises(ValueError, match="X has 3 features, but TorchModel is expecting 4"):
        model.predict(X[:, :3])


def test_a_second_fit_forgets_the_first():
    frame = pd.DataFrame(X, columns=list("pqrs"))
    model = TorchModel(nn.Sequential(nn.Flatten(), network(3))).fit(frame, LABELS)
    assert list(model.feature_names_in_) == list("pqrs")
    model.fit(X.reshape(N, 2, 2), np.arange(N) % 3)
    assert not hasattr(model, "feature_names_in_") and not hasattr(model, "n_features_in_")
    np.testing.assert_array_equal(model.classes_, [0, 1, 2])


def test_weights_and_parameters_of_fit_have_no_effect():
    model = TorchModel(network(3)).fit(X, LABELS, sample_weight=np.ones(N), epochs=3)
    np.testing.assert_array_equal(
        model.predict(X), TorchModel(network(3)).fit(X, LABELS).predict(X)
    )


def test_clone_and_pickle_keep_the_training():
    module = network(3)
    model = TorchModel(module, weight_decay={"*.bias": 0.0, "*": 0.1}, classes=["a", "b", "c"])
    z = model.decision_function(X)
    one, two = clone(model), clone(clone(model))
    for other in (one, two, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.decision_function(X), z)
        assert other.weight_decay == model.weight_decay
    with torch.no_grad():
        one.module[0].weight.zero_()
    for other in (model, two):
        np.testing.assert_array_equal(other.decision_function(X), z)
    assert one.module is not two.module is not module


def test_inside_scikit_learn():
    module = network(2)
    y = np.arange(N) % 2
    pipeline = make_pipeline(StandardScaler(), TorchModel(module)).fit(X, y)
    scaled = (X - X.mean(0)) / X.std(0)
    np.testing.assert_allclose(pipeline.decision_function(X), expected(module, scaled))
    assert len(cross_val_score(TorchModel(module), X, y, cv=3, scoring="neg_log_loss")) == 3
    single = TorchModel(network(1), loss="binary_cross_entropy").fit(X, y)
    assert get_scorer("roc_auc")(single, X, y) >= 0.0
    assert "TorchModel" in repr(single) and "TorchModel" in single._repr_html_()
    with config_context(enable_metadata_routing=True):
        assert single.set_fit_request(sample_weight=True) is single


# The caller's module


class Stateful(nn.Module):
    """Draws random numbers and counts its calls in a buffer, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.inner = network(3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1
        return self.inner(inputs) + torch.rand(1, dtype=inputs.dtype)


def state(module):
    """Everything about a module that a caller could see."""
    tensors = {k: v.clone() for k, v in module.state_dict(keep_vars=True).items()}
    grads = {k: v.grad for k, v in module.named_parameters()}
    modes = [part.training for part in module.modules()]
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
    flags = [p.requires_grad for p in module.parameters()]
    return tensors, grads, modes, hooks, flags, torch.get_rng_state()


def assert_same_state(one, other):
    for left, right in zip(one, other, strict=True):
        if isinstance(left, dict):
            assert left.keys() == right.keys()
            for name, value in left.items():
                assert value is right[name] or torch.equal(value, right[name])
        elif isinstance(left, torch.Tensor):
            assert torch.equal(left, right)
        else:
            assert left == right


def test_nothing_of_the_module_changes():
    module = Stateful()
    module.inner[2].eval()
    module.inner[0].weight.requires_grad_(False)
    module(torch.as_tensor(X)).sum().backward()
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    before = state(module)
    model = TorchModel(module).fit(X, LABELS)
    model.predict(X)
    model.predict_proba(X)
    model.score(X, LABELS)
    assert_same_state(state(module), before)
    assert model.module is module and seen


@pytest.mark.parametrize("error", [RuntimeError, KeyError, torch.OutOfMemoryError])
def test_modes_come_back_after_an_error(error):
    def fail(inputs):
        raise error("broken")

    module = nn.Sequential(network(3), nn.Dropout().eval(), Lambda(fail))
    before = state(module)
    with pytest.raises(ValueError if error is RuntimeError else error, match="broken"):
        TorchModel(module, loss="mse").predict(X)
    assert_same_state(state(module), before)


def test_the_rows_are_not_written_to():
    module = nn.Sequential(nn.ReLU(inplace=True), network(3))
    rows, tensor = X.copy(), torch.tensor(X)
    z = module_outputs(module, rows)
    assert torch.equal(module_outputs(module, tensor), z)
    np.testing.assert_array_equal(rows, X)
    np.testing.assert_array_equal(tensor.numpy(), X)


# Rows


def test_float32_modules_take_float64_rows():
    module = network(3, dtype=torch.float32)
    model = TorchModel(module, classes=[0, 1, 2])
    z = model.decision_function(X)
    assert z.dtype == np.float64
    np.testing.assert_allclose(z, expected(module, X.astype(np.float32)), rtol=1e-6)


@pytest.mark.parametrize(
    "rows",
    [
        X[::-1].copy()[::-1],
        X.astype(">f8"),
        np.asfortranarray(X),
        np.broadcast_to(X, (2, N, D))[1],
        X.tolist(),
        pd.DataFrame(X, columns=list("pqrs")),
        pd.DataFrame(X).astype(object),
        torch.tensor(X, requires_grad=True),
    ],
    ids=["reversed", "big endian", "fortran", "read only", "lists", "frame", "objects", "tensor"],
)
def test_kinds_of_rows(rows):
    module = network(3)
    model = TorchModel(module).fit(rows, LABELS)
    np.testing.assert_array_equal(model.decision_function(rows), expected(module, X))
    assert model.n_features_in_ == D


def test_a_frame_with_booleans():
    frame = pd.DataFrame({"p": X[:, 0], "q": X[:, 1] > 0})
    module = network(1, n_inputs=2)
    model = TorchModel(module, loss="mse")
    numbers = frame.to_numpy(dtype=np.float64)
    np.testing.assert_array_equal(model.predict(frame), expected(module, numbers)[:, 0])
    np.testing.assert_array_equal(
        model.predict(numbers > 0), expected(module, (numbers > 0).astype(float))[:, 0]
    )


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint16])
def test_tokens_stay_integers(dtype):
    module = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2))
    tokens = RNG.integers(0, 7, size=(N, 2))
    model = TorchModel(module, classes=[0, 1])
    z = expected(module, tokens)
    np.testing.assert_array_equal(model.decision_function(tokens.astype(dtype)), z)
    np.testing.assert_array_equal(model.decision_function(torch.tensor(tokens.astype(dtype))), z)


def test_rows_of_many_dimensions_in_batches():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    images = RNG.normal(size=(2500, 1, 4, 4)).astype(np.float32)
    model = TorchModel(module).fit(images, np.arange(2500) % 3)
    np.testing.assert_allclose(model.decision_function(images), expected(module, images), atol=1e-6)
    assert not hasattr(model, "n_features_in_")


def test_a_module_without_parameters_keeps_the_precision():
    model = TorchModel(nn.Identity(), classes=["a", "b", "c"])
    np.testing.assert_array_equal(model.decision_function(X[:, :3]), X[:, :3])


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        (sparse.eye_array(4).tocsr(), TypeError, r"sparse matrix.*toarray\(\)"),
        (X[:0], ValueError, r"at least one row; got ndarray of shape \(0, 4\)"),
        (3.0, ValueError, r"one entry a row.*got float of shape \(\)"),
        ({"a": X}, ValueError, r"one entry a row.*got dict"),
        (pd.DataFrame({"p": ["u", "v"]}), ValueError, "not numbers: .*'u'.*OrdinalEncoder"),
        (X + 1j, ValueError, "values of type .*complex128, not real numbers"),
        (torch.tensor(X + 1j), ValueError, "values of type .*complex128, not real numbers"),
        (X[:, :3], ValueError, r"shape \(12, 3\) and torch.float64: .*shape that forward takes"),
        (np.ones((2, 4), int), ValueError, r"torch.int64: .*floats for numbers"),
    ],
    ids=[
        "sparse",
        "empty",
        "scalar",
        "dict",
        "strings",
        "complex",
        "complex tensor",
        "columns",
        "integers",
    ],
)
def test_refused_rows(rows, kind, message):
    with pytest.raises(kind, match=f"(?s){message}"):
        TorchModel(network(3), loss="mse").predict(rows)


def test_a_token_out_of_range():
    with pytest.raises(ValueError, match=r"index out of range.*integers for tokens"):
        module_outputs(nn.Sequential(nn.Embedding(7, 3), nn.Flatten()), [[7]])


# Modules and their outputs


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (lambda x: (x, x), TypeError, "returned a tuple.*returns the logits alone"),
        (lambda x: {"logits": x}, TypeError, "returned a dict.*Wrap the module"),
        (lambda x: x[:, 0], ValueError, r"shape \(12,\) for 12 row.*Return \(n, 1\)"),
        (lambda x: x.mean(), ValueError, r"shape \(\) for 12 row.*must be \(n, n_outputs\)"),
        (lambda x: x[:1], ValueError, r"shape \(1, 4\) for 12 row"),
        (lambda x: x[:, :0], ValueError, r"shape \(12, 0\) for 12 row"),
        (lambda x: x[:, None], ValueError, r"shape \(12, 1, 4\) for 12 row"),
        (lambda x: x.argmax(1, keepdim=True), ValueError, "torch.int64.*logits or numbers"),
        (lambda x: x / (x != x[3]), ValueError, "returned (inf|-inf) for row 3"),
        (lambda x: x.sqrt(), ValueError, "returned nan for row .*Check that row"),
    ],
)
def test_refused_outputs(function, kind, message):
    module = nn.Sequential(Lambda(function))
    with pytest.raises(kind, match=f"forward of Sequential .*{message}|{message}"):
        module_outputs(module, X)
    with pytest.raises(kind, match=message):
        TorchModel(module, loss="mse").fit(X, NUMBERS)


def test_the_row_of_a_nan_counts_over_batches():
    rows = np.ones((1500, 1))
    rows[1300] = np.nan
    with pytest.raises(ValueError, match="returned nan for row 1300"):
        module_outputs(nn.Identity(), rows)


def test_cross_entropy_needs_two_logits():
    with pytest.raises(ValueError, match=r"two or more logits.*binary_cross_entropy"):
        TorchModel(network(1)).fit(X, np.arange(N) % 2)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear, "got Linear. Make an instance"),
        (StandardScaler(), r"got StandardScaler. .*net\.module_"),
        (None, "got NoneType"),
    ],
)
def test_refused_modules(module, message):
    with pytest.raises(UnsupportedModelError, match=message):
        TorchModel(module).fit(X, LABELS)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_scripts_are_refused():
    module = torch.jit.trace(nn.Linear(D, 3), torch.zeros(1, D))
    with pytest.raises(UnsupportedModelError, match=r"Pass the torch\.nn\.Module"):
        TorchModel(module).fit(X, LABELS)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_module_without_shapes_is_not_trained():
    module = nn.LazyLinear(3)
    with pytest.raises(UnsupportedModelError, match=r"'weight' of LazyLinear has no shape yet"):
        TorchModel(module).fit(X, LABELS)
    assert nn.parameter.is_lazy(module.weight)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("hinge", "loss='hinge' is not supported. Choose 'cross_entropy'"),
        (nn.CrossEntropyLoss(), r"CrossEntropyLoss\(\) is not supported. Choose 'cross_entropy'"),
        (Huber, "Pass an instance of Huber"),
        (SoftmaxLogLoss(), "For a loss of labels, choose 'cross_entropy'"),
        (None, "loss=None is not supported"),
    ],
)
def test_refused_losses(loss, message):
    with pytest.raises(UnsupportedOptionError, match=message):
        TorchModel(network(3), loss=loss).fit(X, NUMBERS)


# Weight decay


def test_weight_decay_by_name():
    module = network(3)
    names = [name for name, _ in module.named_parameters()]
    assert weight_decays(module, 0.5) == dict.fromkeys(names, 0.5)
    decays = weight_decays(module, {"4.*": 1, "*.weight": 0.25, "4.bias": 7.0})
    assert decays == {
        "0.weight": 0.25, "0.bias": 0.0, "1.weight": 0.25, "1.bias": 0.0,
        "4.weight": 1.0, "4.bias": 1.0,
    }  # fmt: skip
    assert list(decays) == names


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.1, "weight_decay=-0.1 is not allowed: give a finite number >= 0"),
        (np.nan, "weight_decay=nan"),
        ("0.1", "weight_decay='0.1'"),
        (True, "weight_decay=True"),
        (None, "weight_decay=None"),
        ({"*": -1.0}, "is not allowed"),
        ({"head.*": 0.1}, r"'head\.\*', which matches no parameter.*0\.weight, 0\.bias"),
        ({0: 0.1}, "pattern 0, which matches no parameter"),
    ],
)
def test_refused_weight_decay(value, message):
    with pytest.raises(ValueError, match=message):
        TorchModel(network(3), weight_decay=value).fit(X, LABELS)
