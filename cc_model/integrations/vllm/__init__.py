"""Serving in vLLM, with the connection: the plugin, its models and what it adds to vLLM's engine; docs/serving.md."""
