"""Cross-lingual fine-tuning (CC-Tuning) for Hugging Face models: patch, train, fit, generate, save and load."""

from cc_kernels import __version__
from cc_model.config import CCConfig
from cc_model.connection.state import connection_disabled
from cc_model.data.collator import ParallelCollator
from cc_model.fast_paths.pivot_graph import use_pivot_graph
from cc_model.fast_paths.product import save_memory
from cc_model.forward.bank import pivot_bank
from cc_model.loading import from_pretrained
from cc_model.matrix.fit import fit_transform_matrix
from cc_model.patching.patch import patch_model, unpatch_model
from cc_model.report import report

__all__ = [
    "CCConfig",
    "ParallelCollator",
    "__version__",
    "connection_disabled",
    "fit_transform_matrix",
    "from_pretrained",
    "patch_model",
    "pivot_bank",
    "report",
    "save_memory",
    "unpatch_model",
    "use_pivot_graph",
]
