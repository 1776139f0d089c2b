r"""Which labels are probably wrong, and how many: confident learning [1]_.

The self-confidence :math:`t_k` of a class is the mean probability of class k among the rows with
that label, of out-of-sample probabilities. A row is confidently of class k if its probability is at
least :math:`t_k`; of several such classes, of the most probable. A row that is confidently of
another class than its label counts as an error. A class that the model knows badly has a low
threshold on both sides, so that hard classes are not thrown out. A class of a single row has none:
the model without that row does not know the class, and no row is confidently of it.

.. [1] C. Northcutt, L. Jiang and I. Chuang, "Confident Learning: Estimating Uncertainty in Dataset
   Labels", JAIR 70, 2021.
"""

import numpy as np


def confident_errors(proba, labels):
    """Return a mask (n,) of the rows that are confidently of another class than their label.

    Parameters
    ----------
    proba : (n, n_classes) array
        Out-of-sample probabilities.
    labels : (n,) array of int
        Columns of the given labels.
    """
    n_classes = proba.shape[1]
    counts = np.bincount(labels, minlength=n_classes)
    own = np.bincount(labels, weights=proba[np.arange(len(labels)), labels], minlength=n_classes)
    thresholds = np.where(counts > 1, own / np.maximum(counts, 1), np.inf)
    above = np.where(proba >= thresholds, proba, -1.0)
    best = above.argmax(axis=1)
    return (above.max(axis=1) >= 0.0) & (best != labels)
