"""A template ends: in time, and before it fills the memory."""

from __future__ import annotations

import time

import pytest
from jinja2 import TemplateRuntimeError

from tandem.text import sandbox
from tandem.text.sandbox import Sandbox

HUNDRED_THOUSAND = "{% set many = range(99999) | list %}"
DOUBLED = "{% set all = namespace(a='0123456789') %}{% for i in range(60) %}{% set all.a = STEP %}{% endfor %}"


def run(source: str, **names: object) -> str:
    place = Sandbox()
    return place.run(place.compiled(source), names)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        HUNDRED_THOUSAND + "{% for a in many %}{% for b in many if b < 0 %}{% endfor %}{% endfor %}",
        HUNDRED_THOUSAND + "{% for a in many recursive %}{{ loop(many) if loop.depth < 9 }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
    ],
)
def test_what_goes_on_for_ever_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(TemplateRuntimeError, match=r"longer than 0\.3 s"):
        run(source)
    assert time.monotonic() - began < 10  # 0.4 s on an idle machine


def test_what_goes_on_leaves_the_processor_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 1.0)
    monkeypatch.setattr(sandbox, "SECONDS_ALONE", 0.1)
    began = time.thread_time()
    with pytest.raises(TemplateRuntimeError, match="longer than 1 s"):
        run("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    assert time.thread_time() - began < 0.7  # 0.15 s on an idle machine


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10 ** 12 }}",
        "{{ 'a' | center(10 ** 12) | length }}",
        "{{ 'a'.rjust(10 ** 12) | length }}",
        "{{ 'a'.zfill(width=10 ** 12) if false else 'a'.zfill(10 ** 12) }}",
        "{{ 'a\\nb' | indent(10 ** 12) }}",
        "{{ 'a\\nb' | indent(width=10 ** 12) }}",
        "{{ 'a\\tb'.expandtabs(10 ** 12) }}",
        "{{ '%99999999999d' | format(1) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '%.99999999999f' % 1 }}",
        "{{ '%*d' % (10 ** 12, 1) }}",
        "{{ '%*d' | format(10 ** 12, 1) }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10 ** 12) }}",
        "{{ '{a:>99999999999}'.format_map({'a': 1}) }}",
        "{{ [1, 2] | batch(10 ** 12, 0) | list }}",
        "{{ [1, 2] | slice(10 ** 12) | list }}",
        "{{ ('a' * 10 ** 6).replace('a', 'b' * 10 ** 6) }}",
        "{{ ('a' * 10 ** 6) | replace('a', 'b' * 10 ** 6) }}",
        "{{ range(99999) | join('b' * 10 ** 6) }}",
        "{{ range(99999) | map('string') | join('b' * 10 ** 6) }}",
        "{{ ('b' * 10 ** 6).join(range(99999) | map('string') | list) }}",
        "{{ ('a' * 10 ** 6).translate({97: 'b' * 10 ** 6}) }}",
        "{{ {'a': [1]} | tojson(indent=10 ** 12) }}",
        "{% set n = 10 ** 12 %}{{ n * [1] }}",
        DOUBLED.replace("STEP", "all.a ~ all.a"),
        DOUBLED.replace("STEP", "all.a + all.a"),
        DOUBLED.replace("STEP", "all.a * 2"),
        DOUBLED.replace("STEP", "'%s%s' % (all.a, all.a)"),
        DOUBLED.replace("STEP", "[all.a, all.a] | join"),
        DOUBLED.replace("STEP", "'{0}{0}'.format(all.a)"),
        "{% set a = 'x' * 10 ** 6 %}{% for i in range(9999) %}{{ a }}{% endfor %}",
        "{% set a = 'x' * 10 ** 6 %}{% set b %}{% for i in range(9999) %}{{ a }}{% endfor %}{% endset %}",
        "{% macro m(a) %}{% for i in range(9999) %}{{ a }}{% endfor %}{% endmacro %}{{ m('x' * 10 ** 6) }}",
    ],
)
def test_what_makes_too_much_is_stopped(source: str) -> None:
    with pytest.raises(TemplateRuntimeError, match="more than 16777216 characters"):
        run(source)


@pytest.mark.parametrize("source", ["{{ 9 ** (9 ** 9) }}", DOUBLED.replace("STEP", "(all.a | int) ** 2")])
def test_numbers_too_are_limited(source: str) -> None:
    with pytest.raises(TemplateRuntimeError, match="a number of more than 65536 bits"):
        run(source)


def test_what_widens_texts_a_little_still_does() -> None:
    source = "{{ 'a' | center(5) }}|{{ '%5.1f' | format(2) }}|{{ '{:>3}'.format(7) }}|{{ [1, 2] | join(', ') }}|"
    source += "{{ 'a\\nb' | indent(2) }}|{{ 'aXa'.replace('a', 'bc') }}|{{ 'aXa' | replace('a', 'bc') }}|"
    source += "{{ '%d of %s' % (10 ** 9, 'x') }}|{{ [1, 2, 3] | batch(2, 0) | list }}|{{ {'a': 1} | tojson }}"
    assert run(source) == (
        "  a  |  2.0|  7|1, 2|a\n  b|bcXbc|bcXbc|1000000000 of x|[[1, 2], [3, 0]]|{&#34;a&#34;: 1}"
    ).replace("&#34;", '"')


def test_templates_mean_what_they_did() -> None:
    source = (
        "{% for a in items %}{{ loop.index }}/{{ loop.length }}{{ a | upper }}{{ ',' if not loop.last }}{% endfor %}"
        "{% for a in missing %}{% else %} nothing {% endfor %}"
        "{% for a in tree recursive %}<{{ a.name }}{{ loop(a.below) if a.below }}>{% endfor %}"
        "{% filter upper %} {{ 'a' ~ 1 ~ items[0] }}{% endfilter %} {{ 7 % 4 + 2 * 3 - 2 ** 3 }}"
        "{% for a in items if a != 'x' %}{% continue %}{% endfor %}"
    )
    tree = [{"name": "a", "below": [{"name": "b"}, {"name": "c"}]}]
    assert run(source, items=["x", "y"], tree=tree) == "1/2X,2/2Y nothing <a<b><c>> A1X 1"


def test_a_limit_is_each_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.05)
    place = Sandbox()
    template = place.compiled("{% for a in items %}{{ a }}{% endfor %}")
    for _ in range(3):
        assert place.run(template, {"items": "abc"}) == "abc"
        time.sleep(0.04)
