"""Docstrings read from source: names, signatures, summaries, public names, given by call."""

import textwrap

import pytest

from rung.text.docstrings import MAX_SIGNATURE_CHARS, read_docstrings
from rung.text.entry import build_entry, definition_document, first_sentence, module_document
from rung.text.public_names import public_definitions


def read(source, module="pkg.mod", *, is_package=False):
    return read_docstrings(textwrap.dedent(source), module=module, is_package=is_package)


def entries(docs):
    return {e.name: e for definition in docs.definitions for e in definition.entries}


def test_function_class_and_methods():
    docs = read(
        '''
        """About the module."""
        def shown(a, b: int = 2, *args, key=None, **rest) -> str:
            """Shows a. More text."""
        def bare(a): pass
        def _hidden(): "Hidden."
        class Box:
            """A box."""
            def __init__(self, width, height=3): "How."
            def open(self, key): "Opens it."
            def close(self): pass
            @property
            def size(self) -> int: "Its size."
            @size.setter
            def size(self, value): "Never read."
        '''
    )
    found = entries(docs)
    assert docs.doc == "About the module."
    assert list(found) == ["pkg.mod.shown", "pkg.mod.Box", "pkg.mod.Box.open", "pkg.mod.Box.size"]
    shown = found["pkg.mod.shown"]
    assert shown.signature == "pkg.mod.shown(a, b: int=2, *args, key=None, **rest) -> str"
    assert (shown.kind, shown.module, shown.summary) == ("function", "pkg.mod", "Shows a.")
    assert found["pkg.mod.Box"].signature == "pkg.mod.Box(width, height=3)"
    assert found["pkg.mod.Box.open"].kind == "method"
    assert found["pkg.mod.Box.size"].signature == "pkg.mod.Box.size"  # a property is not called
    assert found["pkg.mod.Box.size"].doc == "Its size."


def test_constructor_defaults_stay_with_their_arguments():
    found = entries(read('class A:\n  "Doc."\n  def __init__(self=1, a=2, /, b=3): pass'))
    assert found["pkg.mod.A"].signature == "pkg.mod.A(a=2, /, b=3)"


def test_overloads_and_conditional_definitions():
    docs = read(
        """
        from typing import overload
        @overload
        def f(a: int): "Overload."
        def f(a): "Real."
        try:
            import fast
            def g(): "First."
        except ImportError:
            def g(): "Second."
        """
    )
    assert {n: e.doc for n, e in entries(docs).items()} == {
        "pkg.mod.f": "Real.",
        "pkg.mod.g": "First.",
    }


def test_long_signature_is_cut_with_an_ellipsis():
    arguments = ", ".join(f"argument_{i}: int = {i}" for i in range(200))
    signature = entries(read(f'def f({arguments}): "Doc."'))["pkg.mod.f"].signature
    assert signature.startswith("pkg.mod.f(argument_0=0, argument_1=1")
    assert signature.endswith(", ...)")
    assert len(signature) < MAX_SIGNATURE_CHARS + 100


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("Return it. Then more.", "Return it."),
        ("Use e.g. This one.\n\nMore", "Use e.g. This one."),
        ("Broken over\n   two lines\n\nnext", "Broken over two lines"),
        ("Version 1.2 of it. `x` is", "Version 1.2 of it."),
        ("f(x) -> y\n\nDoes f.", "Does f."),
        ("Like :class:`~torch.nn.Linear` and ``x``.", "Like `torch.nn.Linear` and `x`."),
        ("", ""),
    ],
)
def test_first_sentence(doc, sentence):
    assert first_sentence(doc) == sentence


def test_call_line_of_a_c_docstring_becomes_the_signature():
    entry = build_entry(
        "torch.abs", kind="function", module="torch", signature="", doc="abs(x, /) --> T\n\nDoes."
    )
    assert (entry.signature, entry.doc) == ("torch.abs(x, /) -> T", "Does.")


def test_private_definitions_take_their_public_name():
    root = read(
        "from ._impl import mean as average, secret\nfrom .sub import *",
        module="pkg",
        is_package=True,
    )
    impl = read('def mean(x): "Mean."\ndef lost(x): "Lost."', module="pkg._impl")
    sub = read('__all__ = ["Box"]\nclass Box: "Box."\ndef other(): "Other."', module="pkg.sub")
    found = {d.entries[0].name: d for d in public_definitions([root, impl, sub])}
    assert set(found) == {"pkg.average", "pkg.Box", "pkg.sub.other"}
    assert found["pkg.average"].entries[0].signature == "pkg.average(x)"
    assert found["pkg.average"].home == "pkg._impl"  # the unit of splitting
    assert found["pkg.Box"].entries[0].aliases == ("pkg.sub.Box",)
    assert found["pkg.Box"].entries[0].module == "pkg"


def test_an_import_into_another_package_does_not_rename():
    other = read("from apkg import Template", module="a", is_package=True)
    home = read('class Template: "Doc."', module="apkg")
    (definition,) = public_definitions([other, home])
    assert definition.entries[0].name == "apkg.Template"
    assert definition.entries[0].aliases == ("a.Template",)


def test_imports_of_plain_modules_are_no_public_names():
    user = read("from ._impl import helper", module="pkg.user")
    impl = read('def helper(): "Helps."', module="pkg._impl")
    assert public_definitions([user, impl]) == []


def test_docstrings_given_by_calls_with_templates():
    docs = read(
        '''
        common = merge_dicts(parse_kwargs("""
            input (Tensor): the input.
            dim (int): the dimension
                to reduce.
        """), {"note": "A note."})
        add_docstr(torch.sum, r"""
        sum(input, dim) -> Tensor

        Sums {{all}}. {note}{unknown}

        Args:
            {dim}
        """.format(**common))
        add_docstr(torch._private, "f() -> x")
        linear = _add_docstr(torch._C._nn.linear, "linear(x) -> y\\n\\nLinear.")
        ''',
        module="torch.nn.functional",
    )
    found = entries(docs)
    assert set(found) == {"torch.sum", "torch.nn.functional.linear"}
    total = found["torch.sum"]
    assert total.signature == "torch.sum(input, dim) -> Tensor"
    assert total.doc.startswith("Sums {all}. A note.\n")
    assert "dim (int): the dimension" in total.doc
    assert (total.module, total.kind) == ("torch", "function")


def test_document_lists_the_class_before_its_methods():
    docs = read('class A:\n  "Doc A."\n  def f(self): "Doc f."\n  def g(self): "Doc g."')
    document = definition_document(docs.definitions[0].entries, domain="pkg", group="pkg")
    assert document.text == (
        "class pkg.mod.A\nmodule pkg.mod\n\nDoc A.\n\n"
        "method pkg.mod.A.f\n\npkg.mod.A.f(self)\n\nDoc f.\n\n"
        "method pkg.mod.A.g\n\npkg.mod.A.g(self)\n\nDoc g."
    )
    assert [e["name"] for e in document.meta["entries"]] == [
        "pkg.mod.A",
        "pkg.mod.A.f",
        "pkg.mod.A.g",
    ]


def test_module_page_without_anything_to_say_is_none():
    module = build_entry("m", kind="module", module="m", signature="", doc="")
    assert module_document(module, [], domain="m", group="m") is None
