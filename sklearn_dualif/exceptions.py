"""Errors and warnings. Each one is also the builtin that a caller would catch."""


class UnsupportedModelError(TypeError):
    """The wrapped estimator is not one whose optimum is known in closed form here."""


class UnsupportedOptionError(ValueError):
    """An option of a supported estimator (a loss, a penalty, a solver) has no exact treatment."""


class MemoryLimitError(ValueError, MemoryError):
    """A factorization would need more memory than ``memory_limit`` allows."""


class SingularCurvatureError(ValueError, ArithmeticError):
    """A factorization or an optimum does not exist or came out non-finite."""


class SketchStoreError(ValueError, OSError):
    """A store of sketched rows is of something else, damaged, or cannot be written."""


class ReportError(ValueError, OSError):
    """A report cannot be written where it was to go."""


class InfluenceWarning(UserWarning):
    """What was asked can be computed, but the caller should know what it stands for."""


class NotStationaryWarning(InfluenceWarning):
    """The fitted parameters are far from the optimum of the stated objective on these rows."""
