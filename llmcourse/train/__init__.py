"""One training loop for every notebook: plain PyTorch, exact to resume, hard to kill.

    for each step:   lr ← schedule(step)
                     g  ← mean over `accumulate` micro-batches of ∇loss        (autocast, GradScaler for float16)
                     θ  ← optimizer(θ, clip(g))

    directory/step-00000100/  model.safetensors   trainable parameters and buffers
                              state.safetensors   optimizer moments, random generators
                              state.json          everything that is not a tensor
                              SHA256SUMS          `sha256sum -c` agrees

Does:     any nn.Module; warm-up and five schedules; weight decay on matrices only; several optimizers at once; evaluation that
          does not disturb the random numbers; checkpoints that survive `kill -9` and continue with bit-identical losses;
          loss spikes undone and their batches left out.
Leaves out: data loading (`batch` is a function of an index), several devices (see `sharding`), two processes in one directory,
          micro-batches of unequal weight (each counts the same). Frozen parameters are checked but not saved.
Files:    settings (what a run is), schedules, loop (`fit`), spikes, checkpoints, random_state.
Source:   Loshchilov & Hutter 2017 (cosine) and 2019 (AdamW); Vaswani et al. 2017, §5.3 (inverse square root);
          Micikevicius et al. 2018 (loss scaling); Chowdhery et al. 2022, §5.1 (spikes).
"""

from llmcourse.train.checkpoints import CheckpointError
from llmcourse.train.loop import TrainingDiverged, adamw, decay_groups, fit
from llmcourse.train.schedules import constant, cosine, inverse_sqrt, linear, lr_multiplier, warmup_cosine, wsd
from llmcourse.train.settings import History, Recovery, TrainConfig
from llmcourse.train.spikes import is_spike

__all__ = [
    "CheckpointError",
    "History",
    "Recovery",
    "TrainConfig",
    "TrainingDiverged",
    "adamw",
    "constant",
    "cosine",
    "decay_groups",
    "fit",
    "inverse_sqrt",
    "is_spike",
    "linear",
    "lr_multiplier",
    "warmup_cosine",
    "wsd",
]
