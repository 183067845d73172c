"""The channel groups of the small classifier."""

import jax.numpy as jnp
import numpy as np
import pytest
from models.shrinking import check_dead_channels, check_groups, check_student

from kd_jax.models.classifier import classifier, classifier_axes

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)), jnp.float32)


def test_channels_are_described():
    groups = {"half/hidden": 3, "half": 3, "quarter/hidden": 6, "quarter": 6, "features": 12}
    check_groups(classifier(5, 3), classifier_axes, IMAGES, groups)


def test_a_student_is_initialized_from_the_teachers_channels():
    check_student(classifier(5, 4), classifier(5, 3), classifier_axes, IMAGES)
    check_dead_channels(classifier(5, 4), classifier(5, 3), classifier_axes, IMAGES)


def test_axes_of_another_network_raise():
    with pytest.raises(ValueError, match="are not those of such a network"):
        classifier_axes({"params": {"Dense_0": {"kernel": jnp.zeros((2, 3))}}})
