"""Making the embedded models: tokenizer, texts in order of difficulty, one training run, a model card."""
