"""The runtime type checker of the tests, named in conftest.py: beartype with two of a static checker's readings.

`Self` is not checked, because jaxtyping decorates methods one by one and beartype then cannot know their class; an int
is taken where a float is asked for.
"""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any}), is_pep484_tower=True))
