"""Scripts that `torchrun` starts, one process a rank, and `rank`, which they share.

    torchrun --standalone --nproc-per-node 4 train.py --strategy zero3

`launch.run("train", ranks=4, strategy="zero3")` starts the same from a notebook.
"""
