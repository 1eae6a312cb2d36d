"""Shapes and types of every annotated call in the package are checked while the tests run."""

import torch
from jaxtyping import install_import_hook

install_import_hook("dragontune", "typecheck.checked")
torch.set_num_threads(1)
