"""The ledger's entries: what the sources say, and the rule by which our own measurement will judge it.

Every rule was written before anything was measured. One may be refined only before its measurement exists, never after: a rule
that has seen its numbers proves nothing. "Points" are percentage points of macro-F1 or accuracy (0–100). A difference is named
`<this>_minus_<that>`, positive when <this> is higher, and arrives as (mean, low, high) over paired seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmcourse.claims.rules import (
    Rule,
    at_least,
    at_most,
    between,
    every,
    exactly,
    falls,
    not_worse,
    provided,
    ratio_at_least,
    rises,
    stays_below,
    within_margin,
)

__all__ = ["LEDGER", "Claim"]


@dataclass(frozen=True)
class Claim:
    """One published claim: what is said, the number that goes with it, where the course measures it, and how it is judged."""

    id: str
    text: str
    published: str
    notebooks: tuple[int, ...]
    rule: Rule
    tolerance: float = 0.25  # how far a fresh measurement may lie from the committed one, relative; counts must be equal

    @property
    def notebook(self) -> str:
        """The numbers of its notebooks, as text: "04" or "03, 08"."""
        return ", ".join(f"{number:02}" for number in self.notebooks)


_CLAIMS = [
    Claim(
        "scaling-power",
        "The loss falls as a power law in parameters, in data and in compute.",
        "straight lines in log–log axes over many orders of magnitude",
        (2,),
        every(
            at_least("sizes", 4),
            *(at_least(f"r2_{of}", 0.95) for of in ("parameters", "data", "compute")),
            *(rises(f"exponent_{of}", unit="(−slope)") for of in ("parameters", "data", "compute")),
        ),
    ),
    Claim(
        "bpe-example",
        "On `low, lower, newest, widest`, byte-pair encoding first joins e+s, then es+t.",
        "first merges: es, est",
        (2,),
        every(exactly("first_two_merges_equal", 2), exactly("merges_unlike_the_library", 0)),
    ),
    Claim(
        "mtl-forget",
        "Multitask training and parameter-efficient tuning forget less than fine-tuning on a single task.",
        "less forgetting (no number)",
        (3, 8),
        every(rises("kept_multitask_minus_single"), rises("kept_peft_minus_single")),
    ),
    Claim(
        "lora-params",
        "For a 512×64 weight, LoRA of rank 8 trains 86 % fewer parameters than the full matrix has.",
        "32,768 → 4,608 parameters",
        (4,),
        every(exactly("full", 32_768, unit="parameters"), exactly("lora", 4_608, unit="parameters")),
    ),
    Claim(
        "lora-rank",
        "The quality of LoRA saturates: ranks 4–32 are enough, and past 16 little is gained.",
        "ranks 4–32",
        (4,),
        provided(
            rises("f1_rank16_minus_frozen"),
            every(stays_below("f1_rank64_minus_rank16", 2), within_margin("f1_rank32_minus_rank4", 3)),
        ),
    ),
    Claim(
        "prompt-params",
        "Five soft tokens at width 2,048 are all that prompt tuning trains.",
        "10,240 parameters",
        (4,),
        exactly("prompt", 10_240, unit="parameters"),
    ),
    Claim(
        "prompt-scale",
        "Prompt tuning trails full fine-tuning on small models, and the gap closes as the model grows.",
        "no gap left at 10 billion parameters",
        (4,),
        every(rises("gap_smallest_model"), rises("gap_smallest_minus_gap_largest")),
    ),
    Claim(
        "prompt-neighbours",
        "The vocabulary's nearest neighbours of a trained soft prompt cluster by meaning.",
        "clusters found by eye",
        (4,),
        rises("similarity_neighbours_minus_random", unit="cosine"),
    ),
    Claim(
        "prefix-params",
        "Prefix tuning trains ~0.1 % of the parameters, comes near full fine-tuning, and wins with little data.",
        "0.1 %",
        (4,),
        every(
            between("share_at_published_size", 0.05, 0.2, unit="%"),
            not_worse("f1_prefix_minus_full", 2),
            rises("f1_prefix_minus_full_little_data"),
        ),
    ),
    Claim(
        "ptuningv2-params",
        "P-tuning v2 matches full fine-tuning while training 0.1–3 % of the parameters.",
        "0.1–3 %",
        (4,),
        every(between("share", 0.1, 3, unit="%"), within_margin("f1_ptuningv2_minus_full", 2)),
    ),
    Claim(
        "adapter-26",
        "Adapters come near full fine-tuning with a few per cent of the parameters.",
        "within 0.4 points, 3.6 % of the parameters",
        (4,),
        every(at_most("share", 5, unit="%"), not_worse("f1_adapter_minus_full", 2)),
    ),
    Claim(
        "bitfit-small",
        "Training only the biases competes with full fine-tuning when data is scarce.",
        "under 0.1 % of the parameters",
        (4,),
        every(at_most("share", 1, unit="%"), not_worse("f1_bitfit_minus_full_little_data", 2)),
    ),
    Claim(
        "ia3-fewest",
        "IA3 updates far fewer parameters than LoRA and beats few-shot prompting.",
        "about 0.01 % of the parameters",
        (4,),
        every(ratio_at_least("lora", "ia3", 5, unit="parameters"), rises("f1_ia3_minus_in_context")),
    ),
    Claim(
        "qlora-par",
        "QLoRA, on a 4-bit base, is on a par with LoRA on the full-precision one.",
        "no loss",
        (5,),
        provided(rises("f1_lora_minus_frozen"), within_margin("f1_qlora_minus_lora", 2)),
    ),
    Claim(
        "bitnet-bits",
        "A ternary weight carries log2(3) bits, and a 3-billion-parameter model takes 3.55 times less memory.",
        "1.58 bits, 3.55×",
        (5,),
        every(
            between("information", 1.584, 1.586, unit="bits per weight"),
            at_most("packed", 2, unit="bits per weight"),
            between("memory_ratio_at_3b", 3.2, 3.9, unit="×"),
        ),
    ),
    Claim(
        "distil-40-60-95",
        "DistilBERT is 40 % smaller and 60 % faster than its teacher and keeps over 95 % of its quality.",
        "40 %, 60 %, 95 %",
        (6,),
        every(at_least("smaller", 36, unit="%"), at_least("faster", 50, unit="%"), rises("kept", above=95, unit="%")),
    ),
    Claim(
        "maml-few-steps",
        "A start found by MAML adapts to a new task in a few gradient steps from a few examples.",
        "1–5 steps, 1–5 examples",
        (7,),
        every(
            at_most("steps", 5),
            at_most("examples", 5),
            rises("accuracy_maml_minus_pretrained"),
            rises("accuracy_maml_minus_random"),
        ),
    ),
    Claim(
        "flan-heldout",
        "Instruction mixtures raise zero-shot skill on unseen tasks; mixing kinds of prompts adds ≥2 points.",
        "≥2 points from mixing prompt kinds",
        (8,),
        every(rises("unseen_tuned_minus_untuned"), rises("unseen_mixed_minus_single_kind", above=2)),
    ),
    Claim(
        "icl-random-labels",
        "Replacing the labels of demonstrations by random ones barely hurts.",
        "0–5 points lost",
        (9,),
        provided(rises("f1_true_labels_minus_no_demonstrations"), not_worse("f1_random_minus_true_labels", 5)),
    ),
    Claim(
        "cot-gain",
        "Chains of thought lift multi-step sums, not on small untrained models; patterns matter more than symbols.",
        "a large gain, at large scale only",
        (9,),
        every(
            rises("accuracy_chain_minus_direct_trained"),
            stays_below("accuracy_chain_minus_direct_untrained", 5),
            rises("loss_broken_pattern_minus_swapped_symbols"),
        ),
    ),
    Claim(
        "self-consistency",
        "A majority over sampled chains beats one greedy chain.",
        "several points on arithmetic",
        (9,),
        rises("accuracy_majority_minus_greedy"),
    ),
    Claim(
        "ppo-kl",
        "The KL penalty keeps PPO near the reference model; without it the reward model is exploited.",
        "qualitative",
        (10,),
        every(
            rises("true_reward_change_with_kl", unit="reward"),
            falls("true_reward_change_without_kl", unit="reward"),
            rises("proxy_reward_change_without_kl", unit="reward"),
            ratio_at_least("kl_without", "kl_with", 2, unit="nats"),
        ),
    ),
    Claim(
        "dpo-stable",
        "DPO needs no reward model and no sampling, and reaches the reward-to-KL frontier of PPO.",
        "the same frontier or better",
        (11,),
        every(
            exactly("reward_model_calls", 0),
            exactly("tokens_sampled", 0),
            not_worse("true_reward_dpo_minus_ppo_at_equal_kl", 0.1, unit="standard deviations of the reward"),
        ),
    ),
    Claim(
        "rest-reuse",
        "ReST samples once and reuses the data for several improvement steps, which is cheaper than online RL.",
        "cheaper (no number)",
        (11,),
        every(
            rises("true_reward_change", unit="reward"), ratio_at_least("online_tokens", "rest_tokens", 2, unit="sampled tokens")
        ),
    ),
    Claim(
        "rag-cutoff",
        "Retrieval answers facts newer than the training data, the model alone cannot; tuning too does not hurt.",
        "qualitative",
        (12,),
        every(
            at_most("closed_book_accuracy", 10, unit="%"),
            rises("rag_minus_closed_book", above=20),
            not_worse("rag_and_tuned_minus_rag", 2),
        ),
    ),
    Claim(
        "pal-exact",
        "A program run by an interpreter computes exactly what a chain of thought gets wrong (the bakery's loaves).",
        "200 − 93 − 39 + 6 = 74 loaves",
        (13,),
        every(exactly("bakery_left", 74, unit="loaves"), rises("accuracy_program_minus_chain")),
    ),
    Claim(
        "react-hallucination",
        "Acting between thoughts (ReAct) hallucinates less than chains of thought on multi-hop questions.",
        "6 % against 14 % of the successes",
        (13,),
        falls("hallucinated_react_minus_chain"),
    ),
    Claim(
        "agenttuning",
        "Tuning on agent trajectories mixed with instructions raises agent skill and leaves general skill unharmed.",
        "general skill unchanged",
        (13,),
        every(rises("agent_tuned_minus_untuned"), not_worse("general_tuned_minus_untuned", 2)),
    ),
    Claim(
        "zero-1-2-3",
        "Mixed-precision Adam takes 16 bytes a parameter; ZeRO-1 cuts them up to 4×, ZeRO-2 8×, ZeRO-3 by the ranks.",
        "16 bytes; 4×, 8×, 64× on 64 ranks",
        (14,),
        every(
            exactly("bytes_per_parameter", 16, unit="bytes"),
            between("stage1_ratio_at_64", 3.5, 4, unit="×"),
            between("stage2_ratio_at_64", 7, 8, unit="×"),
            between("stage3_ratio_at_64", 63, 64, unit="×"),
            between("measured_over_formula", 0.99, 1.01, unit="×"),
        ),
    ),
    Claim(
        "fsdp-vs-ddp",
        "FSDP is as fast as DDP for small models and fits where DDP does not; communication grows with the ranks.",
        "the same speed; DDP fails above 2.3 billion parameters",
        (14,),
        every(
            between("time_fsdp_over_ddp", 0.8, 1.25, unit="×"),
            ratio_at_least("ddp_bytes", "fsdp_bytes", 1.5, unit="bytes per rank"),
            ratio_at_least("bytes_sent_4_ranks", "bytes_sent_2_ranks", 1.1, unit="bytes"),
        ),
    ),
    Claim(
        "lora-vs-full",
        "LoRA is mostly better than full fine-tuning for text classification.",
        "BERT-base: LoRA 82.2, full 33.2 F1 (average of six sets)",
        (15,),
        every(at_least("sets_where_lora_is_better", 4, unit="of 6 sets"), rises("f1_lora_minus_full")),
    ),
]

LEDGER: dict[str, Claim] = {claim.id: claim for claim in _CLAIMS}
