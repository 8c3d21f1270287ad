"""Figures within a page: colours follow it, marks have names, nothing else is left."""

from xml.etree import ElementTree

import pytest

from bigcircuit.report.figures import INK, MUTED, PAPER, RULE, Line, lines, scatter
from bigcircuit.report.svg import inline_svg, write_figures

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</title><script>alert(\"1\")</script> & 'quoted' a:b"


def row(name, total, kl):
    return {"name": name, "kept": {"total": total}, "scores": {"kl": {"mean": kl, "low": kl / 2, "high": kl * 2}}}


@pytest.fixture(scope="module")
def chart():
    series = [
        Line(label="one", x=[1, 2, 3], y=[0.5, 0.4, 0.3], tip=HOSTILE, member=3),
        Line(label=HOSTILE, x=[1, 2, 3], y=[0.2, 0.1, 0.05], band=[(0.1, 0.3), (0.05, 0.2), (0.01, 0.1)]),
    ]
    return lines("key", HOSTILE, series, "x", "y", marked=True)


def parsed(chart):
    return ElementTree.fromstring(str(inline_svg(chart)))


def test_marks_have_tooltips_and_the_circuits_they_show(chart):
    root = parsed(chart)
    titled = {title.text: group for group in root.iter(f"{SVG}g") for title in group.findall(f"{SVG}title")}
    assert set(titled) == {HOSTILE}, "the same text for both, from tip and label"
    of_member = [group for group in root.iter(f"{SVG}g") if group.get("class")]
    assert [(one.get("class"), one.get("data-member")) for one in of_member] == [("of-member", "3")]
    assert of_member[0][0].text == HOSTILE
    assert root.get("role") == "img" and root.get("aria-label") == HOSTILE


def test_text_is_never_markup(chart):
    text = str(inline_svg(chart))
    assert "<script" not in text and text.count("&lt;script&gt;") >= 3


def test_colours_follow_the_page(chart):
    text = str(inline_svg(chart))
    assert all(colour not in text for colour in (INK, MUTED, RULE, PAPER))
    for name in ("--muted", "--rule"):
        assert f"var({name})" in text
    marks = str(inline_svg(scatter([row("a", 10, 0.2), row("b", 20, 0.1)])))
    assert "stroke: var(--ring, var(--paper))" in marks


def test_a_figure_with_links_is_a_group_whose_links_have_labels():
    root = parsed(scatter([row("a", 10, 0.2), row("b", 20, 0.1)]))
    links = list(root.iter(f"{SVG}a"))
    assert root.get("role") == "group"
    assert [link.get("href") for link in links] == ["#member-0", "#member-1"]
    assert [link.get("aria-label") for link in links] == ["a: 10 neurons, KL 0.200", "b: 20 neurons, KL 0.100"]
    assert all(link.get("target") is None for link in links)


def test_figures_of_one_page_share_no_id_but_those_of_the_same_content(chart):
    """Ids are of definitions only: two elements of one id would be ambiguous."""
    for element in parsed(chart).iter():
        assert element.get("id") is None or element.tag in (f"{SVG}path", f"{SVG}clipPath")
    text = str(inline_svg(chart))
    assert "<metadata" not in text and "<style" not in text and "<!--" not in text and "<?xml" not in text
    assert text == str(inline_svg(chart)), "the same figure gives the same text"


def test_size_comes_from_the_page(chart):
    root = parsed(chart)
    assert root.get("width") is root.get("height") is None
    assert root.get("viewBox").startswith("0 0 ")


def test_figures_stay_in_their_folder_under_plain_names(chart, tmp_path):
    keys = ["partial_../../../x", "partial_.._.._.._x", "/etc/x", "..", "a/b", "a b", "x" * 400, "\0", "key"]
    paths = write_figures([chart._replace(key=key) for key in keys], tmp_path / "a/b/figures", ["svg"])
    assert sorted(paths) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert {path.parent for path in paths} == {tmp_path / "a/b/figures"}
    names = [path.name for path in paths]
    assert len(set(names)) == len(keys) and names[0] == "partial_.._.._.._x.svg" and names[-1] == "key.svg"
