"""Fixtures for the tests that read real data sets."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder that FUSION_JAX_DATA names: a test is skipped only where the variable is not set."""
    value = os.environ.get("FUSION_JAX_DATA")
    if not value:
        pytest.skip("FUSION_JAX_DATA is not set: it names the folder of the real data sets")
    folder = Path(value).expanduser().resolve()
    if not folder.is_dir():
        pytest.fail(f"FUSION_JAX_DATA names {folder}, which is no folder")
    return folder
