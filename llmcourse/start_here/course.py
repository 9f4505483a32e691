"""The map of the course: which notebooks there are, and how far this learner has come."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NOTEBOOKS", "Notebook", "course_map"]


@dataclass(frozen=True)
class Notebook:
    """One lesson: the stem of its file, what it is about, and whether it exists yet."""

    stem: str
    about: str
    ready: bool = False

    @property
    def topic(self) -> str:
        """The word that names its package and its exercises."""
        return self.stem.partition("_")[2]


NOTEBOOKS = (
    Notebook("00_start_here", "how the course works, in five minutes", ready=True),
    Notebook("01_transformer", "from one dot product to a model that writes", ready=True),
    Notebook("02_pretraining", "tokenizers, objectives, data, scaling laws", ready=True),
    Notebook("03_fine_tuning", "adapting a model, and what it forgets", ready=True),
    Notebook("04_peft", "LoRA, adapters, prompts: train one per cent", ready=True),
    Notebook("05_quantization", "16, 8, 4, 1.58 bits, and QLoRA", ready=True),
    Notebook("06_distillation", "a small student of a large teacher"),
    Notebook("07_maml", "learning to learn from five examples"),
    Notebook("08_multitask", "many tasks at once, and instructions"),
    Notebook("09_prompting", "in-context learning and chains of thought"),
    Notebook("10_rlhf", "reward models and PPO"),
    Notebook("11_dpo", "preferences without a reward model"),
    Notebook("12_rag", "answers from documents"),
    Notebook("13_agents", "models that use tools"),
    Notebook("14_sharding", "one model, many devices", ready=True),
    Notebook("15_capstone", "auditing a published result"),
)


def course_map() -> None:
    """Show every notebook with the exercises this learner has solved."""
    from .. import show
    from ..exercise import Progress

    states = {id: record.state for id, record in Progress().read().items()}
    show.table([_row(notebook, states) for notebook in NOTEBOOKS], caption="The course, and how far you are")


def _row(notebook: Notebook, states: dict[str, str]) -> dict[str, str]:
    from ..exercise import all_exercises

    ids = [item.id for item in all_exercises(notebook.topic)] if notebook.ready else []
    solved = sum(states.get(id) == "solved" for id in ids)
    done = f"{'●' * solved}{'○' * (len(ids) - solved)} {solved} of {len(ids)}" if ids else "planned"
    return {"notebook": notebook.stem, "about": notebook.about, "exercises solved": done}
