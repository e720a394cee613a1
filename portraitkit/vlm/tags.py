"""What stands between the tags of an answer, found in one pass: a policy that repeats its tags to the token limit must not stall a run."""


def inside(text: str, tag: str) -> str | None:
    """The text between the first `<tag>` and the first `</tag>` after it; None where there is no such pair.

    The same as `re.search("<tag>(.*?)</tag>", text, re.DOTALL)`, whose time is quadratic in the tags that are never closed.

    >>> inside("<answer>1</answer><answer>2</answer>", "answer")
    '1'
    """
    start = text.find(f"<{tag}>") + len(tag) + 2
    end = text.find(f"</{tag}>", start)
    return text[start:end] if start > len(tag) + 1 and end >= 0 else None
