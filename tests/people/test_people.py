"""What a learner does, done in a real browser: Run All, a wrong and a right answer, a slider; and what a screen reader finds."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from llmcourse.exercise import get

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
MINUTES = 60_000  # milliseconds
EXERCISE = "start_here/temperature"
TRACEBACK = "Traceback (most recent call last)"  # JupyterLab gives errors no class of their own


@pytest.fixture
def open_notebook(page: Page, lab: tuple[str, str]) -> Callable[[str], Page]:
    def opened(name: str) -> Page:
        address, token = lab
        page.goto(f"{address}/lab/tree/{name}.ipynb?token={token}&reset")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        return page

    return opened


def run_all(page: Page) -> None:
    """Restart the kernel and run every cell, from the Run menu; wait for the end."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells…").click()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    wait_until_busy_and_done(page)


def wait_until_busy_and_done(page: Page) -> None:
    page.wait_for_function("document.querySelector('.jp-Notebook').innerText.includes('[*]:')")
    done = "!document.querySelector('.jp-Notebook').innerText.includes('[*]:')"
    page.wait_for_function(done, timeout=10 * MINUTES, polling=500)  # at every frame the question takes half a core


def cell_with(page: Page, text: str) -> Locator:
    return page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea", has_text=text)).first


def type_and_run(page: Page, cell: Locator, source: str) -> None:
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(source)
    page.keyboard.press("Shift+Enter")


def answer(body: str) -> str:
    return f'@exercise("{EXERCISE}")\ndef softmax_with_temperature(logits, temperature):\n    return {body}'


@pytest.mark.parametrize("name", [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))])
def test_run_all_ends_without_an_error_and_every_image_has_alt_text(name: str, open_notebook: Callable[[str], Page]):
    page = open_notebook(name)
    run_all(page)
    plain = page.locator(".jp-OutputArea-output:not(.jp-RenderedHTMLCommon)")  # a card may show the traceback of another process
    assert plain.filter(has_text=TRACEBACK).all_inner_texts() == []
    last = page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
    assert last.inner_text().strip("[]: ").isdecimal()
    images = page.locator(".jp-Notebook img").all()
    assert images
    assert [image.get_attribute("src")[:80] for image in images if not (image.get_attribute("alt") or "").strip()] == []


def test_a_wrong_answer_is_diagnosed_and_a_right_one_is_taken(open_notebook: Callable[[str], Page]):
    page = open_notebook("00_start_here")
    run_all(page)
    cell = cell_with(page, f'@exercise("{EXERCISE}")')
    expect(cell.locator(".jp-OutputArea")).to_contain_text("○")
    type_and_run(page, cell, answer("(logits * temperature).softmax(dim=-1)"))
    diagnosis = get(EXERCISE).misconceptions[0].message.replace("*", "").replace("`", "")
    expect(cell.locator(".jp-OutputArea")).to_contain_text("❌")
    assert diagnosis in cell.locator(".jp-OutputArea").inner_text().replace("*", "").replace("`", "")
    type_and_run(page, cell, answer("(logits / temperature).softmax(dim=-1)"))
    expect(cell.locator(".jp-OutputArea")).to_contain_text("✅")


def test_dragging_a_slider_changes_the_picture(open_notebook: Callable[[str], Page]):
    page = open_notebook("00_start_here")
    run_all(page)
    area = page.locator(".jp-OutputArea").filter(has=page.locator(".noUi-handle")).first
    handle = area.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    picture = area.locator("img").first
    before, box = picture.get_attribute("src"), handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    expect(picture).not_to_have_attribute("src", before)
    assert (picture.get_attribute("alt") or "").strip()
