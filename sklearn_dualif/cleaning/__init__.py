"""Rows of a training set that are probably wrong: found, removed, relabelled or weighed less."""

from ._issues import find_issues

__all__ = ["find_issues"]
