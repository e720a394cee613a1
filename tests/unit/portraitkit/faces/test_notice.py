from pathlib import Path

from portraitkit.faces.tfjs import SHA256

NOTICE = Path(__file__).parents[4] / "NOTICE"


def test_every_vendored_file_is_named_with_its_hash():
    text = NOTICE.read_text(encoding="utf-8")
    for name, digest in SHA256.items():
        assert f"\n{name}\n" in text and digest in text
    assert "MIT License" in text and "Apache License 2.0" in text
