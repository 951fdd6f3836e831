"""The fields of a small Llama from scratch."""

SCRATCH = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SCRATCH |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
