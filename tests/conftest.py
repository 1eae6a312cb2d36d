"""Shapes and types of annotated calls in the package are checked while the tests run; no cache outlives them."""

import os
import tempfile

import jaxtyping
import pytest
import torch

import typecheck

jaxtyping.jaxtyped = typecheck.some_calls
jaxtyping.install_import_hook("dragontune", "typecheck.checked")
torch.set_num_threads(1)
_CACHE = tempfile.TemporaryDirectory(prefix="dragontune-tests-", ignore_cleanup_errors=True)
os.environ["DRAGONTUNE_CACHE"] = _CACHE.name


@pytest.fixture(autouse=True)
def _types_are_checked_from_the_start():
    typecheck.begin_test()
