"""Names of other people in Markdown."""

from ndkd.commands.markdown import code, fence, inline, python_text


def test_text_in_markdown():
    assert inline("a\nb|c") == "a\\\\nb\\|c"
    assert inline("<img src=x>&") == "&lt;img src=x&gt;&amp;"
    assert inline("[a](http://x)") == "\\[a](http://x)"
    assert inline("[0.1, 0.2]") == "[0.1, 0.2]"
    assert inline("{{ x }}") == "{{ x }}"
    assert inline("a\udce9") == "a\\\\udce9"
    assert code("x`y") == "``x`y``"
    assert code("`x`") == "`` `x` ``"
    assert fence("a\n```\nb") == "````"
    assert python_text('a"b\n') == '"a\\"b\\n"'
