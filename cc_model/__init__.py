"""Cross-lingual fine-tuning (CC-Tuning) for Hugging Face models: patch, train, fit, generate, save and load."""

from cc_kernels import __version__
from cc_model.collator import ParallelCollator
from cc_model.config import CCConfig
from cc_model.connection import connection_disabled
from cc_model.loading import from_pretrained
from cc_model.patch import patch_model, unpatch_model
from cc_model.report import report
from cc_model.transform import fit_transform_matrix

__all__ = [
    "CCConfig",
    "ParallelCollator",
    "__version__",
    "connection_disabled",
    "fit_transform_matrix",
    "from_pretrained",
    "patch_model",
    "report",
    "unpatch_model",
]
