"""What a command says of a mistake."""


def check_refusal(code, out, err, words):
    """One line on standard error that names all `words`, exit code 2, nothing on standard output."""
    assert code == 2, err
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for word in words:
        assert word in lines[0], lines[0]
