"""What all tests share: profiles of the property tests, and a network that takes long to train.

Property tests try the same few examples on every run, unless more are asked for.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from network_helpers import digits_network

_COMMON = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("default", derandomize=True, max_examples=6, **_COMMON)
settings.register_profile("thorough", max_examples=100, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def digits():
    """A TorchModel at its optimum on 90 digits, the digits, and 20 queries."""
    return digits_network()
