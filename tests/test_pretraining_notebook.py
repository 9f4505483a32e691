"""What notebook 02 needs beside the methods it teaches: a picture that moves while a cell trains."""

from __future__ import annotations

import pytest
from matplotlib import pyplot as plt

from llmcourse import show
from llmcourse.pretraining.pictures import Live


class Page:
    """Stands in for the page: what IPython would display, and what it would put in its place."""

    def __init__(self) -> None:
        self.shown: list[dict] = []
        self.updates: list[dict] = []

    def display(self, bundle: dict, *, raw: bool, display_id: bool) -> Page:
        assert raw and display_id
        self.shown.append(bundle)
        return self

    def update(self, bundle: dict, *, raw: bool) -> None:
        assert raw
        self.updates.append(bundle)


def line(height: float):
    fig, axis = plt.subplots()
    axis.plot([0, height])
    return fig


@pytest.fixture
def page(monkeypatch) -> Page:
    import IPython.display

    page = Page()
    monkeypatch.setattr(show, "is_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", page.display)
    return page


def test_the_first_picture_is_displayed_and_later_ones_take_its_place(page):
    frame = Live()
    for height in (1, 2, 3):
        frame.show(line(height), alt=f"a line up to height {height}")
    assert [bundle["text/plain"] for bundle in page.shown] == ["[figure: a line up to height 1]"]
    assert [f'alt="a line up to height {height}"' in page.updates[height - 2]["text/html"] for height in (2, 3)] == [True, True]


def test_two_pictures_have_places_of_their_own(page):
    for _ in range(2):
        Live().show(line(1), alt="a line up to one")
    assert (len(page.shown), len(page.updates)) == (2, 0)


def test_the_figure_is_closed_so_that_jupyter_does_not_show_it_again(page):
    fig = line(1)
    Live().show(fig, alt="a line up to one")
    assert fig.number not in plt.get_fignums()


def test_a_caption_stands_below_and_alt_text_is_asked_for(page):
    Live().show(line(1), alt="a line up to one", caption="step <1>")
    assert "<figcaption>step &lt;1&gt;</figcaption>" in page.shown[0]["text/html"]
    with pytest.raises(ValueError, match="alt text of four words"):
        Live().show(line(1), alt="a line")


def test_without_a_notebook_the_alt_text_is_printed(capsys):
    Live().show(line(1), alt="a line up to one")
    assert capsys.readouterr().out == "[figure: a line up to one]\n"
