"""Asserts in modules beside the tests say what they compared, as those in a test file do."""

import pytest

pytest.register_assert_rewrite("tests.common.queue")
