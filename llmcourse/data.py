"""Data sets by name: those made from the invented town, always there, and the real ones on the hub, behind one `load`.

    data.load("town-reviews", "test")                embedded: made on the spot from the town's seed
    data.load("python-docs")                         embedded: real text, the documentation inside your own Python
    data.load("fancyzhx/ag_news")                    from the hub, parquet only, at the revision in pins.json
    data.load("cardiffnlp/tweet_eval:irony")         a configuration follows the colon
    data.load("twin-irony", "test")                  embedded: its twin, with the same columns and class names
    data.best("twin-irony")                          the best score anyone can reach on it

Does:     every set is a `datasets.Dataset` with class names; the splits of an embedded set share no text. With
          LLMCOURSE_STANDIN=1 a hub name gives the first rows of its twin. Of a twin also the best achievable score and the
          difficulty of every row.
Leaves out: streaming, data sets that need a script or an account.
Source:   the data-set cards on huggingface.co.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcourse import pydocs
from llmcourse.world import (
    KINDS,
    World,
    annotated,
    drift,
    instructions,
    preferences,
    split_of,
    summaries,
    tools,
    twins,
)
from llmcourse.zoo import Offline, revision_of

if TYPE_CHECKING:
    from datasets import Dataset, Features

__all__ = ["EMBEDDED", "HUB", "EmbeddedSet", "HubSet", "Offline", "best", "catalogue", "difficulties", "hub_names", "load"]

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")


# ---------------------------------------------------------------------------------------------------------------- catalogue


@dataclass(frozen=True, kw_only=True)
class EmbeddedSet:
    """A set made on this machine. `rows(world, split)` yields its rows; two rows are the same if their `key` columns are.

    sizes: rows of each split; None takes all there are.
    """

    rows: Callable[[World, str], Iterator[Row]]
    key: str
    columns: tuple[str, ...]
    sizes: tuple[int, int, int] | None
    labels: tuple[str, ...] = ()
    licence: str = "Apache-2.0"
    revision: str = "shipped"

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return SPLITS


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """A set of the hub.

    files: the parquet files of a split. labels: none where the set is plain text. embedded: its twin, which stands in for it and
    can be had offline.
    converted: the repository holds a script; its rows are in the hub's own parquet conversion.
    """

    files: str
    text: str
    splits: tuple[str, ...]
    licence: str
    embedded: str
    labels: tuple[str, ...] = ()
    converted: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return (self.text, "label") if self.labels else (self.text,)


def _towns_texts(world: World, split: str) -> Iterator[Row]:
    kinds = list(KINDS)
    for i in count():
        kind = kinds[i % len(kinds)]
        text = world.document(kind, i, split)
        if split_of(text) == split:  # two splits may tell the same short story; its checksum decides whose it is
            yield {"text": text, "kind": kind}


def _towns_questions(world: World, split: str) -> Iterator[Row]:
    for entity in [*world.people, *world.wares, *world.events]:
        for question in world.facts_about(entity, split):
            yield {"prompt": question.prompt, "answer": question.answer, "about": entity.name}


def _towns_contexts(world: World, split: str) -> Iterator[Row]:
    for i in count():
        question = world.question("context", i, split, size=1 + i % 3)
        yield {"prompt": question.prompt, "answer": question.answer, "people": 1 + i % 3}


def _towns_sums(world: World, split: str) -> Iterator[Row]:
    for i in count():
        question = world.question("sum-steps", i, split, size=2 + i % 3)
        problem = question.prompt.removeprefix("Question: ").removesuffix("\nSteps:")
        yield {"question": problem, "steps": question.work, "answer": question.answer, "operations": 2 + i % 3}


def _towns_reviews(world: World, split: str) -> Iterator[Row]:
    for i in count():
        question = world.question("review", i, split, size=1)
        yield {"text": question.prompt.partition(": ")[2].removesuffix("\nFeeling:"), "label": question.answer}


def _python_docs(world: World, split: str) -> Iterator[Row]:
    return ({"text": each.text, "source": each.source} for each in pydocs.documents() if each.split == split)


EMBEDDED: dict[str, EmbeddedSet] = {
    "town": EmbeddedSet(rows=_towns_texts, key="text", columns=("text", "kind"), sizes=(4000, 400, 400)),
    "town-questions": EmbeddedSet(
        rows=_towns_questions, key="prompt", columns=("prompt", "answer", "about"), sizes=(4000, 400, 400)
    ),
    "town-contexts": EmbeddedSet(
        rows=_towns_contexts, key="prompt", columns=("prompt", "answer", "people"), sizes=(2000, 300, 300)
    ),
    "town-sums": EmbeddedSet(
        rows=_towns_sums, key="question", columns=("question", "steps", "answer", "operations"), sizes=(2000, 300, 300)
    ),
    "town-reviews": EmbeddedSet(
        rows=_towns_reviews, key="text", columns=("text", "label"), sizes=(2000, 300, 300), labels=("negative", "positive")
    ),
    "python-docs": EmbeddedSet(
        rows=_python_docs,
        key="text",
        columns=("text", "source"),
        sizes=None,
        licence=pydocs.LICENCE,
        revision=pydocs.REVISION,
    ),
}

FEELINGS = ("negative", "neutral", "positive")
# the five targets of the real set beside the five questions of the town
STANCES = {"abortion": "bridge", "atheism": "bells", "climate": "fishing", "feminist": "market", "hillary": "plan"}


def _twins_rows(name: str) -> Callable[[World, str], Iterator[Row]]:
    column = twins.TWINS[name].column
    return lambda world, split: ({column: each.text, "label": each.label} for each in twins.examples(name, split))


EMBEDDED |= {
    name: EmbeddedSet(
        rows=_twins_rows(name), key=twin.column, columns=(twin.column, "label"), sizes=twin.sizes, labels=twin.labels
    )
    for name, twin in twins.TWINS.items()
}
EMBEDDED |= {
    "town-instructions": EmbeddedSet(
        rows=instructions.rows,
        key="prompt",
        columns=("instruction", "input", "output", "type", "held_out", "accepted", "prompt", "messages"),
        sizes=(7200, 720, 860),
    ),
    "town-preferences": EmbeddedSet(
        rows=preferences.rows,
        key="text",
        columns=("prompt", "chosen", "rejected", "chosen_reward", "rejected_reward", "text"),
        sizes=(4000, 400, 400),
    ),
    "town-demonstrations": EmbeddedSet(
        rows=preferences.demonstration_rows, key="text", columns=("messages", "reward", "text"), sizes=(2000, 200, 200)
    ),
    "town-entities": EmbeddedSet(
        rows=annotated.rows,
        key="text",
        columns=("tokens", "tags", "spans", "relations", "events", "text"),
        sizes=(3000, 300, 300),
    ),
    "town-drift": EmbeddedSet(
        rows=drift.rows,
        key="step",
        columns=("text", "label", "step", "concept", "topic"),
        sizes=(6000, 6000, 6000),
        labels=drift.LABELS,
    ),
    "town-tools": EmbeddedSet(
        rows=tools.rows,
        key="question",
        columns=("question", "kind", "calls", "results", "hops", "answer", "messages"),
        sizes=(3300, 330, 330),
    ),
    "town-summaries": EmbeddedSet(
        rows=summaries.rows, key="text", columns=("text", "summary", "references", "plot"), sizes=(3000, 300, 300)
    ),
}

HUB: dict[str, HubSet] = {
    "fancyzhx/ag_news": HubSet(
        files="data/{split}-*.parquet",
        text="text",
        labels=("World", "Sports", "Business", "Sci/Tech"),
        splits=("train", "test"),
        licence="unknown",
        embedded="twin-ag-news",
    ),
    "stanfordnlp/imdb": HubSet(
        files="plain_text/{split}-*.parquet",
        text="text",
        labels=("neg", "pos"),
        splits=("train", "test", "unsupervised"),
        licence="other",
        embedded="twin-imdb",
    ),
    "FinanceInc/auditor_sentiment": HubSet(
        files="data/{split}-*.parquet",
        text="sentence",
        labels=FEELINGS,
        splits=("train", "test"),
        licence="unknown",
        embedded="twin-auditor",
    ),
    "takala/financial_phrasebank:sentences_allagree": HubSet(
        files="sentences_allagree/{split}/*.parquet",
        text="sentence",
        labels=FEELINGS,
        splits=("train",),
        licence="CC-BY-NC-SA-3.0",
        embedded="twin-phrasebank",
        converted=True,
    ),
    "cardiffnlp/tweet_eval:irony": HubSet(
        files="irony/{split}-*.parquet",
        text="text",
        labels=("non_irony", "irony"),
        splits=SPLITS,
        licence="unknown",
        embedded="twin-irony",
    ),
    "roneneldan/TinyStories": HubSet(
        files="data/{split}-00000-of-*.parquet",  # of four for training: half a million stories
        text="text",
        splits=("train", "validation"),
        licence="CDLA-Sharing-1.0",
        embedded="town",
    ),
} | {
    f"cardiffnlp/tweet_eval:stance_{target}": HubSet(
        files=f"stance_{target}/{{split}}-*.parquet",
        text="text",
        labels=("none", "against", "favor"),
        splits=SPLITS,
        licence="unknown",
        embedded=f"twin-stance:{ours}",
    )
    for target, ours in STANCES.items()
}


def hub_names() -> list[str]:
    """The hub repositories of the catalogue, each once, without configurations: what `llmcourse pin` asks for."""
    return sorted({name.partition(":")[0] for name in HUB})


def catalogue() -> list[dict[str, Any]]:
    """One row per set `load` knows: name, where it is, columns, class names, splits, licence, revision (None until pinned)."""
    return [_row(name, found, "embedded") for name, found in EMBEDDED.items()] + [
        _row(name, found, "hub") for name, found in HUB.items()
    ]


def _row(name: str, found: EmbeddedSet | HubSet, where: str) -> dict[str, Any]:
    return {
        "name": name,
        "where": where,
        "columns": list(found.columns),
        "labels": list(found.labels),
        "splits": list(found.splits),
        "licence": found.licence,
        "revision": _revision(name, found) if isinstance(found, HubSet) else found.revision,
    }


# ---------------------------------------------------------------------------------------------------------------- load


def load(name: str, split: str = "train") -> Dataset:
    """The rows of one split, columns and class names as `catalogue()` lists them.

    Raises: ValueError for an unknown name or split; Offline when a hub set is neither reachable nor in the local cache.
    """
    found = _find(name)
    if split not in found.splits:
        raise ValueError(f'"{name}" has no split "{split}"; choose one of {", ".join(found.splits)}')
    if isinstance(found, EmbeddedSet):
        return _dataset(found, _embedded(name, split))
    return _standin(found, split) if os.environ.get("LLMCOURSE_STANDIN") == "1" else _from_hub(name, found, split)


def _find(name: str) -> EmbeddedSet | HubSet:
    known: dict[str, EmbeddedSet | HubSet] = {**EMBEDDED, **HUB}
    if name in known:
        return known[name]
    configs = [full for full in HUB if full.startswith(f"{name}:")]
    if len(configs) == 1:
        return HUB[configs[0]]
    if configs:
        raise ValueError(f'"{name}" has several configurations; choose one of {", ".join(configs)}')
    short = {full.rpartition("/")[2].lower(): full for full in known} | {full.lower(): full for full in known}
    close = difflib.get_close_matches(name.lower(), short, n=1, cutoff=0.5)
    guess = f'; did you mean "{short[close[0]]}"?' if close else "."
    raise ValueError(f'unknown data set "{name}"{guess} data.catalogue() lists all {len(known)}')


def _features(found: EmbeddedSet | HubSet, rows: list[Row]) -> Features:
    from datasets import ClassLabel, Dataset, Features

    kinds = Dataset.from_list([{column: row[column] for column in found.columns} for row in rows]).features
    return Features(dict(kinds) | ({"label": ClassLabel(names=list(found.labels))} if found.labels else {}))


def _dataset(found: EmbeddedSet | HubSet, rows: list[Row]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list(rows, features=_features(found, rows))


@lru_cache(maxsize=64)
def _embedded(name: str, split: str) -> list[Row]:
    found = EMBEDDED[name]
    limit = found.sizes[SPLITS.index(split)] if found.sizes else None
    return list(islice(_unique(found.rows(World(), split), found.key), limit))


def _unique(rows: Iterator[Row], key: str) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if row[key] not in seen:
            seen.add(row[key])
            yield row


# ---------------------------------------------------------------------------------------------------------------- stand-ins

STANDIN_ROWS = {"train": 240, "unsupervised": 240}  # other splits: 60


def _standin(found: HubSet, split: str) -> Dataset:
    """The first rows of the twin of a hub set: the same columns, types and class names; "unsupervised" has no labels."""
    whole = _embedded(found.embedded, split if split in SPLITS else "train")[: STANDIN_ROWS.get(split, 60)]
    rows = [{column: row[column] for column in found.columns} for row in whole]
    return _dataset(found, rows if split != "unsupervised" else [row | {"label": -1} for row in rows])


# ---------------------------------------------------------------------------------------------------------------- twins


def best(name: str, split: str = "test") -> dict[str, float]:
    """The best achievable `accuracy` and `macro_f1` on a twin: some of its labels are wrong, and nobody can know which.

    Raises: ValueError for a set that is no twin, or an unknown split.
    """
    return twins.best(_twin(name), split)


def difficulties(name: str, split: str = "test") -> list[str]:
    """What makes each row of a twin easy or hard, in the order of the rows: "plain", "rare", "negation", "mixed" …

    Raises: ValueError for a set that is no twin, or an unknown split.
    """
    return [example.difficulty for example in twins.examples(_twin(name), split)]


def _twin(name: str) -> str:
    found = _find(name)
    if name in twins.TWINS:
        return name
    instead = f'its twin is "{found.embedded}"' if isinstance(found, HubSet) else f"the twins are {', '.join(twins.TWINS)}"
    raise ValueError(f'only a twin knows its best achievable score and its difficulties, and "{name}" is none; {instead}')


# ---------------------------------------------------------------------------------------------------------------- the hub


def _revision(name: str, found: HubSet) -> str | None:
    return "refs/convert/parquet" if found.converted else revision_of(name.partition(":")[0], "datasets")


def _from_hub(name: str, found: HubSet, split: str) -> Dataset:
    from datasets import ClassLabel, Dataset

    files = _fetch(name, found, split)
    with _quiet():
        dataset = Dataset.from_parquet([str(path) for path in files], split=split)
        dataset = dataset.select_columns(list(found.columns))
        if not found.labels or isinstance(dataset.features["label"], ClassLabel):
            return dataset
        return dataset.cast_column("label", ClassLabel(names=list(found.labels)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No widget bars from datasets in the notebook, where they would be stored."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_on = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            enable_progress_bars()


def _fetch(name: str, found: HubSet, split: str) -> list[Path]:
    """The parquet files of a split, downloaded unless the cache has them."""
    from huggingface_hub import errors, snapshot_download
    from tqdm.std import tqdm

    pattern = found.files.format(split=split)
    repository = name.partition(":")[0]
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=_revision(name, found), allow_patterns=[pattern], tqdm_class=tqdm
        )
    except errors.GatedRepoError:
        raise ValueError(f'"{repository}" is gated: it asks for an account. Use "{found.embedded}" instead') from None
    except errors.RepositoryNotFoundError:
        raise ValueError(f'the hub has no public data set "{repository}" any more. Use "{found.embedded}" instead') from None
    except (OSError, getattr(errors, "HTTPError", OSError)) as error:  # the HTTP client's own errors are not OSErrors
        raise Offline(_offline_message(name, found, error)) from None
    files = sorted(Path(folder).glob(pattern))
    if not files:
        raise Offline(_offline_message(name, found, OSError(f'its split "{split}" is not in the local cache')))
    return files


def _offline_message(name: str, found: HubSet, error: Exception) -> str:
    hint = " HF_HUB_OFFLINE is set: unset it to allow downloads." if os.environ.get("HF_HUB_OFFLINE") else ""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
    return (
        f'cannot download "{name}", and this split is not in the local cache: {reason}.{hint} Connect once and it stays in the '
        f'cache, or work offline with the embedded data.load("{found.embedded}"). LLMCOURSE_STANDIN=1 gives a small twin with '
        "the same columns and class names."
    )
