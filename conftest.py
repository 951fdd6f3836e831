"""What pytest leaves out: modules whose optional library is not installed cannot be imported for their examples."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("lm_eval") else ["cc_model/integrations/lm_eval.py"]
