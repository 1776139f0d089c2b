"""Whether the numbers are true: predicted effects against those of real refits."""

from ._removal_fidelity import RemovalFidelity, removal_fidelity

__all__ = ["RemovalFidelity", "removal_fidelity"]
