"""One page about a model and its training rows, for a colleague."""

import os
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sklearn.utils.validation import check_consistent_length

from ..cleaning import find_issues
from ..exceptions import ReportError, UnsupportedModelError
from ..metrics import Validation, validate
from ..metrics._removals import check_fitted
from ..objectives import as_objective
from ._drawing import checked_count
from ._rows import check_image_shape

_NEEDED = ("given_label", "rank", "reason", "is_issue", "self_influence")


@dataclass
class Findings:
    """What a report is made of.

    Attributes
    ----------
    influence : InfluenceEstimator
        Fitted.
    X_val, y_val : array-like or None
        Held-out rows and targets.
    n_rows : int
        Rows to list.
    image_shape : tuple of int or None
        Of a row as an image.
    issues : DataFrame or None
        Of `find_issues`.
    no_issues : str
        Why there is none.
    validation : Validation or None
    no_validation : str
        Why there is none.
    seconds : dict of str to float
        Time that each part took.
    """

    influence: object
    X_val: object
    y_val: object
    n_rows: int
    image_shape: tuple | None
    issues: object = None
    no_issues: str = ""
    validation: Validation | None = None
    no_validation: str = ""
    seconds: dict = field(default_factory=dict)

    @contextmanager
    def timed(self, part):
        """Keep how long a part takes."""
        started = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - started

    @property
    def n_train(self):
        """Number of training rows."""
        return len(self.influence._sample_weight)


def report(
    influence_estimator,
    path,
    X_val=None,
    y_val=None,
    *,
    issues=None,
    validation=None,
    title=None,
    n_rows=20,
    n_refits=21,
    image_shape=None,
    random_state=None,
    sections=(),
):
    """Write a page about a model and its training rows: one HTML file that needs nothing else.

    It has the verdict of `metrics.validate` in plain words, the rows to look at first with the
    reasons, pictures, and what was computed. It opens from disk, on a phone too, and prints.

    Parameters
    ----------
    influence_estimator : InfluenceEstimator
        Fitted.
    path : str or path-like
        File to write, in a folder that is there. An older one is replaced, once the page is
        complete.
    X_val, y_val : array-like, optional
        Rows that the model was not trained on, and their targets. Effects are on their mean loss,
        and refits are compared with predictions on them. Without them sizes are not checked, and
        the page says so. ``y_val`` may be missing for an objective without targets.
    issues : DataFrame, optional
        What `cleaning.find_issues` returned for these training rows, without ``groups``. None: it
        is called.
    validation : Validation, optional
        What `metrics.validate` returned for this estimator. None: it is called, where there are
        ``X_val``.
    title : str, optional
        Of the page. None: "Training rows of" and the name of the model.
    n_rows : int, default=20
        Training rows to list, from 1 to 200.
    n_refits : int, default=21
        See `metrics.validate`.
    image_shape : tuple of int, optional
        (height, width) of a row as an image, or these with channels before or after them. Rows are
        then shown as pictures, else by their values.
    random_state : int, RandomState instance or None, default=None
        See `metrics.validate`.
    sections : sequence of (str, DataFrame or str), default=()
        More parts, each with a heading, at the end. Of a frame, the first 200 lines are shown; in a
        text, an empty line begins a paragraph.

    Returns
    -------
    pathlib.Path
        Where it was written.

    Raises
    ------
    NotFittedError
        If ``influence_estimator`` was not fitted.
    TypeError
        If it is no `InfluenceEstimator`, or another argument has the wrong type.
    ReportError
        A `ValueError` and an `OSError`, if the file cannot be written there. What was there stays.
    ValueError
        If issues are of other rows, or a number is out of range.

    See Also
    --------
    sklearn_dualif.cleaning.find_issues : The table of all rows.
    sklearn_dualif.metrics.validate : The verdict.

    Notes
    -----
    Classifiers that `find_issues` cannot judge (`LinearSVC` has no probabilities) have their rows
    ranked by self-influence instead, and the page says why.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.inspection import report
    >>> X, y = load_wine(return_X_y=True, as_frame=True)
    >>> model = make_pipeline(StandardScaler(), LogisticRegression())
    >>> influence = InfluenceEstimator(model).fit(X[::2], y[::2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = report(influence, f"{folder}/wine.html", X[1::2], y[1::2], random_state=0)
    ...     page.name, "trust the sizes" in page.read_text(encoding="utf-8").lower()
    ('wine.html', True)
    """
    check_fitted(influence_estimator, "report")
    path = _writable(path)
    n_rows = checked_count(n_rows, "n_rows")
    if not 1 <= n_rows <= 200:
        raise ValueError(f"n_rows={n_rows} must be from 1 to 200, for a page that can be read.")
    sections = _checked_sections(sections)
    if image_shape is not None:
        check_image_shape(influence_estimator._X_train, image_shape)
    _check_validation_rows(influence_estimator, X_val, y_val)
    found = Findings(influence_estimator, X_val, y_val, n_rows, image_shape)
    _judge_rows(found, issues)
    _judge_effects(found, validation, n_refits, random_state)
    from ._report_page import page

    _write(path, page(found, title, sections))
    return path


# What is computed ------------------------------------------------------------------------------


def _check_validation_rows(influence, X_val, y_val):
    if X_val is None:
        if y_val is not None:
            raise ValueError("y_val was given without X_val. Give both, or neither.")
        return
    if y_val is None:
        if as_objective(influence.objective).requires_y:
            raise ValueError(
                f"X_val was given without y_val, and objective={influence.objective!r} needs "
                "targets. Give both, or neither."
            )
        return
    check_consistent_length(X_val, y_val)


def _judge_rows(found, issues):
    influence = found.influence
    if issues is not None:
        found.issues = _checked_issues(found, issues)
        return
    validation = {}
    if found.y_val is not None:
        validation = {"X_val": found.X_val, "y_val": found.y_val}
    with found.timed("finding rows that are probably wrong"):
        try:
            found.issues = find_issues(
                influence, influence._X_train, influence._y_train, **validation
            )
        except UnsupportedModelError as error:
            found.no_issues = str(error)


def _judge_effects(found, validation, n_refits, random_state):
    influence = found.influence
    if validation is not None:
        if not isinstance(validation, Validation):
            raise TypeError(
                f"validation is a {type(validation).__name__}, not a Validation. Pass what "
                "sklearn_dualif.metrics.validate returns, or None."
            )
        found.validation = validation
    elif not influence._engine.gives_effects:
        found.no_validation = (
            "curvature='identity' gives scores that rank rows. They have no sizes that refits "
            "could confirm."
        )
    elif found.X_val is None:
        found.no_validation = (
            "No held-out rows were given, so that the predicted effects were not compared with "
            "refits."
        )
    else:
        with found.timed("refits to check the effects"):
            found.validation = validate(
                influence,
                found.X_val,
                found.y_val,
                n_refits=n_refits,
                random_state=random_state,
            )


def _checked_issues(found, issues):
    import pandas as pd

    if not isinstance(issues, pd.DataFrame):
        raise TypeError(
            f"issues is a {type(issues).__name__}, not a DataFrame. Pass what "
            "sklearn_dualif.cleaning.find_issues returns, or None."
        )
    columns = list(issues.columns)
    missing = [name for name in _NEEDED if name not in columns and f"{name}_0" not in columns]
    if missing:
        raise ValueError(
            f"issues has no column {missing[0]!r}: its columns are {columns}. Pass the table of "
            "rows that find_issues returns without groups; a table of groups can be one of the "
            "sections."
        )
    if len(issues) != found.n_train:
        raise ValueError(
            f"issues has {len(issues)} rows and the training set {found.n_train}. Pass the whole "
            "table that find_issues returned for these rows."
        )
    index = found.influence._train_index
    if index is not None and not issues.index.equals(index):
        raise ValueError(
            "issues has another index than the training rows. Pass it in the order in which "
            "find_issues returned it."
        )
    if sorted(issues["rank"]) != list(range(1, len(issues) + 1)):
        raise ValueError(
            f"issues has ranks other than 1 to {len(issues)}. Pass the table as find_issues "
            "returned it."
        )
    return issues


def _checked_sections(sections):
    import pandas as pd

    if isinstance(sections, (str, pd.DataFrame)):
        raise TypeError(
            f"sections is a {type(sections).__name__}. Pass a sequence of (heading, DataFrame or "
            "str)."
        )
    checked = []
    for section in sections:
        pair = isinstance(section, (tuple, list)) and len(section) == 2
        if not pair or not isinstance(section[1], (str, pd.DataFrame)):
            raise TypeError(
                f"sections has {section!r:.80}. Each must be a pair of a heading and a DataFrame "
                "or str."
            )
        checked.append((str(section[0]), section[1]))
    return checked


# The file --------------------------------------------------------------------------------------


def _writable(path):
    """Return a path; raise if no file can be put there."""
    path = Path(path)
    if path.is_dir():
        raise ReportError(f"{str(path)!r} is a folder. Name a file in it, such as report.html.")
    folder = path.parent
    if not folder.is_dir():
        raise ReportError(
            f"{str(folder)!r} is no folder, and {path.name!r} was to go there. Make it first, or "
            "name another one."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ReportError(
            f"No file can be written to the folder {str(folder)!r}. Name another one, or ask for "
            "the right to."
        )
    return path


def _write(path, text):
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(partial, "x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.replace(partial, path)
    except OSError as error:
        raise ReportError(
            f"{str(path)!r} could not be written: {error.strerror or error}. What was there is "
            "there still. Name a file in another folder."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
