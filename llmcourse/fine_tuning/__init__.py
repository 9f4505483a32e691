"""Fine-tuning: how deep, in what format, with which head, how not to forget, and how to go on while the world changes.

Files: depth (which layers learn, how fast), formats (a task as one row of tokens, or as text), classify (heads and label words),
forgetting (replay, anchors, half fine-tuning), drift (streams). Import what is needed: `from llmcourse.fine_tuning import depth`.
"""
