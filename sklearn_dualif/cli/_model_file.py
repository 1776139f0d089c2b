"""A model of the user's own, from a file. Nothing of it is read before ``--trust`` was given."""

import pickle
from pathlib import Path

from sklearn.base import clone, is_classifier, is_regressor

from .._estimator import InfluenceEstimator
from ._errors import InputError, listed, one_line


def load_model(kind, path, trusted):
    """Return the estimator in a file.

    Parameters
    ----------
    kind : {"pickle", "skops"}
        Its format.
    path : str
        Where it is.
    trusted : bool
        Whether the user vouches for the file: loading it can run code in it.
    """
    path = Path(path)
    if not trusted:
        raise InputError(
            f"--model {kind}:{path} would run whatever code is in that file. Pass --trust if you "
            "know where it comes from."
        )
    if not path.is_file():
        raise InputError(f"--model {kind}:{path}: there is no such file.")
    try:
        model = _unpickled(path) if kind == "pickle" else _unpacked(path)
    except (KeyboardInterrupt, InputError, MemoryError):
        raise
    except Exception as error:
        # Damaged files and missing modules raise anything at all.
        says = f"{type(error).__name__}: {one_line(error, 120)}"
        raise InputError(
            f"{path} cannot be loaded as a {kind} file ({says}). Write it again with the versions "
            "of the libraries that are installed here."
        ) from None
    an_estimator = hasattr(model, "__sklearn_tags__") and not isinstance(model, type)
    if not an_estimator or not (is_classifier(model) or is_regressor(model)):
        raise InputError(
            f"{path} holds a {type(model).__name__}, which is no classifier or regressor of "
            "scikit-learn. Save the estimator itself, or a Pipeline that ends in one."
        )
    return model


def influence_around(model, X, path, task):
    """Return an InfluenceEstimator around a model from a file, the columns that it takes, its name.

    The model is fitted anew: the rows at hand need not be those that it was fitted on. If it was
    fitted, its columns are those of then.
    """
    classes = task == "classification"
    if is_classifier(model) != classes:
        is_a = "classifier" if is_classifier(model) else "regressor"
        raise InputError(
            f"{path} holds a {is_a}, and the task is {task}. Pass --task, or another model."
        )
    columns = list(X.columns)
    names = getattr(model, "feature_names_in_", None)
    if names is not None:
        missing = [name for name in names if name not in columns]
        if missing:
            raise InputError(
                f"{path} was fitted on columns that are not among the features: {listed(missing)}. "
                "Pass a table that has them (--keep keeps a column as a feature), or save the "
                "model unfitted."
            )
        columns = list(names)
    elif getattr(model, "n_features_in_", len(columns)) != len(columns):
        raise InputError(
            f"{path} was fitted on {model.n_features_in_} columns, and there are {len(columns)} "
            f"features: {listed(columns)}. Leave out the others with --drop."
        )
    inside = isinstance(model, InfluenceEstimator)
    influence = clone(model) if inside else InfluenceEstimator(clone(model))
    return influence, columns, f"{type(model).__name__} from {Path(path).name}"


def plain(X):
    """Return a frame with texts in place of categories, as other people's pipelines expect."""
    categories = [name for name, dtype in X.dtypes.items() if dtype.kind not in "fM"]
    return X.astype(dict.fromkeys(categories, object))


def _unpickled(path):
    with open(path, "rb") as file:
        return pickle.load(file)


def _unpacked(path):
    try:
        from skops.io import get_untrusted_types, load
    except ImportError:
        raise InputError(
            'skops files need skops. Install it by pip install "sklearn-dualif[tables]".'
        ) from None
    return load(path, trusted=get_untrusted_types(file=path))
