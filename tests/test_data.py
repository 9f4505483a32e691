"""Data sets by name: embedded ones whose splits share nothing, hub ones with twins, and errors that help."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmcourse import data
from llmcourse.world import twins


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOURSE_STANDIN", "1")


HUB_SPLITS = [(name, split) for name, found in data.HUB.items() for split in found.splits]


# the drifting stream is numbered by its steps, alike in every split
@pytest.mark.parametrize("name", [name for name in data.EMBEDDED if name != "town-drift"])
def test_the_splits_of_an_embedded_set_share_no_row(name: str) -> None:
    key = data.EMBEDDED[name].key
    train, validation, test = (set(data.load(name, split)[key]) for split in data.EMBEDDED[name].splits)
    assert not train & test
    assert not train & validation
    assert not validation & test


@pytest.mark.parametrize("name", data.EMBEDDED)
def test_an_embedded_set_has_its_columns_its_rows_and_no_row_twice(name: str) -> None:
    found, test = data.EMBEDDED[name], data.load(name, "test")
    assert test.column_names == list(found.columns)
    assert len(set(test[found.key])) == len(test) == (found.sizes[2] if found.sizes else len(test)) > 0


def test_the_same_name_gives_the_same_rows() -> None:
    assert data.load("town-sums", "test").to_list() == data.load("town-sums", "test").to_list()


def test_reviews_carry_class_names_and_both_classes() -> None:
    reviews = data.load("town-reviews", "test")
    assert reviews.features["label"].names == ["negative", "positive"]
    assert 100 < sum(reviews["label"]) < 200


def test_the_label_of_a_review_is_the_feeling_of_its_words() -> None:
    told = {row["text"]: row["label"] for row in data.load("town-reviews", "train")}
    plain = {text: label for text, label in told.items() if text.endswith(("was great.", "was lovely.", "was perfect."))}
    plain = {text: label for text, label in plain.items() if not any(word in text for word in ("not", "never", "Nobody"))}
    assert len(plain) > 3
    assert set(plain.values()) == {1}


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match='unknown data set "town-review"; did you mean "town-reviews"'):
        data.load("town-review")


def test_a_hub_name_without_its_owner_is_answered_with_the_full_name() -> None:
    with pytest.raises(ValueError, match='did you mean "stanfordnlp/imdb"'):
        data.load("imdb")


@pytest.mark.parametrize(("name", "splits"), [("town", "train, validation, test"), ("fancyzhx/ag_news", "train, test")])
def test_an_unknown_split_is_answered_with_the_list_of_splits(name: str, splits: str) -> None:
    with pytest.raises(ValueError, match=f'"{name}" has no split "dev"; choose one of {splits}'):
        data.load(name, "dev")


def test_a_set_of_several_configurations_asks_for_one() -> None:
    with pytest.raises(ValueError, match="several configurations; choose one of cardiffnlp/tweet_eval:irony"):
        data.load("cardiffnlp/tweet_eval")


def test_a_set_of_one_configuration_needs_no_colon(standin: None) -> None:
    assert len(data.load("takala/financial_phrasebank")) > 0


def test_offline_the_message_names_the_set_the_reason_the_embedded_twin_and_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def refuse(*args: object, **kwargs: object) -> str:
        raise OSError("no route to the hub. More words.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(data.Offline) as refused:
        data.load("stanfordnlp/imdb")
    message = str(refused.value)
    for part in ('"stanfordnlp/imdb"', "no route to the hub.", 'data.load("twin-imdb")', "LLMCOURSE_STANDIN=1", "cache"):
        assert part in message
    assert "\n" not in message and "More words" not in message


def test_a_cached_folder_without_the_split_counts_as_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    with pytest.raises(data.Offline, match='its split "test" is not in the local cache'):
        data.load("stanfordnlp/imdb", "test")


@pytest.mark.parametrize("named", [True, False])
def test_parquet_from_the_hub_comes_back_with_class_names_and_the_listed_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    import huggingface_hub
    from datasets import ClassLabel, Dataset, Features, Value

    label = ClassLabel(names=["neg", "pos"]) if named else Value("int64")
    rows = {"text": ["a", "b"], "label": [1, 0], "more": [0, 0]}
    made = Dataset.from_dict(rows, features=Features({"text": Value("string"), "label": label, "more": Value("int64")}))
    made.to_parquet(str(tmp_path / "plain_text" / "train-00000-of-00001.parquet"))
    asked = {}

    def fetch(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    dataset = data.load("stanfordnlp/imdb")
    assert dataset.column_names == ["text", "label"]
    assert dataset.features["label"].names == ["neg", "pos"]
    assert dataset["label"][:] == [1, 0]
    assert asked["repository"] == "stanfordnlp/imdb"
    assert asked["allow_patterns"] == ["plain_text/train-*.parquet"]


def test_a_set_with_a_script_is_read_from_the_hubs_parquet_conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: asked.update(options) or str(tmp_path))
    with pytest.raises(data.Offline):
        data.load("takala/financial_phrasebank")
    assert asked["revision"] == "refs/convert/parquet"
    assert asked["allow_patterns"] == ["sentences_allagree/train/*.parquet"]


@pytest.mark.parametrize(("name", "split"), HUB_SPLITS)
def test_a_stand_in_has_the_columns_types_and_class_names_of_the_original(standin: None, name: str, split: str) -> None:
    from datasets import ClassLabel, Value

    found, twin = data.HUB[name], data.load(name, split)
    label = {"label": ClassLabel(names=list(found.labels))} if found.labels else {}
    assert twin.features == {found.text: Value("string")} | label
    expected = {-1} if split == "unsupervised" else set(range(len(found.labels)))
    assert not label or set(twin["label"]) == expected
    assert all(twin[found.text])


@pytest.mark.parametrize("name", data.HUB)
def test_a_stand_in_is_the_beginning_of_its_twin(standin: None, name: str) -> None:
    found = data.HUB[name]
    standing, twin = data.load(name, "train"), data.load(found.embedded, "train").select_columns(list(found.columns))
    assert standing.to_list() == twin.select(range(len(standing))).to_list()
    assert standing.features == twin.features


def test_the_classes_of_a_stand_in_can_be_told_apart_by_their_words(standin: None) -> None:
    """A stand-in whose text did not depend on the label would let a broken classifier pass."""
    news = data.load("fancyzhx/ag_news")
    topics = [row["label"] for row in news if "the match" in row["text"].lower()]
    assert len(topics) >= 5
    assert topics.count(1) > len(topics) / 2


def test_the_best_score_of_a_twin_is_that_of_its_true_labels() -> None:
    scores, labels = data.best("twin-irony"), data.load("twin-irony", "test")["label"]
    truth = [each.truth for each in twins.examples("twin-irony", "test")]
    assert scores["accuracy"] == sum(a == b for a, b in zip(labels, truth, strict=True)) / 1000 < 1
    assert set(scores) == {"accuracy", "macro_f1"}


def test_difficulties_stand_in_the_order_of_the_rows() -> None:
    rows, tags = data.load("twin-imdb", "validation"), data.difficulties("twin-imdb", "validation")
    assert len(rows) == len(tags)
    mixed = [row["text"] for row, tag in zip(rows, tags, strict=True) if tag == "mixed"]
    assert mixed
    assert all(any(said in text for said in ("it was", "I call it", "I do not call it")) for text in mixed)


@pytest.mark.parametrize(
    ("name", "instead"), [("fancyzhx/ag_news", 'its twin is "twin-ag-news"'), ("town-sums", "the twins are twin-ag-news, ")]
)
def test_a_set_that_is_no_twin_has_no_best_score_and_says_which_has(name: str, instead: str) -> None:
    with pytest.raises(ValueError, match=f'"{name}" is none; {instead}'):
        data.best(name)


def test_every_row_of_the_catalogue_can_be_loaded_by_its_name(standin: None) -> None:
    rows = data.catalogue()
    assert {row["name"] for row in rows} == {*data.EMBEDDED, *data.HUB}
    for row in rows:
        assert data.load(row["name"], row["splits"][-1]).column_names == row["columns"]


def test_hub_names_are_repositories_each_once() -> None:
    names = data.hub_names()
    assert "cardiffnlp/tweet_eval" in names
    assert len(set(names)) == len(names)
    assert not [name for name in names if ":" in name or name.count("/") != 1]


def test_importing_data_does_not_import_datasets_or_torch() -> None:
    code = "import sys, llmcourse.data; assert not {'torch', 'datasets', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
