"""Shapes and types of every annotated call in the package are checked while the tests run; no cache outlives them."""

import os
import tempfile

import torch
from jaxtyping import install_import_hook

install_import_hook("dragontune", "typecheck.checked")
torch.set_num_threads(1)
_CACHE = tempfile.TemporaryDirectory(prefix="dragontune-tests-", ignore_cleanup_errors=True)
os.environ["DRAGONTUNE_CACHE"] = _CACHE.name
