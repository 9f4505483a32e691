"""Pre-training: how the embedded models are made (tokenizer, mixture of texts, recipe) and what they can do (skills)."""
