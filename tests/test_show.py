"""What `show` displays: escaped, described in words, readable as plain text, and never a swallowed exception."""

import base64
import inspect
import io
import re
import subprocess
import sys
from contextlib import suppress
from functools import partial, wraps
from html.parser import HTMLParser

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from llmcourse import show
from llmcourse.show import core, frame
from llmcourse.show.cards import card_html
from llmcourse.show.pictures import figure_html
from llmcourse.show.tables import table_html


class Page(HTMLParser):
    """The tags (with attributes) and the text of an HTML fragment."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def bundles(monkeypatch):
    """Every displayed bundle, in order; nothing is printed."""
    shown = []
    for module in ("cards", "code", "frame", "pictures", "tables"):
        monkeypatch.setattr(f"llmcourse.show.{module}.display", shown.append)
    return shown


def line_plot() -> Figure:
    fig = Figure()
    fig.subplots().plot([1, 2, 3])
    return fig


ALT = "A line that rises from one to three."


# cards


def test_card_escapes_html_and_marks_backticks_as_code():
    html = card_html("bad", "<script>", "use `a < b`")
    assert "<script>" not in html
    assert "<code>a &lt; b</code>" in html


def test_card_keeps_line_breaks_and_indentation():
    assert "one<br>&nbsp;&nbsp;two" in card_html("info", "t", "one\n  two")


@pytest.mark.parametrize(("status", "symbol"), [("good", "✓"), ("bad", "✗"), ("todo", "○"), ("info", "ℹ")])
def test_card_says_its_status_by_symbol_in_html_and_in_plain_text(bundles, status, symbol):
    show.card(status, "title", "body")
    assert Page(bundles[0]["text/html"]).text.startswith(symbol)
    assert bundles[0]["text/plain"] == f"{symbol} title\n  body"


def test_card_carries_extra_mime_entries(bundles):
    show.card("info", "title", extra={"application/x+json": {"a": 1}})
    assert bundles[0]["application/x+json"] == {"a": 1}


def test_card_prints_plain_text_outside_ipython(capsys):
    show.card("good", "done", "`x` is set")
    assert capsys.readouterr().out == "✓ done\n  `x` is set\n"


def test_card_prints_on_a_terminal_that_lacks_the_symbol(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    show.card("good", "done")
    terminal.flush()
    assert terminal.buffer.getvalue().rstrip() == b"? done"


def test_importing_show_and_gpu_loads_no_heavy_library():
    code = (
        "import sys, llmcourse.show, llmcourse.gpu; "
        "print(sorted({'torch', 'matplotlib', 'IPython', 'ipywidgets', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_outside_a_kernel_there_is_no_notebook():
    assert show.is_notebook() is False


# live source


def decorated(fn):
    @wraps(fn)
    def inner():
        return fn()

    return inner


@decorated
def sample():
    """Doc of "sample"."""
    return "<b>" + "x"


class Holder:
    @property
    def value(self):
        return 1


def test_source_shows_the_text_of_the_code_with_its_place(bundles):
    show.source(card_html)
    page = Page(bundles[0]["text/html"])
    assert re.match(r"llmcourse/show/cards.py:\d+–\d+def card_html\(", page.text)
    assert bundles[0]["text/plain"].startswith("# llmcourse/show/cards.py:")


def test_source_location_is_the_true_first_and_last_line(bundles):
    show.source(card_html, lines=(2, 3))
    first = inspect.unwrap(card_html).__code__.co_firstlineno
    assert f":{first + 1}–{first + 2}" in bundles[0]["text/plain"]
    assert len(bundles[0]["text/plain"].splitlines()) == 3


def test_source_looks_through_decorators_partials_and_properties(bundles):
    for obj in (sample, partial(sample), Holder.value):
        show.source(obj)
    texts = [bundle["text/plain"] for bundle in bundles]
    assert "def sample" in texts[0] and "def sample" in texts[1] and "def value" in texts[2]


def test_source_escapes_what_it_shows(bundles):
    show.source(sample)
    assert "<b>" not in bundles[0]["text/html"]
    assert "<b>" in Page(bundles[0]["text/html"]).text


def test_source_of_a_module_starts_at_line_one(bundles):
    show.source(core)
    assert "llmcourse/show/core.py:1–" in bundles[0]["text/plain"]


def test_a_slice_of_a_docstring_keeps_its_colour(bundles):
    show.source(frame.play, lines=(4, 5))
    assert "#767676" in bundles[0]["text/html"]


def test_source_folds_when_asked(bundles):
    show.source(sample)
    show.source(sample, collapsed=True)
    assert "open" in Page(bundles[0]["text/html"]).all("details")[0]
    assert "open" not in Page(bundles[1]["text/html"]).all("details")[0]


def test_source_of_a_builtin_says_there_is_none():
    with pytest.raises(TypeError, match="len has no Python source"):
        show.source(len)


def test_source_of_an_instance_points_to_its_class():
    with pytest.raises(TypeError, match=r"show its class"):
        show.source(3)


def test_source_lines_outside_are_refused_with_the_range():
    with pytest.raises(ValueError, match="choose 1–"):
        show.source(sample, lines=(1, 400))


# tables


def test_table_names_columns_and_rows_for_screen_readers():
    html, _ = table_html([{"method": "LoRA", "F1": 0.5}])
    assert [th["scope"] for th in Page(html).all("th")] == ["col", "col", "row"]


def test_table_puts_numbers_right_and_text_left():
    html, _ = table_html([{"method": "LoRA", "F1": 0.5}])
    assert [cell["align"] for cell in Page(html).all("th") + Page(html).all("td")] == ["left", "right", "left", "right"]


def test_table_alignment_can_be_overruled():
    html, _ = table_html([{"a": 1}], align={"a": "left"})
    assert Page(html).all("th")[0]["align"] == "left"


def test_table_plain_text_is_aligned():
    _, plain = table_html([("LoRA", 8), ("full", 1024)], columns=["method", "rank"], caption="Ranks")
    assert plain.splitlines() == ["Ranks", "method  rank", "──────  ────", "LoRA       8", "full    1024"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12349, "0.123"),
        (0.5, "0.500"),
        (99.97, "100"),
        (1234.5, "1234"),
        (123456.7, "123,457"),
        (2024, "2024"),
        (124439808, "124,439,808"),
        (True, "yes"),
        (None, "–"),
        (float("nan"), "nan"),
        (0.0, "0.00"),
        (np.float32(0.25), "0.250"),
        (torch.tensor(7), "7"),
    ],
)
def test_table_writes_numbers_as_people_do(value, text):
    _, plain = table_html([("row", value)], columns=["name", "value"])
    assert plain.split()[-1] == text


def test_table_escapes_cells_headers_and_caption():
    html, _ = table_html([{"<i>": "<b>"}], caption="<u>")
    assert not {"i", "b", "u"} & {tag for tag, _ in Page(html).tags}


def test_table_takes_a_dataframe_and_a_choice_of_columns():
    _, plain = table_html(pd.DataFrame({"a": [1, 2], "b": [3, 4]}), columns=["b"])
    assert plain.split() == ["b", "─", "3", "4"]


def test_table_shows_a_dash_for_a_key_a_row_lacks():
    assert table_html([{"a": 1, "b": 2}, {"a": 3}])[1].splitlines()[-1] == "3  –"


def test_table_refuses_a_row_of_another_length():
    with pytest.raises(ValueError, match="row 2 has 1 values for 2 columns"):
        table_html([(1, 2), (3,)], columns=["a", "b"])


def test_table_refuses_an_unknown_aligned_column():
    with pytest.raises(ValueError, match="unknown columns"):
        table_html([{"a": 1}], align={"b": "left"})


def test_an_empty_table_is_no_error():
    assert "<table" in table_html([])[0]


# pictures


def test_figure_puts_alt_text_and_caption_in_the_page(bundles):
    show.figure(line_plot(), alt=ALT, caption="It rises & rises.")
    page = Page(bundles[0]["text/html"])
    assert page.all("img")[0]["alt"] == ALT
    assert page.text == "It rises & rises."
    assert ALT in bundles[0]["text/plain"]
    assert set(bundles[0]) == {"text/html", "text/plain"}


def test_figure_is_a_small_png_shown_at_page_size(bundles):
    show.figure(line_plot(), alt=ALT)
    img = Page(bundles[0]["text/html"]).all("img")[0]
    png = base64.b64decode(img["src"].removeprefix("data:image/png;base64,"))
    image = Image.open(io.BytesIO(png))
    assert image.mode == "P" and len(png) < 60_000
    assert int(img["width"]) == round(image.width / 1.5)


@pytest.mark.parametrize("alt", ["", "a plot", "   "])
def test_figure_without_alt_text_is_refused(alt):
    with pytest.raises(ValueError, match="needs alt text"):
        show.figure(line_plot(), alt=alt)


def test_alt_text_that_repeats_the_caption_is_refused():
    with pytest.raises(ValueError, match="repeats the caption"):
        show.figure(line_plot(), alt=ALT, caption=ALT)


def test_alt_text_is_escaped():
    html = figure_html(line_plot(), alt='one "two" <three> four')
    assert Page(html).all("img")[0]["alt"] == 'one "two" <three> four'


@pytest.mark.parametrize("alt", [ALT, ""])
def test_figure_closes_the_pyplot_figure_even_when_refused(bundles, alt):
    plt.close("all")
    fig, _ = plt.subplots()
    with suppress(ValueError):
        show.figure(fig, alt=alt)
    assert plt.get_fignums() == []


def test_figure_takes_the_current_figure(bundles):
    plt.close("all")
    plt.plot([1, 2])
    show.figure(alt=ALT)
    assert len(bundles) == 1 and plt.get_fignums() == []


def test_figure_without_any_figure_says_so():
    plt.close("all")
    with pytest.raises(ValueError, match="no figure is open"):
        show.figure(alt=ALT)


def causal(heads: int, n: int) -> torch.Tensor:
    scores = torch.randn(heads, n, n, generator=torch.Generator().manual_seed(0))
    return scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)


def alt_of(bundle) -> str:
    return Page(bundle["text/html"]).all("img")[0]["alt"]


def test_attention_names_its_strongest_link_between_different_tokens(bundles):
    weights = [[1.0, 0, 0], [0.3, 0.7, 0], [0.1, 0.85, 0.05]]
    show.attention(weights, ["the", " cat", " sat"])
    assert "Strongest links: ' sat' to ' cat' 0.85; ' cat' to 'the' 0.30" in alt_of(bundles[0])


def test_attention_draws_one_map_per_head_and_says_which_head(bundles):
    show.attention(causal(3, 4), list("abcd"))
    assert "3 heads" in alt_of(bundles[0]) and "in head" in alt_of(bundles[0])


def test_attention_takes_a_batch_of_one_with_gradients(bundles):
    show.attention(causal(2, 3)[None].requires_grad_(), list("abc"))
    assert len(bundles) == 1


def test_attention_of_fewer_queries_than_keys(bundles):
    show.attention(causal(1, 4)[0, -1:], list("abcd"), query_tokens=["d"])
    assert "1 query by 4 key tokens" in alt_of(bundles[0])


def test_attention_refuses_weights_that_do_not_fit_the_tokens():
    with pytest.raises(ValueError, match=r"give \[2, 2\] or \[heads, 2, 2\]"):
        show.attention(torch.eye(3), ["a", "b"])


def test_attention_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        show.attention(torch.full((2, 2), torch.nan), ["a", "b"])


def test_attention_survives_dollar_signs_and_unknown_glyphs(bundles, recwarn):
    show.attention(torch.eye(3), ["$x^{$", "😀", "字"])
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_token_labels_show_spaces_and_line_ends():
    from llmcourse.show.pictures import _visible

    assert [_visible(token) for token in (" a b", "Ġcat", "▁cat", "\n")] == ["·a·b", "·cat", "·cat", "⏎"]


def test_bars_read_out_every_value_and_refuse_a_mismatch(bundles):
    show.bars([" the", " a"], torch.tensor([0.75, 0.25]))
    assert "' the' 0.75, ' a' 0.25" in alt_of(bundles[0])
    with pytest.raises(ValueError, match="one label per value"):
        show.bars(["a"], [1, 2])


def test_style_changes_matplotlibs_defaults():
    with plt.rc_context():
        show.style()
        assert plt.rcParams["axes.spines.top"] is False
        assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0] == show.COLOURS["blue"]


# the widget frame


def framed(callback, alt=None, **controls):
    made = frame._controls(callback, controls)
    start = {control.name: control.start for control in made}
    box = frame._frame(callback, alt, made, frame._drawn_or_error(callback, alt, start))
    return list(box.children[0].children), box.children[1]


CONTROLS = {
    "whole": (1, 9),
    "real": (0.0, 1.0, 0.1, 0.3),
    "menu": ["a", "b", "c"],
    "named": {"one": 1, "two": 2},
    "text": "hello",
    "tick": True,
}


def everything(**values):
    return str(values)


def test_each_specification_becomes_its_widget():
    widgets, _ = framed(everything, **CONTROLS)
    kinds = [type(widget).__name__ for widget in widgets]
    assert kinds == ["IntSlider", "FloatSlider", "Dropdown", "Dropdown", "Text", "Checkbox"]
    assert [widget.value for widget in widgets] == [5, 0.3, "a", 1, "hello", True]


def test_every_control_has_a_label_and_a_tooltip_and_waits_until_let_go():
    widgets, _ = framed(everything, top_k=(1, 9), text="hello")
    for widget in widgets:
        assert widget.description and widget.tooltip and widget.continuous_update is False
    assert widgets[0].description == "top k"


def test_the_callbacks_own_default_is_where_a_control_starts():
    def draw(rank=8, method="ia3"):
        return f"{rank} {method}"

    widgets, _ = framed(draw, rank=(1, 64), method=["lora", "ia3"])
    assert [widget.value for widget in widgets] == [8, "ia3"]


def test_moving_a_control_draws_anew():
    (slider,), view = framed(lambda x: f"x is {x}", x=(0, 10))
    slider.value = 7
    assert "x is 7" in view.value


@pytest.mark.parametrize(("spec", "start"), [((1, 9), 5), ((0.0, 1.0), 0.5), ((0.0, 0.6, 0.1), 0.3), ((-1.0, 1.0), 0.0)])
def test_a_slider_starts_in_the_middle_of_its_range(spec, start):
    assert frame._controls(None, {"x": spec})[0].start == start


def test_a_callbacks_exception_is_shown_in_the_frame_and_goes_away():
    def invert(x):
        return str(1 / (x - 5))

    (slider,), view = framed(invert, x=(0, 10, 1, 4))
    slider.value = 5
    assert "ZeroDivisionError" in view.value and "return str(1 / (x - 5))" in view.value
    slider.value = 6
    assert "ZeroDivisionError" not in view.value


def test_a_ready_made_widget_is_taken_as_it_is():
    slider = ipywidgets.IntSlider(value=3, min=2, max=4, description="mine")
    widgets, _ = framed(lambda x: str(x), x=slider)
    assert widgets == [slider] and slider.description == "mine"
    assert list(show.ends({"x": slider})) == [{"x": 2}, {"x": 4}]


@pytest.mark.parametrize(
    ("widget", "ends"),
    [
        (ipywidgets.FloatLogSlider, (1.0, 1e4)),
        (partial(ipywidgets.IntRangeSlider, min=0, max=9), ((0, 0), (9, 9))),
        (partial(ipywidgets.Dropdown, options=[("one", 1), ("two", 2)]), (1, 2)),
        (partial(ipywidgets.SelectionSlider, options=["x", "y", "z"]), ("x", "z")),
        (ipywidgets.ToggleButton, (False, True)),
    ],
)
def test_the_ends_of_ready_made_widgets(widget, ends):
    made = widget(min=0, max=4, base=10) if widget is ipywidgets.FloatLogSlider else widget()
    assert [values["x"] for values in show.ends({"x": made})] == list(ends)


def test_ends_visit_both_ends_of_every_control_with_the_others_at_their_start():
    settings = list(show.ends({"a": (0, 4), "b": ["x", "y"], "c": False, "d": "hi"}))
    start = {"a": 2, "b": "x", "c": False, "d": "hi"}
    changes = [{k: v for k, v in setting.items() if v != start[k]} for setting in settings]
    assert changes == [{"a": 0}, {"a": 4}, {}, {"b": "y"}, {}, {"c": True}, {}, {"d": ""}]


@pytest.mark.parametrize("spec", [(1,), (1, 2, 3, 4, 5), [], {}, ("a", "b"), 3.5, None])
def test_a_control_that_is_none_of_the_kinds_is_refused(spec):
    with pytest.raises(TypeError, match="is not understood"):
        show.play(everything, x=spec)


@pytest.mark.parametrize("spec", [(0, 4, 1, 9), (4, 0)])
def test_a_start_outside_the_range_is_refused(spec):
    with pytest.raises(ValueError, match="outside its range"):
        show.play(everything, x=spec)


def test_play_without_controls_is_refused():
    with pytest.raises(ValueError, match="needs a control"):
        show.play(everything)


def static(bundles, callback, **arguments) -> str:
    show.play(callback, **arguments)
    return bundles[-1]["text/html"]


def test_outside_a_notebook_play_shows_the_static_picture_with_its_values(bundles):
    html = static(bundles, lambda x: line_plot(), alt=ALT, x=(0.0, 1.0, 0.1, 0.3))
    assert Page(html).all("img")[0]["alt"] == ALT
    assert "Run this notebook to move the controls (x = 0.3)" in html
    assert frame.WIDGET_VIEW not in bundles[0]


def test_in_a_notebook_one_bundle_holds_the_widget_and_the_static_picture(bundles, monkeypatch):
    monkeypatch.setattr(frame, "is_notebook", lambda: True)
    static(bundles, lambda x: "hi", x=(0, 4))
    assert len(bundles) == 1
    assert set(bundles[0]) == {frame.WIDGET_VIEW, "text/html", "text/plain"}
    assert bundles[0][frame.WIDGET_VIEW]["model_id"]


def test_in_colab_the_widget_stands_alone(bundles, monkeypatch):
    monkeypatch.setattr(frame, "is_notebook", lambda: True)
    monkeypatch.setitem(sys.modules, "google.colab", core)
    show.play(lambda x: "hi", x=(0, 4))
    assert set(bundles[0]) == {frame.WIDGET_VIEW, "text/plain"}


def test_without_ipywidgets_the_static_picture_remains(bundles, monkeypatch):
    monkeypatch.setattr(frame, "is_notebook", lambda: True)
    monkeypatch.setattr(frame.importlib.util, "find_spec", lambda name: None)
    static(bundles, lambda x: "hi", x=(0, 4))
    assert set(bundles[0]) == {"text/html", "text/plain"}


def test_alt_text_may_follow_the_controls(bundles):
    html = static(bundles, lambda x: line_plot(), alt=lambda x: f"A line drawn with x at {x}", x=(0, 4))
    assert Page(html).all("img")[0]["alt"] == "A line drawn with x at 2"


def test_a_returned_figure_without_alt_text_is_said_in_the_frame(bundles):
    assert "needs alt text" in static(bundles, lambda x: line_plot(), x=(0, 4))


def test_prints_and_shown_cards_land_in_the_frame_before_the_result(bundles, monkeypatch, capsys):
    monkeypatch.setattr("llmcourse.show.cards.display", core.display)

    def talk(x):
        print("printed")
        show.card("info", "carded")
        return "returned"

    html = static(bundles, talk, x=(0, 4))
    assert html.index("printed") < html.index("carded") < html.index("returned")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("a < b", "a &lt; b</pre>"),
        ("<s> model text </s>", "&lt;s&gt; model text"),
        ("<div>mark</div>", "<div>mark</div>"),
        ([{"a": 1}], "<table"),
        (pd.DataFrame({"a": [1]}), "<table"),
        (0.5, "0.5</pre>"),
    ],
)
def test_a_callback_may_return_text_markup_rows_or_a_number(bundles, result, expected):
    assert expected in static(bundles, lambda x: result, x=(0, 4))


def test_figures_a_callback_leaves_open_are_shown_and_closed(bundles):
    plt.close("all")

    def draw(x):
        plt.plot([x, 1])

    assert Page(static(bundles, draw, alt=ALT, x=(0, 4))).all("img")
    assert plt.get_fignums() == []


def test_strict_mode_raises_when_the_callback_fails_at_an_end(bundles, monkeypatch):
    def invert(x):
        return str(1 / (4 - x))

    show.play(invert, x=(0, 4))
    monkeypatch.setenv("LLMCOURSE_STRICT", "1")
    with pytest.raises(RuntimeError, match=r"invert\(x=4\) raised ZeroDivisionError"):
        show.play(invert, x=(0, 4))


def test_strict_mode_calls_each_setting_once(bundles, monkeypatch):
    monkeypatch.setenv("LLMCOURSE_STRICT", "1")
    calls = []
    show.play(lambda x, tick: calls.append((x, tick)), x=(0, 4), tick=False)
    assert sorted(calls) == [(0, False), (2, False), (2, True), (4, False)]
